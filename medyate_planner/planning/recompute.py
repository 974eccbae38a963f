"""A plan's figures from the memory model, never from the solver; and whether a plan keeps what was asked."""

from __future__ import annotations

from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import LOSS_MOMENT, footprint
from medyate_planner.planning.request import PlanRequest
from medyate_planner.summary import the_head


def scope_bytes(request: PlanRequest, updates: Updates) -> int:
    """What must fit in the budget, in the request's scope; for scope `peak` the closed form, an upper bound."""
    if request.scope == "peak":
        weights = request.peak.weight_bytes if request.weights_in == "flash" else 0
        return request.peak.bound(updates) - weights
    figures = footprint(request.memory, updates)
    return figures.update_bytes if request.scope == "update" else figures.training_bytes


def fits(request: PlanRequest, updates: Updates) -> bool:
    """Whether these updates keep the budget and the limits on layers and operations."""
    return (
        (request.max_layers is None or len(updates.quotas) <= request.max_layers)
        and (request.max_flops is None or request.flops.training(updates) <= request.max_flops)
        and scope_bytes(request, updates) <= request.limit_bytes
    )


def require_fit(request: PlanRequest, updates: Updates, *, spent_on: str) -> None:
    """Raise `InfeasibleBudgetError` unless these updates, which are all that a strategy can do, fit the budget."""
    needed = scope_bytes(request, updates)
    if needed > request.limit_bytes:
        raise InfeasibleBudgetError(
            budget_bytes=request.budget_bytes,
            minimum_bytes=request.budget_for(needed),
            scope=request.scope,
            spent_on=spent_on,
        )


def spent_on(request: PlanRequest, updates: Updates) -> str:
    """What a smallest plan's bytes are spent on, in words."""
    units = [f"{n} channel{'s' * (n > 1)} of {name}" for name, n in updates.quotas.items()]
    units += [f"the bias of {name}" for name in sorted(updates.biases)]
    units += [f"{the_head(updates.full)} in full"] if updates.full else []
    what = " and ".join(units) or "nothing"
    if request.scope == "peak":
        return f"{what}, with inputs, live activations and{_weights(request)} activation gradients"
    if request.scope == "update" or not updates.full:
        return what
    return f"{what}, {moment_in_words(request, footprint(request.memory, updates).peak_moment.at)}"


def moment_in_words(request: PlanRequest, at: str) -> str:
    """A moment of a step, by the layer whose backward it is."""
    if at == LOSS_MOMENT:
        return "at the end of forward"
    layer = request.memory.site_layer.get(at)
    return f"at the backward of {at if layer is None else layer.name}"


def _weights(request: PlanRequest) -> str:
    return "" if request.weights_in == "flash" else f" {request.peak.weight_bytes:,} B of weights and"
