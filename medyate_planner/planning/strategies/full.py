"""Update every channel of every layer with the lean operators: the upper end of the scale."""

from __future__ import annotations

from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import Decision, PlanRequest


def full(request: PlanRequest) -> Decision:
    """All layers, all channels, all biases that may be bought.

    Raises:
        InfeasibleBudgetError: the budget is too small for that.
    """
    quotas = {layer.name: layer.channels for layer in request.layers}
    updates = request.updates(quotas, frozenset(layer.name for layer in request.biases))
    needed = scope_bytes(request, updates)
    if needed > request.budget_bytes:
        raise InfeasibleBudgetError(
            budget_bytes=request.budget_bytes,
            minimum_bytes=needed,
            scope=request.scope,
            spent_on="all channels of all layers",
        )
    return Decision(updates=updates, strategy="full", status="optimal", gap_ratio=0.0)
