"""A model made ready once: traced, read at a batch size, with its loss. Every step of the pipeline starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from medyate_planner.errors import InputError, unknown_name
from medyate_planner.families import BATCH_NORM
from medyate_planner.graph import ModelGraph
from medyate_planner.losses import Loss, LossFunction, named_loss
from medyate_planner.memory.mode import FUSED, NORMS, UpdateMode
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.peak import PeakModel
from medyate_planner.planning.plan import Plan
from medyate_planner.trace import ExampleInputs, InputSpec, Trace, trace
from medyate_planner.trace.casts import autocasting
from medyate_planner.trace.layers import find_head
from medyate_planner.training.dryrun import view_loss

LossSpec = str | LossFunction | Loss


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model made ready for planning: traced, read at one batch size, with its loss. Make one with `subject_of`."""

    model: nn.Module
    traced: Trace
    graph: ModelGraph
    memory: MemoryModel
    loss: Loss
    dropout: str = "off"
    norm: str = "frozen"

    @property
    def autocast(self) -> str | None:
        """The type that torch.autocast computes with, None without it."""
        return self.traced.autocast

    @property
    def mode(self) -> UpdateMode:
        """How weights are updated."""
        return self.memory.mode

    def under(self, mode: UpdateMode, norm: str | None = None) -> Subject:
        """The same model updated in another mode, or with BatchNorms that run another way."""
        norm = norm or self.norm
        if (mode, norm) == (self.mode, self.norm):
            return self
        graph = self.at_batch(self.graph.batch_size, norm)
        memory = MemoryModel(graph, loss=self.memory.loss, loss_cost=self.memory.loss_cost, mode=mode)
        return replace(self, graph=graph, memory=memory, norm=norm)

    def peak_bound_bytes(self, updates: Updates) -> int:
        """Closed form of the live peak of a step: never below it."""
        return PeakModel(self.memory).bound(updates)

    def at_batch(self, batch_size: int, norm: str | None = None) -> ModelGraph:
        """The graph at another batch size, as the loss sees it."""
        graph = _graph_of(self.traced, batch_size, norm or self.norm)
        return reading(graph, self.graph.outputs, self.traced.head_pattern)


def subject_of(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    batch_size: int | None = None,
    loss: LossSpec = "cross-entropy",
    head: str | None = None,
    dropout: str = "off",
    norm: str = "frozen",
    mode: UpdateMode = FUSED,
    device: str = "cpu",
    autocast: str | None = None,
) -> Subject:
    """Trace a model once; report, rank, plan, verify and train can all start from the result.

    Args:
        model: On any device, the meta device too.
        example_inputs: One batch.
        batch_size: What is planned for, if not the batch size of `example_inputs`.
        loss: Name, callable, or module:factory.
        head: Pattern of the head's layers, or "none".
        dropout: "off", or "keep" for dropout in training.
        norm: "frozen" for stored statistics of BatchNorms, or "train" for those of the batch.
        mode: How weights are updated.
        device: What a model on the meta device is predicted for.
        autocast: "bfloat16" to train under torch.autocast, weights in their own type.
    """
    traced = trace(model, example_inputs, head=head, dropout=dropout, device=device, autocast=autocast)
    check_norm(model, norm)
    graph = _graph_of(traced, batch_size or batch_of(example_inputs), norm)
    return _subject(model, traced, graph, loss, dropout, norm=norm, mode=mode)


def check_norm(model: nn.Module, norm: str) -> None:
    """Raise `InputError` for an unknown way to run BatchNorms, or one that the model's can not be run in."""
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    for name, module in model.named_modules():
        if norm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            raise InputError(
                f"norm train: {name} averages over all batches (momentum None), which is not supported; give it a "
                "momentum, or choose norm frozen"
            )


