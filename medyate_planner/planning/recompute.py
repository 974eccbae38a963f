"""A plan's figures from the memory model, never from the solver; and the smallest budget that can be met."""

from __future__ import annotations

from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import LOSS_MOMENT, Footprint, footprint
from medyate_planner.planning.request import PlanRequest


def scope_bytes(request: PlanRequest, updates: Updates) -> int:
    """What must fit in the budget, in the request's scope."""
    return bytes_in_scope(footprint(request.memory, updates), request.scope)


def bytes_in_scope(figures: Footprint, scope: str) -> int:
    """The figure that a scope limits."""
    return figures.update_bytes if scope == "update" else figures.training_bytes


def smallest_plan(request: PlanRequest) -> Updates | None:
    """The cheapest updates that a plan may consist of: what is forced, or else the cheapest single unit.

    Bytes never fall when something is added, so no plan costs less. None when there is nothing to buy.
    """
    least = request.granularity
    if request.forced:
        return request.updates(dict.fromkeys(request.forced, least))
    candidates = [request.updates({}, frozenset({layer.name})) for layer in request.biases]
    candidates += [request.updates({layer.name: least}) for layer in request.layers]
    if not candidates:
        return None
    return min(candidates, key=lambda updates: scope_bytes(request, updates))


def spent_on(request: PlanRequest, updates: Updates) -> str:
    """What a smallest plan's bytes are spent on, in words."""
    units = [f"{n} channel{'s' * (n > 1)} of {name}" for name, n in updates.quotas.items()]
    units += [f"the bias of {name}" for name in sorted(updates.biases)]
    head = " and ".join(sorted(updates.full))
    what = " and ".join(units) or "nothing"
    if request.scope == "update" or not head:
        return f"{what}{' beside the head ' + head if head else ''}"
    peak = footprint(request.memory, updates).peak_moment
    where = "the end of forward" if peak.at == LOSS_MOMENT else f"the backward of {peak.at}"
    return f"{what} beside the head {head}, at {where}"
