"""A model made ready once: traced, read at a batch size, with its loss. Every step of the pipeline starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medyate_planner.graph import ModelGraph
from medyate_planner.losses import Loss, LossFunction, named_loss
from medyate_planner.memory.model import MemoryModel
from medyate_planner.planning.plan import Plan
from medyate_planner.trace import ExampleInputs, InputSpec, Trace, trace
from medyate_planner.training.dryrun import loss_keeps

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


def subject_of(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    batch_size: int | None = None,
    loss: LossSpec = "cross-entropy",
    head: str | None = None,
    dropout: str = "off",
    device: str = "cpu",
) -> Subject:
    """Trace a model once; report, rank, plan, verify and train can all start from the result."""
    traced = trace(model, example_inputs, head=head, dropout=dropout, device=device)
    graph = traced.graph(batch_size or _batch_of(example_inputs))
    chosen = named_loss(loss)
    memory = MemoryModel(graph, loss=loss_keeps(traced, graph, chosen.function, chosen.make_target))
    return Subject(model=model, traced=traced, graph=graph, memory=memory, loss=chosen, dropout=dropout)


def subject_for(model: nn.Module, plan: Plan, *, batch_size: int | None = None) -> Subject:
    """Trace a model as the plan describes it, and check that the plan fits."""
    specs = [InputSpec(shape=i.shape, dtype=i.dtype, name=i.name) for i in plan.model.inputs]
    examples = [spec.example(2) for spec in specs]
    inputs: ExampleInputs = tuple(examples)
    if any(spec.name for spec in specs):
        inputs = {str(spec.name): example for spec, example in zip(specs, examples, strict=True)}
    subject = subject_of(
        model,
        inputs,
        batch_size=batch_size or plan.batch_size,
        loss=plan.loss,
        head=plan.model.head_pattern,
        dropout=plan.dropout,
        device=plan.device,
    )
    plan.check(subject.graph)
    return subject


def _batch_of(example_inputs: ExampleInputs) -> int:
    if isinstance(example_inputs, Tensor):
        return int(example_inputs.shape[0])
    values: Sequence[Tensor] = (
        list(example_inputs.values()) if isinstance(example_inputs, Mapping) else list(example_inputs)
    )
    return int(values[0].shape[0])
