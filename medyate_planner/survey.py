"""`report`: where the memory of a model goes, for inference, full fine-tuning and any plan."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from medyate_planner.errors import InputError, TraceError
from medyate_planner.losses import Loss, named_loss
from medyate_planner.memory.largest import largest_batch
from medyate_planner.memory.model import Updates
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting import gather
from medyate_planner.reporting.view import (
    LargestBatch,
    MemoryReport,
    ReportedMeasurement,
    ReportedModel,
    ReportedStep,
    StepName,
)
from medyate_planner.subject import LossSpec, Subject, batch_of, subject_of
from medyate_planner.trace import ExampleInputs, InputSpec, input_specs
from medyate_planner.trace.casts import PLANNED_AUTOCASTS
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.ordinary import Ordinary, Regime, dry_ordinary
from medyate_planner.training.real import real_ordinary, real_session_step
from medyate_planner.units import parse_bytes

_OPTIONS = frozenset({"batch_size", "loss", "head", "dropout", "device"})  # of `subject_of`
Stage = Callable[[str], None]


def report(
    model: nn.Module | Subject,
    example_inputs: ExampleInputs | None = None,
    *,
    optimizer: str = "sgd",
    norm: str = "frozen",
    autocast: str | None = None,
    accumulation: int = 1,
    train: str | Sequence[str] = (),
    plan: Plan | None = None,
    budget: str | int | None = None,
    measure: bool = False,
    spec: str | None = None,
    on_stage: Stage = lambda _stage: None,
    **options: Any,
) -> MemoryReport:
    """Where memory goes: inference, full fine-tuning as PyTorch runs it and by lean operators, every module and layer.

    Full fine-tuning is that of the model in the mode it is handed in with (dropout in `train()`), eager; only
    BatchNorm is told how to run. The model may be on the meta device: nothing of its size is allocated. A model that
    torch.export can not capture is reported without layers and lean operators, and `capture_error` says why.

    Args:
        model: A module, or what `subject_of` returned.
        example_inputs: One batch; its values do not matter.
        optimizer: sgd, momentum, adam or adamw, for full fine-tuning.
        norm: How BatchNorm runs in full fine-tuning: "frozen" (stored statistics) or "train" (those of the batch).
        autocast: "bfloat16" or "float16": full fine-tuning and inference under torch.autocast.
        accumulation: Passes whose gradients are summed before the optimizer's step.
        train: Patterns of the names of the parameters that full fine-tuning trains; none: those that require a
            gradient.
        plan: A plan made for this model, reported beside the others.
        budget: Also find the largest batch whose live peak fits into this many bytes, such as "2GB".
        measure: Also run real steps on this machine; the model must have its memory then.
        spec: The model's name in the report.
        on_stage: Told what is being worked on.
        options: As `subject_of`.

    Raises:
        InputError: an unknown option, or no inputs.
        TraceError: the model can be run neither as a graph nor on fake tensors.
        PlanMismatchError: the plan was made for another model.
    """
    patterns = (train,) if isinstance(train, str) else tuple(train)
    regime = Regime(optimizer=optimizer, norm=norm, autocast=autocast, accumulation=accumulation, train=patterns)
    budget_bytes = None if budget is None else parse_bytes(budget)
    if not isinstance(model, (nn.Module, Subject)):
        raise InputError(f"model: expected a torch.nn.Module, got a {type(model).__name__}")
    held = gather.weights_by_module(model.model if isinstance(model, Subject) else model)
    with _no_collections():
        on_stage("capturing the model")
        case = _case(model, example_inputs, options, _planned_autocast(regime, plan))
        if plan is not None:
            _check_plan(case, plan)
        on_stage("a step on fake tensors")
        ordinary = _first_ordinary(case, regime)
        steps = list(gather.ordinary_steps(ordinary, regime))
        if case.subject is not None:
            steps += _lean_steps(case.subject, plan, on_stage)
    measured: tuple[ReportedMeasurement, ...] = ()
    if measure:
        on_stage("real steps")
        steps, measured = _measure(case, regime, plan, steps)
    modules = gather.reported_modules(case.model, held, ordinary.step)
    graph = case.subject.graph if case.subject is not None else None
    return MemoryReport(
        model=ReportedModel(
            spec=spec or type(case.model).__name__,
            fingerprint=graph.fingerprint if graph is not None else None,
            num_parameters=sum(parameter.numel() for parameter in case.model.parameters()),
        ),
        batch_size=case.batch_size,
        dtype=_dtype(case.model),
        regime=gather.regime_of(case.model, regime),
        full=gather.full_fine_tuning(modules, ordinary.step, regime),
        inference=gather.inference_of(ordinary),
        steps=tuple(steps),
        modules=modules,
        layers=gather.reported_layers(case.subject.memory) if case.subject is not None else (),
        accountings=gather.reported_accountings(steps, case.subject.memory if case.subject else None, plan),
        measured=measured,
        largest_batch=() if budget_bytes is None else _largest_batches(case, regime, plan, budget_bytes, on_stage),
        notes=gather.notes_on(case.model, case.device),
        capture_error=case.capture_error,
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's cyclic collections walk over all that torch has made: a quarter of the time, and nothing to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The model of a report, captured if it can be."""

    model: nn.Module
    inputs: tuple[InputSpec, ...]
    batch_size: int
    loss: Loss
    device: str
    subject: Subject | None
    capture_error: str | None = None
    known: dict[int, Ordinary] = field(default_factory=dict)


