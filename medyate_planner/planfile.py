"""From a decision to a plan file: every figure recomputed from the memory model and certified by the dry run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medyate_planner.errors import CertificationError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import Footprint, footprint
from medyate_planner.planning.plan import (
    ImportanceRef,
    ModelInput,
    Plan,
    PlannedLayer,
    PlannedModel,
    Predicted,
    Sampling,
)
from medyate_planner.planning.request import Decision, PlanRequest
from medyate_planner.subject import Subject
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.measure import StepMeasurement


def plan_from(
    subject: Subject,
    asked: PlanRequest,
    decision: Decision,
    sampling: Sampling,
    model_facts: Mapping[str, Any],
    reference: ImportanceRef,
) -> Plan:
    graph, updates = subject.graph, decision.updates
    figures = footprint(subject.memory, updates)
    certified = dry_run(subject.traced, graph, updates, subject.loss.function, subject.loss.make_target)
    _certify(figures, certified)
    inputs = tuple(
        ModelInput.model_validate(
            {"shape": s.shape, "dtype": s.dtype, "name": s.name, "channels_last": s.channels_last}
        )
        for s in subject.traced.inputs
    )
    return Plan(
        model=PlannedModel(
            fingerprint=graph.fingerprint,
            num_parameters=graph.num_parameters,
            inputs=inputs,
            head_pattern=subject.traced.head_pattern,
            **dict(model_facts),
        ),
        batch_size=graph.batch_size,
        dtype=graph.layers[0].dtype if graph.layers else "float32",
        device=subject.traced.device,
        loss=subject.loss.name,
        loss_outputs=graph.outputs,
        dropout="keep" if subject.dropout == "keep" else "off",
        budget_bytes=asked.budget_bytes,
        scope="update" if asked.scope == "update" else "training",
        strategy=decision.strategy,
        objective_name=asked.objective,
        curve=asked.curve,
        status="optimal" if decision.status == "optimal" else "feasible",
        gap_ratio=decision.gap_ratio,
        objective=asked.value(updates),
        objective_bound=decision.bound,
        interpolation_loss=decision.facts.get("interpolation_loss", 0.0),
        predicted=_predicted(figures, certified.live_peak_bytes or 0),
        layers=_planned_layers(graph, updates),
        biases=tuple(layer.name for layer in graph.layers if layer.name in updates.biases),
        sampling=sampling,
        importance=reference,
    )


def _certify(figures: Footprint, certified: StepMeasurement) -> None:
    """Raise `CertificationError` unless the dry run holds, to the byte, what the closed form says."""
    for name in ("training_bytes", "saved_bytes"):
        closed, dry = getattr(figures, name), getattr(certified, name)
        if closed != dry:
            raise CertificationError(
                f"the plan could not be certified: {name} is {closed:,} in closed form and {dry:,} in the dry run; "
                "this is a fault of the memory model, please report the network",
                closed_form_bytes=closed,
                dry_run_bytes=dry,
            )


def _planned_layers(graph: ModelGraph, updates: Updates) -> tuple[PlannedLayer, ...]:
    return tuple(
        PlannedLayer(
            name=layer.name,
            kind=layer.kind,
            channels=layer.channels,
            quota=layer.channels if layer.name in updates.full else updates.quotas[layer.name],
            head=layer.name in updates.full,
        )
        for layer in graph.layers
        if layer.name in updates.full or updates.quotas.get(layer.name)
    )


def _predicted(figures: Footprint, live_peak_bytes: int) -> Predicted:
    return Predicted(
        update_bytes=figures.update_bytes,
        training_bytes=figures.training_bytes,
        live_peak_bytes=live_peak_bytes,
        saved_bytes=figures.saved_bytes,
        selected_bytes=figures.selected_bytes,
        passthrough_bytes=figures.passthrough_bytes,
        gradients_bytes=figures.gradients_bytes,
        optimizer_bytes=figures.optimizer_bytes,
        loss_bytes=figures.loss_bytes,
        index_bytes=figures.index_bytes,
        elements=figures.elements,
    )
