"""From a decision to a plan file: every figure recomputed from the memory model and certified by the dry run."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import ValidationError

from medyate_planner.errors import CertificationError, InputError, PlanMismatchError
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.memory.accounting import sparse_update_bytes
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import Footprint, footprint
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.plan import (
    ImportanceRef,
    ModelInput,
    Plan,
    PlannedLayer,
    PlannedModel,
    Predicted,
    Sampling,
)
from medyate_planner.planning.request import PlanRequest
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
    """The plan of a decision, certified: every draw's figures in closed form equal those of a dry run.

    Raises:
        CertificationError: they do not.
        InputError: the decision's sampling is not one that a plan can have.
    """
    graph = subject.graph
    return _validated(
        decision.strategy,
        model=PlannedModel(
            fingerprint=graph.fingerprint,
            num_parameters=graph.num_parameters,
            inputs=_inputs(subject),
            head_pattern=subject.traced.head_pattern,
            **dict(model_facts),
        ),
        batch_size=graph.batch_size,
        dtype=graph.layers[0].dtype if graph.layers else "float32",
        device=subject.traced.device,
        loss=subject.loss.name,
        loss_outputs=graph.outputs,
        dropout="keep" if subject.dropout == "keep" else "off",
        norm=subject.norm,
        autocast=subject.autocast,
        update=subject.mode.update,
        optimizer=subject.mode.optimizer,
        accumulation=subject.mode.accumulation,
        budget_bytes=asked.budget_bytes,
        scope=asked.scope,
        margin_ratio=asked.margin_ratio,
        weights_in=asked.weights_in,
        strategy=decision.strategy,
        objective_name=asked.objective,
        curve=asked.curve,
        metric=asked.metric,
        max_flops=asked.max_flops,
        status="optimal" if decision.status == "optimal" else "feasible",
        gap_ratio=decision.gap_ratio,
        objective=asked.value(decision.updates),
        objective_bound=decision.bound,
        interpolation_loss=decision.facts.get("interpolation_loss", 0.0),
        predicted=predict(subject, asked, decision),
        layers=_planned_layers(graph, decision),
        biases=tuple(unit.name for unit in graph.units if unit.name in decision.updates.biases),
        sampling={**sampling.model_dump(), **decision.sampling},
        importance=reference,
    )


def _validated(decided_by: str, **fields: Any) -> Plan:
    """The plan, or an `InputError` for what a strategy of the user's own settled otherwise than a plan may have it."""
    try:
        return Plan(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise InputError(f"strategy {decided_by}: {f'{key}: ' if key else ''}{text}") from error


def _inputs(subject: Subject) -> tuple[ModelInput, ...]:
    return tuple(
        ModelInput.model_validate(
            {"shape": s.shape, "dtype": s.dtype, "name": s.name, "channels_last": s.channels_last}
        )
        for s in subject.traced.inputs
    )


def check_budget(subject: Subject, plan: Plan) -> None:
    """Raise `PlanMismatchError` if a plan, edited by hand perhaps, would exceed its own budget in some interval."""
    for interval in range(len(plan.sampling.draws or (None,))):
        updates = plan.updates(interval)
        if plan.scope == "peak":
            weights = subject.graph.parameter_bytes + subject.graph.buffer_bytes if plan.weights_in == "flash" else 0
            needed = subject.peak_bound_bytes(updates) - weights
        else:
            figures = footprint(subject.memory, updates)
            needed = figures.update_bytes if plan.scope == "update" else figures.training_bytes
        if needed > plan.budget_bytes:
            raise PlanMismatchError(
                f"the plan needs {needed:,} B (scope {plan.scope}) in interval {interval}, above its budget of "
                f"{plan.budget_bytes:,} B; correct it, or run `medyate plan`"
            )


def _certify_peak(asked: PlanRequest, bound_bytes: int, live_peak_bytes: int) -> None:
    """Raise `CertificationError` if a plan of scope `peak` lives on more than the closed form says."""
    if asked.scope == "peak" and live_peak_bytes > bound_bytes:
        raise CertificationError(
            f"the plan could not be certified: its live peak is {live_peak_bytes:,} in the dry run, above the bound of "
            f"{bound_bytes:,} in closed form; this is a fault of the memory model, please report the network",
            closed_form_bytes=bound_bytes,
            dry_run_bytes=live_peak_bytes,
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


def _planned_layers(graph: ModelGraph, decision: Decision) -> tuple[PlannedLayer, ...]:
    """Layers in forward order; the quota of a layer that is drawn anew each interval is null."""
    pool = set(decision.sampling.get("pool") or ())
    updates = decision.updates
    return tuple(
        PlannedLayer(
            name=unit.name,
            kind=unit.kind,
            channels=unit.channels,
            quota=_quota(unit, updates, pool),
            head=unit.name in updates.full,
        )
        for unit in graph.units
        if unit.name in updates.full or unit.name in pool or updates.quotas.get(unit.name)
    )


def _quota(unit: Layer, updates: Updates, pool: Set[str]) -> int | None:
    if unit.name in pool:
        return None
    return unit.channels if unit.name in updates.full else updates.quotas[unit.name]


def predict(subject: Subject, asked: PlanRequest, decision: Decision) -> Predicted:
    """Each figure from the memory model, certified by the dry run; of a plan with draws, the largest over them."""
    distinct = list({_key(updates): updates for updates in decision.all_updates}.values())
    each = [_figures(subject, asked, updates) for updates in distinct]
    figures = {name: max(found[name] for found in each) for name in each[0]}
    scheme = asked.settings.scheme
    if scheme is not None and decision.strategy == "sparse-update":
        figures["sparse_update_bytes"] = sparse_update_bytes(subject.graph, scheme)
    if asked.weights_in == "flash":
        figures["weights_in_flash_bytes"] = asked.peak.weight_bytes
    return Predicted(full_flops=asked.flops.full_flops, **figures)


def _figures(subject: Subject, asked: PlanRequest, updates: Updates) -> dict[str, int]:
    figures = footprint(subject.memory, updates)
    loss = subject.loss
    certified = dry_run(subject.traced, subject.graph, updates, loss.function, loss.make_target, mode=subject.mode)
    bound_bytes = asked.peak.bound(updates)
    _certify(figures, certified)
    _certify_peak(asked, bound_bytes, certified.live_peak_bytes or 0)
    return {
        "update_bytes": figures.update_bytes,
        "training_bytes": figures.training_bytes,
        "live_peak_bytes": certified.live_peak_bytes or 0,
        "live_peak_bound_bytes": bound_bytes,
        "saved_bytes": figures.saved_bytes,
        "selected_bytes": figures.selected_bytes,
        "passthrough_bytes": figures.passthrough_bytes,
        "gradients_bytes": figures.gradients_bytes,
        "optimizer_bytes": figures.optimizer_bytes,
        "copy_bytes": figures.copy_bytes,
        "loss_bytes": figures.loss_bytes,
        "index_bytes": figures.index_bytes,
        "elements": figures.elements,
        "flops": asked.flops.training(updates),
    }


def _key(updates: Updates) -> tuple[object, ...]:
    return (tuple(sorted(updates.quotas.items())), updates.biases, updates.full)
