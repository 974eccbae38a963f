"""One step of ordinary fine-tuning, as PyTorch runs the user's own model: nothing lean, nothing captured.

The same code runs a real step and, on a fake twin of the model, a dry one; both are measured with the same
instruments. The model's modes are those it is handed in with; only BatchNorm is told how to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError, MedyateError, TraceError, did_you_mean, unknown_name
from medyate_planner.memory.channels import STATE_SLOTS
from medyate_planner.memory.moments import Category, Timeline
from medyate_planner.trace import InputSpec, as_arguments
from medyate_planner.trace.failure import cause_of, quiet_torch
from medyate_planner.trace.twin import fake_copy
from medyate_planner.training.kept import KeptTracker
from medyate_planner.training.live import LiveTracker
from medyate_planner.training.measure import LossFunction, alive_since
from medyate_planner.training.places import Places

NORMS = ("frozen", "train")
AUTOCASTS = ("bfloat16", "float16")
MakeTarget = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How a model is fine-tuned: everything but the batch that changes what a step costs.

    Args:
        optimizer: sgd, momentum, adam or adamw.
        norm: How BatchNorm runs: "frozen" (stored statistics) or "train" (those of the batch).
        autocast: bfloat16 or float16 for automatic mixed precision; None for the model's own type.
        accumulation: Passes whose gradients are summed before the optimizer's step.
        train: Patterns of the names of the parameters that are trained; none: those that require a gradient as the
            model is handed in.
    """

    optimizer: str = "sgd"
    norm: str = "frozen"
    autocast: str | None = None
    accumulation: int = 1
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.optimizer not in STATE_SLOTS:
            raise unknown_name("optimizer", self.optimizer, STATE_SLOTS)
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)
        if self.autocast is not None and self.autocast not in AUTOCASTS:
            raise InputError(f"autocast {self.autocast!r} is unknown; choose {' or '.join(AUTOCASTS)}, or leave it out")
        if self.accumulation < 1:
            raise InputError(f"accumulation: expected 1 or more passes, got {self.accumulation}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdinaryStep:
    """Bytes of one step. `alive_saved_bytes` counts `saved_bytes` a second way, by what forward left alive."""

    saved_bytes: int
    loss_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    training_bytes: int
    live_peak_bytes: int
    alive_saved_bytes: int
    saved_by_module: Mapping[str, int]
    gradients_by_parameter: Mapping[str, int]
    state_by_parameter: Mapping[str, int]
    timeline: Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRun:
    """Bytes of one forward without gradients, weights and inputs included."""

    live_peak_bytes: int
    timeline: Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinary:
    """Inference and a step of fine-tuning of one model at one batch size."""

    inference: InferenceRun
    step: OrdinaryStep


def dry_ordinary(
    model: nn.Module,
    inputs: tuple[InputSpec, ...],
    batch_size: int,
    loss_function: LossFunction,
    make_target: MakeTarget,
    regime: Regime,
    *,
    device: str = "cpu",
) -> Ordinary:
    """Inference and one step on a fake twin of the model; allocates nothing of the model's size.

    Raises:
        TraceError: the model can not be run without its data; names the operator and its line.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = fake_copy(model, mode, device)
    args, kwargs = fake_batch(inputs, batch_size, device, mode)
    try:
        with mode, quiet_torch():
            return run_ordinary(twin, args, kwargs, loss_function, make_target, regime)
    except MedyateError:
        raise
    except Exception as error:
        shapes = ", ".join(str((batch_size, *spec.shape)) for spec in inputs)
        raise TraceError(
            f"{type(model).__name__} can not be run on tensors without values of shape {shapes}: {cause_of(error)}; "
            "check the input shape, the type and the number of inputs, and make shapes and branches independent of the "
            "data"
        ) from error


def fake_batch(
    inputs: tuple[InputSpec, ...], batch_size: int, device: str, mode: FakeTensorMode
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Fake batches of these shapes, in the memory format that real ones have."""
    with mode:
        return as_arguments(inputs, lambda spec: spec.empty(batch_size, device))


def run_ordinary(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    loss_function: LossFunction,
    make_target: MakeTarget,
    regime: Regime,
) -> Ordinary:
    """Inference and one step on the tensors given. The learning rate is 0; buffers and modes may be changed."""
    modes = [(module, module.training) for module in model.modules()]
    resident = resident_tensors(model)  # before any run: a module may remember what it computed
    inference, outputs = _run_inference(model, resident, args, kwargs, regime)
    target = make_target(outputs)
    del outputs
    for module, training in modes:
        module.training = training
    trained = arrange(model, regime)
    step = _run_step(model, resident, trained, (args, kwargs, target), loss_function, regime)
    return Ordinary(inference=inference, step=step)


def arrange(model: nn.Module, regime: Regime) -> list[nn.Parameter]:
    """Set what is trained and how BatchNorm runs; returns the trained parameters.

    Raises:
        InputError: the patterns match no parameter.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = regime.norm == "train"
    names = dict(model.named_parameters(remove_duplicate=False))
    for pattern in regime.train:
        if not any(fnmatchcase(name, pattern) for name in names):
            last, near = ", ".join(list(names)[-3:]), did_you_mean(pattern, names)
            raise InputError(f"train: {pattern} matches no parameter; {near}the last ones are {last or 'none at all'}")
    trained: dict[int, nn.Parameter] = {}
    for name, parameter in names.items():
        matches = any(fnmatchcase(name, pattern) for pattern in regime.train)
        wanted = matches if regime.train else parameter.requires_grad
        if wanted and (parameter.is_floating_point() or parameter.is_complex()):
            trained[id(parameter)] = parameter
    for parameter in names.values():
        parameter.requires_grad_(id(parameter) in trained)
    if not trained:
        raise InputError("train: the model has no parameter that can be trained")
    return list(trained.values())


def infer(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], regime: Regime) -> Any:
    """One forward in evaluation mode without gradients."""
    model.eval()
    with torch.no_grad(), _autocast(model, regime):
        return model(*args, **kwargs)


def plain_step(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    loss_function: LossFunction,
    make_target: MakeTarget,
    regime: Regime,
) -> tuple[Callable[[], None], list[Tensor]]:
    """A step without instruments as a function, and what it holds besides the model and its inputs."""
    modes = [(module, module.training) for module in model.modules()]
    target = make_target(infer(model, args, kwargs, regime))
    for module, training in modes:
        module.training = training
    trained = arrange(model, regime)
    optimizer = _optimizer(trained, regime)
    one = _Pass(model, (args, kwargs, target), loss_function, regime)

    def run() -> None:
        for _ in range(min(2, regime.accumulation)):
            one.run()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if STATE_SLOTS[regime.optimizer]:
        run()
    return run, [*_state_tensors(optimizer), *_tensors(target)]


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]


def _run_inference(
    model: nn.Module, resident: list[Tensor], args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], regime: Regime
) -> tuple[InferenceRun, Any]:
    already = {Category.WEIGHTS: resident, Category.INPUTS: _tensors([args, dict(kwargs)])}
    with LiveTracker(already, places=Places(model)) as live:
        outputs = infer(model, args, kwargs, regime)
    return InferenceRun(live_peak_bytes=live.peak_bytes, timeline=live.ledger.timeline()), outputs


def _run_step(
    model: nn.Module,
    resident: list[Tensor],
    trained: list[nn.Parameter],
    batch: Any,
    loss_function: LossFunction,
    regime: Regime,
) -> OrdinaryStep:
    optimizer = _optimizer(trained, regime)
    if STATE_SLOTS[regime.optimizer]:  # the first step makes the state
        _Pass(model, batch, loss_function, regime).run()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state = _state_tensors(optimizer)
    state_bytes = sum(_nbytes(t) for t in state)
    places = Places(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    already = {
        Category.OPTIMIZER_STATE: state,
        Category.WEIGHTS: resident,
        Category.INPUTS: _tensors(batch),
        Category.ACTIVATIONS: resident_tensors(model),  # remembered from the pass before
    }
    live = LiveTracker(already, places=places)
    kept = KeptTracker(
        [*resident, *state], fixed_bytes=state_bytes, ledger=live.ledger, lean=False, owner=places.owner
    )  # fmt: skip
    with ExitStack() as stack:
        gradients = _watch_gradients(trained, kept, stack)
        stack.enter_context(live)
        stack.enter_context(kept)
        alive_saved = 0
        for _ in range(min(2, regime.accumulation)):  # from the second pass on they are all alike
            one = _Pass(model, batch, loss_function, regime, live, kept)
            one.run()
            alive_saved = one.alive_saved_bytes
        live.phase = "optimizer"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return OrdinaryStep(
        saved_bytes=kept.saved_bytes,
        loss_bytes=kept.loss_bytes,
        gradients_bytes=kept.gradients_bytes,
        optimizer_bytes=state_bytes,
        training_bytes=kept.training_bytes,
        live_peak_bytes=live.peak_bytes,
        alive_saved_bytes=alive_saved,
        saved_by_module=kept.saved_by_owner,
        gradients_by_parameter={names[key]: nbytes for key, nbytes in gradients.items()},
        state_by_parameter={
            names[id(p)]: sum(_nbytes(t) for t in entry.values() if isinstance(t, Tensor))
            for p, entry in optimizer.state.items()
        },
        timeline=live.ledger.timeline(),
    )


def _watch_gradients(trained: list[nn.Parameter], kept: KeptTracker, stack: ExitStack) -> dict[int, int]:
    """Tell `kept` of each weight gradient when it is complete; bytes by identity of the parameter, as they come."""
    seen: dict[int, int] = {}
    owner: dict[int, int] = {}  # two parameters may share the storage of their gradients: it is the first one's

    def complete(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        key = int(parameter.grad.untyped_storage()._cdata) if parameter.grad.layout == torch.strided else -1
        mine = owner.setdefault(key, id(parameter)) == id(parameter)
        seen[id(parameter)] = _nbytes(parameter.grad) if mine else 0
        kept.gradient(parameter.grad, True)

    for parameter in trained:
        stack.callback(parameter.register_post_accumulate_grad_hook(complete).remove)  # type: ignore[no-untyped-call]
    return seen


class _Pass:
    """One forward, loss and backward, with or without instruments."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        loss_function: LossFunction,
        regime: Regime,
        live: LiveTracker | None = None,
        kept: KeptTracker | None = None,
    ) -> None:
        self.model, self.batch, self.loss_function, self.regime = model, batch, loss_function, regime
        self.live, self.kept = live, kept
        self.alive_saved_bytes = 0

    def run(self) -> None:
        """Forward, loss, backward; gradients end up in `.grad`."""
        args, kwargs, target = self.batch
        self._enter("forward")
        before = set(self.live.ledger.entries()) if self.live is not None else set()
        with _autocast(self.model, self.regime):
            outputs = self.model(*args, **kwargs)
            if self.live is not None and self.kept is not None:
                self.alive_saved_bytes = alive_since(self.live, before, outputs, self.kept)
            self._enter("loss")
            loss = self.loss_function(outputs, target)
            del outputs
        self._enter("backward")
        loss.backward()  # type: ignore[no-untyped-call]

    def _enter(self, phase: str) -> None:
        if self.live is not None:
            self.live.phase = phase
        if self.kept is not None and phase == "forward":
            self.kept.begin_forward()
        elif self.kept is not None and phase == "loss":
            self.kept.phase = phase


def _optimizer(parameters: list[nn.Parameter], regime: Regime) -> torch.optim.Optimizer:
    if regime.optimizer in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9 if regime.optimizer == "momentum" else 0.0)
    kind = torch.optim.Adam if regime.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=0.0)


def _autocast(model: nn.Module, regime: Regime) -> AbstractContextManager[Any]:
    if regime.autocast is None:
        return nullcontext()
    device = next((p.device.type for p in model.parameters()), "cpu")
    return torch.autocast(device, dtype=getattr(torch, regime.autocast))


def _nbytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def resident_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers and tensors that modules hold as plain attributes."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(tensor, Tensor):
                found[id(tensor)] = tensor
    return list(found.values())


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
