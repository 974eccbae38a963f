"""A plan that was edited by hand: does it still suit its model and its budget, and which of its figures are stale?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from medyate_planner.errors import PlanMismatchError
from medyate_planner.graph import ModelGraph
from medyate_planner.importance.energy import Importance, from_weights
from medyate_planner.planfile import predict
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.plan import Plan, Predicted
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest
from medyate_planner.subject import Subject
from medyate_planner.summary import the_head

_OBJECTIVE_TOLERANCE = 1e-9  # relative: sums of many floats, whose order is the number of threads'
_UNPROVEN = 1.0  # gap of a plan that no solver has seen


@dataclass(frozen=True, kw_only=True)
class Stale:
    """A value of the file that is not what follows from the rest of it."""

    key: str
    written: str | float | None
    recomputed: str | float | None


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """What a plan needs of its budget, what is stale in it, and the same plan with these values corrected.

    `limit_bytes` is the budget less its margin. Of a plan with draws, every figure is the largest over the draws.
    """

    scope: str
    budget_bytes: int
    limit_bytes: int
    needed_bytes: int
    flops: int
    max_flops: int | None
    stale: tuple[Stale, ...]
    corrected: Plan

    @property
    def over_bytes(self) -> int:
        """Bytes above the limit; 0 where it is met."""
        return max(0, self.needed_bytes - self.limit_bytes)

    @property
    def over_flops(self) -> int:
        """Operations of a step above the limit on them; 0 where it is met."""
        return 0 if self.max_flops is None else max(0, self.flops - self.max_flops)

    @property
    def ok(self) -> bool:
        """Whether the plan may be trained by."""
        return not self.over_bytes and not self.over_flops

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        facts = {
            key: getattr(self, key) for key in ("scope", "budget_bytes", "limit_bytes", "needed_bytes", "over_bytes")
        }
        return {
            "schema_version": 1,
            "kind": "plan-check",
            "ok": self.ok,
            **facts,
            "flops": self.flops,
            "max_flops": self.max_flops,
            "stale": [asdict(entry) for entry in self.stale],
        }


def check_plan(subject: Subject, plan: Plan, importance: Importance | None, *, value: bool = True) -> PlanCheck:
    """Recompute everything that a plan predicts, from the memory model and certified by the dry run.

    Args:
        subject: The model as the plan describes it (`subject_for`).
        plan: As it is written.
        importance: What the plan was made from; None for mean squared weights.
        value: Whether to recompute the objective too, which needs that importance (or weights).

    Raises:
        PlanMismatchError: a layer is marked as head that is none, or the head is missing.
        CertificationError: the closed form and the dry run disagree.
    """
    _check_head(plan, subject.graph)
    draws = tuple(plan.updates(interval) for interval in range(len(plan.sampling.draws or (None,))))
    asked = _request(subject, plan, importance)
    decision = Decision(updates=draws[0], strategy=plan.strategy, draws=draws)
    predicted = predict(subject, asked, decision).model_copy(
        update={"sparse_update_bytes": plan.predicted.sparse_update_bytes}  # of the imported scheme, not of the plan
    )
    objective = asked.value(draws[0]) if value else plan.objective
    stale = tuple(_stale(plan, predicted, objective))
    _check_complete(plan, subject.graph, stale)
    corrected = plan.model_copy(
        update={
            "predicted": predicted,
            "objective": objective,
            "status": "feasible",
            "gap_ratio": _UNPROVEN,
            "objective_bound": None,
            "interpolation_loss": 0.0,
            "explanation": None if stale else plan.explanation,
        }
    )
    return PlanCheck(
        scope=plan.scope,
        budget_bytes=plan.budget_bytes,
        limit_bytes=asked.limit_bytes,
        needed_bytes=max(scope_bytes(asked, updates) for updates in draws),
        flops=max(asked.flops.training(updates) for updates in draws),
        max_flops=plan.max_flops,
        stale=stale,
        corrected=corrected,
    )


def _request(subject: Subject, plan: Plan, importance: Importance | None) -> PlanRequest:
    graph = subject.graph
    named = dict(subject.traced.module.named_parameters(remove_duplicate=False))
    norms = {norm.name for norm in graph.norms}
    return PlanRequest(
        memory=subject.memory,
        importance=importance or from_weights(graph, named),
        budget_bytes=plan.budget_bytes,
        scope=plan.scope,
        margin_ratio=plan.margin_ratio,
        weights_in=plan.weights_in,
        objective=plan.objective_name,
        curve=plan.curve,
        metric=plan.metric,
        head_mode="full" if any(layer.head for layer in plan.layers) else "channels",
        buy_norm_scales=any(layer.name in norms for layer in plan.layers),
        max_flops=plan.max_flops,
        seed=plan.sampling.seed,
    )


def _stale(plan: Plan, predicted: Predicted, objective: float) -> Iterator[Stale]:
    found = []
    for name, now in predicted.model_dump().items():
        written = getattr(plan.predicted, name)
        if written != now:
            found.append(Stale(key=f"predicted.{name}", written=written, recomputed=now))
    if not math.isclose(plan.objective, objective, rel_tol=_OBJECTIVE_TOLERANCE):
        found.append(Stale(key="objective", written=plan.objective, recomputed=objective))
    yield from found
    if found and plan.status != "feasible":
        yield Stale(key="status", written=plan.status, recomputed="feasible")


def _check_head(plan: Plan, graph: ModelGraph) -> None:
    for layer in plan.layers:
        if layer.head and layer.name not in graph.head:
            heads = ", ".join(graph.head) or "none"
            raise PlanMismatchError(
                f"layer {layer.name} is marked as head, but the model's head is {heads}; set its head to false"
            )


def _check_complete(plan: Plan, graph: ModelGraph, stale: tuple[Stale, ...]) -> None:
    """A planner may buy nothing of a head that is sold by channels; a person who takes it out has made a mistake."""
    missing = [name for name in graph.head if name not in {layer.name for layer in plan.layers}]
    if missing and stale:
        raise PlanMismatchError(
            f"{the_head(missing[:1])} is missing from layers: without it nothing new can be told apart; put it back "
            "with head true and all its channels as quota, or plan again with --head none"
        )
