"""Gather the figures of a memory report: the only place where they are summed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from medyate_planner.graph import ModelGraph
from medyate_planner.memory.accounting import convolutions, elements, full_scheme, sparse_update_bytes
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.moments import CATEGORIES, Timeline
from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.view import (
    FullFineTuning,
    Inference,
    ReportedAccounting,
    ReportedLayer,
    ReportedModule,
    ReportedRegime,
    ReportedStep,
    ReportedTimeline,
    StepName,
)
from medyate_planner.trace import storage_key
from medyate_planner.training.measure import StepMeasurement
from medyate_planner.training.ordinary import Ordinary, OrdinaryStep, Regime

TITLES: Mapping[StepName, str] = {
    "inference": "inference",
    "full": "full fine-tuning, PyTorch",
    "lean_full": "full fine-tuning, lean (sgd)",
    "plan": "plan (sgd)",
}


def everything(graph: ModelGraph) -> Updates:
    """Every channel of every layer, and every bias of a layer, without indices: full fine-tuning by lean operators."""
    return Updates(quotas={}, full=frozenset(layer.name for layer in graph.layers if layer.trainable))


def ordinary_steps(ordinary: Ordinary, regime: Regime) -> Iterator[ReportedStep]:
    """Inference and full fine-tuning as PyTorch runs them."""
    inference, full = ordinary.inference, ordinary.step
    yield ReportedStep(
        name="inference",
        title=TITLES["inference"],
        saved_bytes=0,
        training_bytes=0,
        live_peak_bytes=inference.live_peak_bytes,
        timeline=timeline_columns(inference.timeline),
    )
    yield ReportedStep(
        name="full",
        title=f"{TITLES['full']} ({regime.optimizer})",
        saved_bytes=full.saved_bytes,
        training_bytes=full.training_bytes,
        live_peak_bytes=full.live_peak_bytes,
        timeline=timeline_columns(full.timeline),
    )


def lean_step(name: StepName, measured: StepMeasurement, *, bound_bytes: int | None = None) -> ReportedStep:
    """A step of the lean executor."""
    assert measured.timeline is not None
    assert measured.live_peak_bytes is not None
    return ReportedStep(
        name=name,
        title=TITLES[name],
        saved_bytes=measured.saved_bytes,
        training_bytes=measured.training_bytes,
        live_peak_bytes=measured.live_peak_bytes,
        live_peak_bound_bytes=bound_bytes,
        timeline=timeline_columns(measured.timeline),
    )


def timeline_columns(timeline: Timeline) -> ReportedTimeline:
    """A timeline column by column, without the categories that are empty throughout."""
    moments = timeline.moments
    used = [i for i in range(len(CATEGORIES)) if any(moment.live_bytes[i] for moment in moments)]
    return ReportedTimeline(
        categories=tuple(CATEGORIES[i].value for i in used),
        phase=tuple(moment.phase for moment in moments),
        operator=tuple(moment.operator for moment in moments),
        module=tuple(moment.place.module for moment in moments),
        source=tuple(moment.place.source for moment in moments),
        live_bytes=tuple(tuple(moment.live_bytes[i] for i in used) for moment in moments),
        peak_index=timeline.peak_index,
    )


def full_fine_tuning(modules: Iterable[ReportedModule], step: OrdinaryStep, regime: Regime) -> FullFineTuning:
    """The totals of full fine-tuning."""
    return FullFineTuning(
        weights_bytes=sum(module.weights_bytes for module in modules),
        gradients_bytes=step.gradients_bytes,
        saved_bytes=step.saved_bytes,
        loss_bytes=step.loss_bytes,
        optimizer=regime.optimizer,
        optimizer_bytes=step.optimizer_bytes,
        training_bytes=step.training_bytes,
        live_peak_bytes=step.live_peak_bytes,
    )


def inference_of(ordinary: Ordinary) -> Inference:
    """The totals of inference."""
    return Inference(live_peak_bytes=ordinary.inference.live_peak_bytes)


def regime_of(model: nn.Module, regime: Regime) -> ReportedRegime:
    """The regime as the report states it, with the mode the model is in (BatchNorm left out: `norm` tells)."""
    modules = [m for m in model.modules() if not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module.training for module in modules}
    mode = "mixed" if len(modes) > 1 else "train" if modes == {True} else "eval"
    return ReportedRegime.model_validate({**asdict(regime), "mode": mode})


def notes_on(model: nn.Module, device: str) -> tuple[str, ...]:
    """Known exceptions that this model meets."""
    lstm = [name for name, module in model.named_modules() if isinstance(module, nn.LSTM)]
    if lstm and device == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return (
            f"{lstm[0] or 'the model'} is an LSTM: on the CPU oneDNN keeps a workspace of its own for backward, which "
            "predictions lack; a real step saves more than is said here (see --measure)",
        )
    return ()


def weights_by_module(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Bytes and number of parameters that each module itself holds; ask before the model runs and remembers things.

    A tensor that several modules hold counts at the first of them.
    """
    seen: set[int] = set()
    found = {}
    for path, module in model.named_modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        weights = parameters = 0
        for tensor in tensors:
            if isinstance(tensor, Tensor) and storage_key(tensor) not in seen:
                seen.add(storage_key(tensor))
                weights += int(tensor.untyped_storage().nbytes())
                parameters += tensor.numel() if isinstance(tensor, nn.Parameter) else 0
        found[path] = weights, parameters
    return found