def _planned_autocast(regime: Regime, plan: Plan | None) -> str | None:
    """What lean steps compute with: as the plan says, else as full fine-tuning does, where that can be planned."""
    if plan is not None:
        return plan.autocast
    return regime.autocast if regime.autocast in PLANNED_AUTOCASTS else None


def _case(
    model: nn.Module | Subject,
    example_inputs: ExampleInputs | None,
    options: Mapping[str, Any],
    autocast: str | None,
) -> _Case:
    if isinstance(model, Subject):
        if options or example_inputs is not None:
            raise InputError(
                f"{', '.join(options) or 'example_inputs'}: a model that was made ready has these already; "
                "pass them to subject_of"
            )
        return _case_of(model, model.loss)
    if example_inputs is None:
        raise InputError("example_inputs: expected one batch of inputs beside the model, got none")
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise InputError(
            f"{unknown[0]}: report has no such option; beside its own it takes {', '.join(sorted(_OPTIONS))}"
        )
    loss: LossSpec = options.get("loss", "cross-entropy")
    try:
        return _case_of(subject_of(model, example_inputs, autocast=autocast, **options), named_loss(loss))
    except TraceError as error:
        return _Case(
            model=model,
            inputs=input_specs(example_inputs),
            batch_size=options.get("batch_size") or batch_of(example_inputs),
            loss=named_loss(loss),
            device=str(options.get("device", "cpu")),
            subject=None,
            capture_error=error.message,
        )


def _case_of(subject: Subject, loss: Loss) -> _Case:
    return _Case(
        model=subject.model,
        inputs=subject.traced.inputs,
        batch_size=subject.graph.batch_size,
        loss=loss,
        device=subject.traced.device,
        subject=subject,
    )


def _check_plan(case: _Case, plan: Plan) -> None:
    if case.subject is None:
        raise InputError(f"a plan can not be reported for a model that can not be captured: {case.capture_error}")
    plan.check(case.subject.graph)
    plan.check_autocast(case.subject.autocast)
    if plan.batch_size != case.batch_size:
        raise InputError(
            f"the plan was made for a batch of {plan.batch_size}, the report for {case.batch_size}; "
            f"pass --batch-size {plan.batch_size}"
        )


def _first_ordinary(case: _Case, regime: Regime) -> Ordinary:
    try:
        return _ordinary(case, case.batch_size, regime)
    except TraceError as error:
        if case.capture_error is None:
            raise
        raise TraceError(f"{error.message}; nor can it be captured by torch.export") from error


def _ordinary(case: _Case, batch_size: int, regime: Regime) -> Ordinary:
    if batch_size not in case.known:
        case.known[batch_size] = dry_ordinary(
            case.model,
            case.inputs,
            batch_size,
            case.loss.function,
            case.loss.make_target,
            regime,
            device=case.device,
        )
    return case.known[batch_size]


