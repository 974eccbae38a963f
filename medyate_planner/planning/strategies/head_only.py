"""Train the head alone: the baseline that every plan has to beat."""

from __future__ import annotations

from medyate_planner.errors import InputError
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import require_fit
from medyate_planner.planning.request import PlanRequest


def head_only(request: PlanRequest) -> Decision:
    """The head in full and nothing else.

    Raises:
        InfeasibleBudgetError: the head alone is above the budget.
        ContradictionError: layers are forced, or operations forbid even that.
        InputError: the model has no head.
    """
    if not request.head:
        raise InputError("strategy head-only needs a head that is trained in full")
    updates = request.updates({})
    require_allowed(request, updates, strategy="head-only")
    require_fit(request, updates, spent_on="the head alone")
    return Decision(updates=updates, strategy="head-only", status="optimal")