def _graph_of(traced: Trace, batch_size: int, norm: str) -> ModelGraph:
    graph = traced.graph(batch_size)
    if norm != "train":
        return graph
    for op in graph.ops:
        if op.family == BATCH_NORM and op.output.numel <= op.output.shape[1]:
            raise InputError(
                f"norm train: {op.name} ({op.module_path}) has one value per channel at batch size {batch_size}, which "
                "has no variance; plan for a batch of 2 or more, or choose norm frozen"
            )
    return graph.with_norms_in_training()


def as_subject(model: nn.Module | Subject, example_inputs: ExampleInputs | None, options: Mapping[str, Any]) -> Subject:
    """What was made ready already, or a module made ready now with the options of `subject_of`."""
    if isinstance(model, Subject):
        return model
    if example_inputs is None:
        raise InputError("example_inputs: expected one batch of inputs beside the model, got none")
    return subject_of(model, example_inputs, **options)


def subject_for(model: nn.Module, plan: Plan, *, loss: LossSpec | None = None) -> Subject:
    """Trace a model as the plan describes it, and check that the plan fits.

    `loss` is needed where the plan was made in Python with a loss of the user's own.
    """
    traced, graph = traced_for(model, plan)
    chosen = plan.loss if loss is None else loss
    return _subject(model, traced, graph, chosen, plan.dropout, norm=plan.norm, mode=plan.mode)


def traced_for(model: nn.Module, plan: Plan) -> tuple[Trace, ModelGraph]:
    """Capture a model as the plan describes it.

    Raises:
        PlanMismatchError: the plan was made for another model.
    """
    specs = [
        InputSpec(shape=i.shape, dtype=i.dtype, name=i.name, channels_last=i.channels_last and len(i.shape) == 3)
        for i in plan.model.inputs
    ]
    examples = [spec.example(2) for spec in specs]
    inputs: ExampleInputs = tuple(examples)
    if any(spec.name for spec in specs):
        inputs = {str(spec.name): example for spec, example in zip(specs, examples, strict=True)}
    traced = trace(
        model,
        inputs,
        head=plan.model.head_pattern,
        dropout=plan.dropout,
        device=plan.device,
        autocast=plan.autocast,
    )
    check_norm(model, plan.norm)
    graph = _graph_of(traced, plan.batch_size, plan.norm)
    plan.check(graph)
    return traced, reading(graph, plan.loss_outputs, traced.head_pattern)


def reading(graph: ModelGraph, outputs: tuple[str, ...], head_pattern: str | None) -> ModelGraph:
    """The graph as a loss sees it that reads only these outputs: what leads to the others needs no gradient."""
    if set(outputs) == set(graph.outputs):
        return graph
    seen = replace(graph, outputs=outputs)
    return replace(seen, head=find_head(seen, head_pattern))


def _subject(
    model: nn.Module,
    traced: Trace,
    graph: ModelGraph,
    loss: LossSpec,
    dropout: str,
    *,
    norm: str,
    mode: UpdateMode,
) -> Subject:
    chosen = named_loss(loss)
    if traced.autocast is not None:
        chosen = replace(chosen, function=_under_autocast(chosen.function, traced.autocast, traced.device))
    seen = view_loss(traced, graph, chosen.function, chosen.make_target)
    graph = reading(graph, seen.reads, traced.head_pattern)
    memory = MemoryModel(graph, loss=seen.keeps, loss_cost=seen.cost, mode=mode)
    return Subject(model=model, traced=traced, graph=graph, memory=memory, loss=chosen, dropout=dropout, norm=norm)


def _under_autocast(function: LossFunction, autocast: str, device: str) -> LossFunction:
    def within(outputs: Any, target: Any) -> Tensor:
        with autocasting(autocast, device):
            return function(outputs, target)

    return within


def batch_of(example_inputs: ExampleInputs) -> int:
    """Batch size of example inputs."""
    if isinstance(example_inputs, Tensor):
        return int(example_inputs.shape[0])
    values: Sequence[Tensor] = (
        list(example_inputs.values()) if isinstance(example_inputs, Mapping) else list(example_inputs)
    )
    return int(values[0].shape[0])
