"""Train the head alone: the baseline that every plan has to beat."""

from __future__ import annotations

from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import Decision, PlanRequest


def head_only(request: PlanRequest) -> Decision:
    """The head in full and nothing else.

    Raises:
        InfeasibleBudgetError: the head alone is above the budget.
        InputError: the model has no head.
    """
    if not request.head:
        raise InputError("strategy head-only needs a head, and --head none was given")
    updates = request.updates({})
    needed = scope_bytes(request, updates)
    if needed > request.budget_bytes:
        raise InfeasibleBudgetError(
            budget_bytes=request.budget_bytes, minimum_bytes=needed, scope=request.scope, spent_on="the head alone"
        )
    return Decision(updates=updates, strategy="head-only", status="optimal", gap_ratio=0.0)