def reported_modules(
    model: nn.Module, held: Mapping[str, tuple[int, int]], step: OrdinaryStep
) -> tuple[ReportedModule, ...]:
    """What each module itself holds in full fine-tuning, in the model's own order; those that hold nothing left out.

    `held` is from `weights_by_module`. A gradient counts at its parameter's first name.
    """
    rows = []
    for path, module in model.named_modules():
        own = [f"{path}.{name}" if path else name for name in module._parameters]
        row = ReportedModule(
            path=path,
            kind=type(module).__name__,
            parameters=held[path][1],
            weights_bytes=held[path][0],
            gradients_bytes=sum(step.gradients_by_parameter.get(name, 0) for name in own),
            optimizer_bytes=sum(step.state_by_parameter.get(name, 0) for name in own),
            saved_bytes=step.saved_by_module.get(path, 0),
        )
        if row.total_bytes or not path:
            rows.append(row)
    return tuple(rows)


def reported_layers(memory: MemoryModel) -> tuple[ReportedLayer, ...]:
    """Every layer, by what a channel costs."""
    head = frozenset(memory.graph.head)
    rows = []
    for layer in memory.graph.layers:
        cost = memory.costs[layer.name]
        only_this = Updates(quotas={} if layer.name in head else {layer.name: 1}, full=head)
        rows.append(
            ReportedLayer(
                name=layer.name,
                kind=layer.kind,
                channels=layer.channels,
                weight_bytes=layer.weight_elements * layer.element_bytes,
                gradient_bytes_per_channel=cost.gradient_bytes,
                saved_bytes_per_channel=cost.saved_bytes,
                passthrough_bytes=footprint(memory, only_this).passthrough_bytes,
                head=layer.name in head,
            )
        )
    return tuple(rows)


def reported_accountings(
    steps: Iterable[ReportedStep], memory: MemoryModel | None, plan: Plan | None
) -> tuple[ReportedAccounting, ...]:
    """The same things in our accounting and in the two foreign ones."""
    rows = [
        ReportedAccounting(accounting="bytes", of=f"{step.title}: training", amount=step.training_bytes, unit="B")
        for step in steps
        if step.name != "inference"
    ]
    if memory is None:
        return tuple(rows)
    whole = "every channel of every layer, one sample"
    rows.append(
        ReportedAccounting(
            accounting="elements", of=whole, amount=elements(memory, everything(memory.graph)), unit="elements"
        )
    )
    if plan is not None:
        count = elements(memory, plan.updates())
        rows.append(ReportedAccounting(accounting="elements", of="plan, one sample", amount=count, unit="elements"))
    if convolutions(memory.graph):
        amount = sparse_update_bytes(memory.graph, full_scheme(memory.graph))
        of = "every convolution and its bias, one sample, 8-bit weights"
        rows.append(ReportedAccounting(accounting="sparse-update", of=of, amount=amount, unit="B"))
    return tuple(rows)