def _updates_of(subject: Subject, plan: Plan | None) -> dict[StepName, tuple[Subject, Updates]]:
    """What lean steps train, each with the subject as it is then updated."""
    chosen: dict[StepName, tuple[Subject, Updates]] = {}
    whole = gather.everything(subject.graph)
    if whole.full:
        chosen["lean_full"] = subject, whole
    if plan is not None:
        chosen["plan"] = subject.under(plan.mode, plan.norm), plan.updates()
    return chosen


def _lean_steps(subject: Subject, plan: Plan | None, on_stage: Stage) -> list[ReportedStep]:
    steps = []
    for name, (own, updates) in _updates_of(subject, plan).items():
        on_stage(f"{gather.TITLES[name]}, a step on fake tensors")
        loss = own.loss
        dry = dry_run(own.traced, own.graph, updates, loss.function, loss.make_target, mode=own.mode, timeline=True)
        steps.append(gather.lean_step(name, dry, bound_bytes=own.peak_bound_bytes(updates)))
    return steps


def _measure(
    case: _Case, regime: Regime, plan: Plan | None, steps: list[ReportedStep]
) -> tuple[list[ReportedStep], tuple[ReportedMeasurement, ...]]:
    """Run every step for real; each with its allocator's peak, and predicted beside measured."""
    loss = case.loss
    real = real_ordinary(
        case.model, case.inputs, case.batch_size, loss.function, loss.make_target, regime, device=case.device
    )
    found = {step.name: step for step in gather.ordinary_steps(real.measured, regime)}
    allocator = {"inference": real.inference_allocator_bytes, "full": real.step_allocator_bytes}
    if case.subject is not None:
        for name, (own, updates) in _updates_of(case.subject, plan).items():
            held, allocator[name] = real_session_step(
                own.model, own.traced, own.graph, updates, loss.function, loss.make_target, mode=own.mode
            )
            found[name] = gather.lean_step(name, held)
    rows = tuple(
        ReportedMeasurement(
            step=step.name,
            name=figure.removesuffix("_bytes").replace("_", " "),
            predicted_bytes=getattr(step, figure),
            measured_bytes=getattr(found[step.name], figure),
        )
        for step in steps
        for figure in ("saved_bytes", "training_bytes", "live_peak_bytes")
        if step.name != "inference" or figure == "live_peak_bytes"
    )
    return [step.model_copy(update={"allocator_peak_bytes": allocator[step.name]}) for step in steps], rows


def _largest_batches(
    case: _Case, regime: Regime, plan: Plan | None, budget_bytes: int, on_stage: Stage
) -> tuple[LargestBatch, ...]:
    """By live peak, for each way to run a step."""

    def lean_peak(batch_size: int, own: Subject, updates: Updates) -> int:
        graph, loss = own.at_batch(batch_size), own.loss
        dry = dry_run(own.traced, graph, updates, loss.function, loss.make_target, mode=own.mode)
        return dry.live_peak_bytes or 0

    peaks: dict[StepName, Callable[[int], int]] = {
        "inference": lambda n: _ordinary(case, n, regime).inference.live_peak_bytes,
        "full": lambda n: _ordinary(case, n, regime).step.live_peak_bytes,
    }
    if case.subject is not None:
        for name, (own, updates) in _updates_of(case.subject, plan).items():
            peaks[name] = lambda n, own=own, updates=updates: lean_peak(n, own, updates)  # type: ignore[misc]
    least = 2 if regime.norm == "train" else 1  # the statistics of a single sample may not exist
    found = []
    for name, peak_at in peaks.items():
        on_stage(f"{gather.TITLES[name]}, the largest batch that fits")
        batch_size, peak_bytes = largest_batch(peak_at, budget_bytes, least=least)
        found.append(
            LargestBatch(step=name, budget_bytes=budget_bytes, batch_size=batch_size, live_peak_bytes=peak_bytes)
        )
    return tuple(found)


def _dtype(model: nn.Module) -> str:
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return "float32" if first is None else str(first.dtype).removeprefix("torch.")
