"""Losses by name, and targets of the right shape for predicting what they keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medyate_planner.errors import InputError, did_you_mean

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss `function(outputs, target)`, and `make_target(outputs)`: a target of the right shape and type."""

    name: str
    function: LossFunction
    make_target: Callable[[Any], Any]


def named_loss(spec: str | LossFunction | Loss) -> Loss:
    """`cross-entropy`, `next-token` (language models), `mse`, a callable, or a `module:factory` that makes one.

    A callable of the user's may carry `make_target(outputs)`; without it, class indices are tried, then zeros of the
    shape of the outputs.

    Raises:
        InputError: unknown name, or a factory that returns no callable.
    """
    if isinstance(spec, Loss):
        return spec
    if callable(spec):
        return _custom(getattr(spec, "__name__", type(spec).__name__), spec)
    if spec in _NAMED:
        return _NAMED[spec]
    if ":" in spec:
        from medyate_planner.models import import_factory

        function = import_factory(spec, what="loss")()
        if not callable(function):
            raise InputError(f"loss {spec}: expected the factory to return a callable, got {type(function).__name__}")
        return _custom(spec, function)
    near = did_you_mean(spec, _NAMED, count=1)
    raise InputError(f"loss {spec!r} is unknown; {near}choose one of {', '.join(_NAMED)}, or module:factory")


def first_output(outputs: Any) -> Tensor:
    """The tensor a loss looks at: the output, its `logits`, or the first of several."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    else:
        found = getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the model's output is a {type(outputs).__name__}; pass --loss module:factory that understands it"
        )
    return found


def _cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    logits = first_output(outputs)
    try:
        return functional.cross_entropy(logits, target)
    except IndexError as error:
        classes = logits.shape[1]
        wrong = next((label for label in target.flatten().tolist() if not 0 <= label < classes), None)
        raise InputError(
            f"label {wrong} is out of range: the model has {classes} classes, so labels are 0 to {classes - 1}; "
            "correct the data, or give the model more classes with --num-classes"
        ) from error


def _mean_squared_error(outputs: Any, target: Tensor) -> Tensor:
    # Not functional.mse_loss: torch 2.13's kernel returns a scalar in a storage as large as its input.
    prediction = first_output(outputs)
    return (prediction - target.reshape(prediction.shape)).square().mean()


def _next_token(outputs: Any, target: Tensor) -> Tensor:
    logits = first_output(outputs)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def _token_target(outputs: Any) -> Tensor:
    logits = first_output(outputs)
    if logits.dim() != 3:
        raise InputError(f"next-token needs outputs (batch, tokens, vocabulary), got shape {tuple(logits.shape)}")
    return torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)


def _class_target(outputs: Any) -> Tensor:
    logits = first_output(outputs)
    if logits.dim() < 2:
        raise InputError(
            f"cross-entropy needs outputs (batch, classes), got shape {tuple(logits.shape)}; try --loss mse"
        )
    return torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.int64, device=logits.device)


def _same_shape_target(outputs: Any) -> Tensor:
    return torch.zeros_like(first_output(outputs))


_NAMED: Mapping[str, Loss] = {
    "cross-entropy": Loss(name="cross-entropy", function=_cross_entropy, make_target=_class_target),
    "next-token": Loss(name="next-token", function=_next_token, make_target=_token_target),
    "mse": Loss(name="mse", function=_mean_squared_error, make_target=_same_shape_target),
}


def _custom(name: str, function: LossFunction) -> Loss:
    make_target = getattr(function, "make_target", None)
    if make_target is None:

        def make_target(outputs: Any) -> Any:
            for make in (_class_target, _same_shape_target):
                try:
                    target = make(outputs)
                    function(outputs, target)
                except Exception:
                    continue
                return target
            raise InputError(
                f"loss {name}: neither class indices nor a target of the outputs' shape suits it; "
                "give the loss an attribute make_target(outputs) that returns one"
            )

    return Loss(name=name, function=function, make_target=make_target)
