"""Update every channel of every layer with the lean operators: the upper end of the scale."""

from __future__ import annotations

from medyate_planner.errors import InputError
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import require_fit
from medyate_planner.planning.request import PlanRequest


def full(request: PlanRequest) -> Decision:
    """All layers, all channels, all biases that may be bought.

    Raises:
        InfeasibleBudgetError: the budget is too small for that.
        ContradictionError: a limit on layers or operations is broken whatever the budget.
        InputError: nothing may be updated.
    """
    if not request.layers and not request.biases:
        raise InputError("strategy full: there is nothing beside the head to be updated; see --forbid-layer and --head")
    quotas = {layer.name: request.most(layer) for layer in request.layers}
    updates = request.updates(quotas, frozenset(layer.name for layer in request.biases))
    require_allowed(request, updates, strategy="full")
    require_fit(request, updates, spent_on="all channels of all layers")
    return Decision(updates=updates, strategy="full", status="optimal")
