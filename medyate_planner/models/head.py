"""Find the layer that makes a model's outputs, and give it another number of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from medyate_planner.errors import InputError
from medyate_planner.models.factory import first_line
from medyate_planner.trace.twin import fake_copy

BATCH_SIZE = 2
ADVICE = "pass --head with its name, or make the model with the right number of outputs in a factory"


def example_input(model: nn.Module, input_shape: tuple[int, ...], *, batch_size: int = 1) -> Tensor:
    """Make zeros of shape (batch_size, *input_shape) as our loaders do: images channels_last, in the model's float
    type; int64 for token ids."""
    takes_tokens = len(input_shape) == 1 and any(isinstance(m, nn.Embedding) for m in model.modules())
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    dtype = torch.int64 if takes_tokens else next(floating, torch.float32)
    batch = torch.zeros((batch_size, *input_shape), dtype=dtype)
    return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


def run_fake(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Run the model once at batch 2 without computing anything.

    Returns the names of the linear and convolutional layers in the order they were called, and the shape of
    the first output (None if the output holds no tensor).
    """
    calls: list[str] = []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if any(parameter.is_meta for parameter in model.parameters()):  # the meta device does not mix with another
        model = fake_copy(model, mode, "cpu")
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True  # it prints a traceback of what is raised anyway
    try:
        with mode, torch.no_grad():
            output = model(example_input(model, input_shape, batch_size=BATCH_SIZE))
    finally:
        log.disabled = was_disabled
        for hook in hooks:
            hook.remove()
    return tuple(calls), _first_shape(output)


def count_outputs(model: nn.Module, input_shape: tuple[int, ...]) -> int | None:
    """Number of classes: the last dimension of an output (N, K); None when it has another form."""
    try:
        _, shape = run_fake(model, input_shape)
    except Exception:
        return None
    return shape[1] if shape is not None and len(shape) == 2 else None


def find_head(model: nn.Module, input_shape: tuple[int, ...], *, pattern: str | None = None) -> str:
    """Name of the head: the linear layer or 1x1 convolution called last, whose features are the output's.

    `pattern` (fnmatch on dotted names) overrides the search; it decides only where the pattern fits several.

    Raises:
        InputError: the pattern fits no such layer or only others, the model does not run, or its last layer
            does not make its output.
    """
    matches = _match_head(model, pattern) if pattern is not None else ()
    if len(matches) == 1:
        return matches[0]
    try:
        calls, shape = run_fake(model, input_shape)
    except Exception as error:
        size = [BATCH_SIZE, *input_shape]
        raise InputError(
            f"can not look for the head: the model fails on an input of {size}: {first_line(error)}; {ADVICE}"
        ) from error
    name = calls[-1] if calls else None
    if name is None or shape is None:
        raise InputError(f"the model has no linear or convolutional head; {ADVICE}")
    module = model.get_submodule(name)
    if not _can_be_head(module) or out_features(module) not in (shape[1], shape[-1]):
        raise InputError(f"the last layer, {name}, does not make the output {list(shape)}; {ADVICE}")
    if matches and name not in matches:
        shown = ", ".join(matches[:4]) + (", …" if len(matches) > 4 else "")
        raise InputError(
            f"--head {pattern!r} fits {len(matches)} layers ({shown}), not the last; name the one to replace"
        )
    return name


def resize_head(model: nn.Module, name: str, num_outputs: int, *, seed: int) -> None:
    """Give the head `num_outputs` outputs in place: weight normal(0, 0.01) from `seed`, bias zero.

    Raises:
        InputError: the layer computes its weight from others (a parametrization).
    """
    module = model.get_submodule(name)
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or parametrize.is_parametrized(module):
        raise InputError(f"head {name}: a {type(module).__name__} can not be given {num_outputs} outputs; {ADVICE}")
    old = module.weight
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty((num_outputs, *old.shape[1:]), dtype=torch.float32).normal_(0, 0.01, generator=generator)
    module.weight = nn.Parameter(weight.to(dtype=old.dtype, device=old.device))
    if module.bias is not None:
        module.bias = nn.Parameter(torch.zeros(num_outputs, dtype=module.bias.dtype, device=old.device))
    if isinstance(module, nn.Linear):
        module.out_features = num_outputs
    else:
        module.out_channels = num_outputs
    for owner in (model, getattr(model, "config", None)):
        for attribute in ("num_classes", "num_labels"):
            if isinstance(getattr(owner, attribute, None), int):
                setattr(owner, attribute, num_outputs)


def out_features(module: nn.Module) -> int:
    """Outputs of a linear layer or a convolution."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _match_head(model: nn.Module, pattern: str) -> tuple[str, ...]:
    names = tuple(name for name, module in model.named_modules() if _can_be_head(module))
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        last = ", ".join(names[-4:])
        raise InputError(f"--head {pattern!r} fits no linear layer or 1x1 convolution; the last are {last or 'none'}")
    return found


def _can_be_head(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)


def _first_shape(output: Any) -> tuple[int, ...] | None:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    parts = output if isinstance(output, (tuple, list)) else ()
    return next((tuple(part.shape) for part in parts if isinstance(part, Tensor)), None)
