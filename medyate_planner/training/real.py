"""Real steps on this machine, for comparison with predicted ones. The model is afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.memory.moments import Place
from medyate_planner.trace import InputSpec, Trace, as_arguments
from medyate_planner.training.allocator import allocator_peak_growth
from medyate_planner.training.measure import LossFunction, StepMeasurement, measure_step
from medyate_planner.training.ordinary import (
    MakeTarget,
    Ordinary,
    Regime,
    infer,
    plain_step,
    resident_tensors,
    run_ordinary,
)
from medyate_planner.training.session import Session
from medyate_planner.training.stepping import trial_stepper

Batch = tuple[tuple[Tensor, ...], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealOrdinary:
    """Measured inference and full fine-tuning; the allocator's peaks include weights, state and inputs."""

    measured: Ordinary
    inference_allocator_bytes: int
    step_allocator_bytes: int


def real_ordinary(
    model: nn.Module,
    inputs: tuple[InputSpec, ...],
    batch_size: int,
    loss_function: LossFunction,
    make_target: MakeTarget,
    regime: Regime,
    *,
    device: str = "cpu",
) -> RealOrdinary:
    """Inference and one step of the user's own model on random inputs, measured.

    Raises:
        InputError: the model is on the meta device.
    """
    measured = real_step(model, inputs, batch_size, loss_function, make_target, regime, device=device)
    args, kwargs = example_batch(inputs, batch_size, device)
    held = _bytes_of([*resident_tensors(model), *_leaves([args, kwargs])])
    with restored(model):
        inference = allocator_peak_growth(lambda: infer(model, args, kwargs, regime), device)
    with restored(model):
        step, extra = plain_step(model, args, kwargs, loss_function, make_target, regime)
        growth = allocator_peak_growth(step, device)
    return RealOrdinary(
        measured=measured,
        inference_allocator_bytes=held + inference,
        step_allocator_bytes=held + _bytes_of(extra) + growth,
    )


def real_step(
    model: nn.Module,
    inputs: tuple[InputSpec, ...],
    batch_size: int,
    loss_function: LossFunction,
    make_target: MakeTarget,
    regime: Regime,
    *,
    device: str = "cpu",
) -> Ordinary:
    """As `real_ordinary`, without the allocator."""
    check_real(model)
    args, kwargs = example_batch(inputs, batch_size, device)
    with restored(model):
        return run_ordinary(model, args, kwargs, loss_function, make_target, regime)


def real_session_step(
    model: nn.Module,
    traced: Trace,
    graph: ModelGraph,
    updates: Updates,
    loss_function: LossFunction,
    make_target: MakeTarget,
    *,
    mode: UpdateMode = FUSED,
) -> tuple[StepMeasurement, int]:
    """One step of the lean executor on random inputs, measured, and the allocator's peak.

    Raises:
        InputError: the model is on the meta device.
    """
    check_real(model)
    args, kwargs = example_batch(traced.inputs, graph.batch_size, traced.device)
    with restored(model), Session(model, traced, graph, updates, lambda _interval: {}, mode=mode) as session:
        with torch.no_grad():
            target = make_target(session.eval()(*args, **kwargs))
        session.train().set_lr(1e-3, clip=5.0)
        places = {op.name: Place(op.module_path, op.source_line) for op in graph.ops}
        measured = measure_step(session, args, kwargs, target, loss_function, places=places)

        stepper = trial_stepper(session)

        def once() -> None:
            loss_function(session(*args, **kwargs), target).backward()  # type: ignore[no-untyped-call]
            stepper.finish()

        if stepper.makes_state:
            once()
        growth = allocator_peak_growth(once, traced.device)
        held = _bytes_of([*session.resident_tensors(), *stepper.tensors(), *_leaves([args, kwargs, target])])
    return measured, held + growth


def check_real(model: nn.Module) -> None:
    """Raise `InputError` for a model without memory."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError("a real step can not be measured on the meta device; give the model memory, or do not measure")


def example_batch(inputs: tuple[InputSpec, ...], batch_size: int, device: str) -> Batch:
    """Random inputs of these shapes."""
    return as_arguments(inputs, lambda spec: spec.example(batch_size, device))


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put weights, buffers, gradients, modes, what requires a gradient and the random state back in the end."""
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = [(tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad) for tensor in tensors.values()]
    for tensor in tensors.values():
        tensor.grad = None
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for tensor, original, required, gradient in before:
                tensor.copy_(original)
                tensor.requires_grad_(required)
                tensor.grad = gradient
        for module, training in modes:
            module.training = training


def _bytes_of(tensors: list[Tensor]) -> int:
    storages = {int(t.untyped_storage()._cdata): int(t.untyped_storage().nbytes()) for t in tensors}
    return sum(storages.values())


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
