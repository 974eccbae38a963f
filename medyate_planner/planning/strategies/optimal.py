"""The exact plan: the integer program, solved to a stated gap."""

from __future__ import annotations

from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.planning.recompute import scope_bytes, smallest_plan, spent_on
from medyate_planner.planning.request import Decision, PlanRequest
from medyate_planner.planning.solve import solve


def optimal(request: PlanRequest) -> Decision:
    """Maximise the value of what is updated under the budget.

    Raises:
        InfeasibleBudgetError: nothing beyond the head fits; states the smallest budget that can be met.
        InputError: the model has no layer that could be updated.
    """
    smallest = smallest_plan(request)
    if smallest is None:
        raise InputError(
            "there is nothing to plan: no layer beside the head can be updated; see --forbid-layer and --head"
        )
    minimum_bytes = scope_bytes(request, smallest)
    if minimum_bytes > request.budget_bytes:
        raise InfeasibleBudgetError(
            budget_bytes=request.budget_bytes,
            minimum_bytes=minimum_bytes,
            scope=request.scope,
            spent_on=spent_on(request, smallest),
        )
    decision = solve(request)
    if decision is None:  # the budget is the minimum to the byte, and the solver's tolerances say no
        return Decision(updates=smallest, strategy="optimal", status="feasible", gap_ratio=1.0)
    return decision
