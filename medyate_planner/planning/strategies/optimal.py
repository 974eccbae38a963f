"""The exact plan: the integer program, solved to a stated gap."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.demands import require_possible, smallest_plan
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.solve import solve


def optimal(request: PlanRequest) -> Decision:
    """Maximise the value of what is updated under the budget.

    Raises:
        InfeasibleBudgetError: nothing beyond the head fits; states the smallest budget that can be met.
        ContradictionError: the demands contradict each other.
        InputError: the model has no layer that could be updated.
    """
    require_possible(request)
    decision = solve(request)
    if decision is None:  # the budget is the minimum to the byte, and the solver's tolerances say no
        smallest = smallest_plan(request)
        assert smallest is not None  # it was possible
        return Decision(updates=smallest, strategy="optimal", status="feasible", gap_ratio=1.0)
    return decision
