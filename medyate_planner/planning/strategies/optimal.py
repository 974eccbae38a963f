"""The exact plan: the integer program, solved to a stated gap."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.demands import require_possible
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.solve import OutOfTime, solve
from medyate_planner.planning.strategies.greedy import greedy


def optimal(request: PlanRequest) -> Decision:
    """Maximise the value of what is updated under the budget; where the solver has no time for it, greedily.

    Raises:
        InfeasibleBudgetError: nothing beyond the head fits; states the smallest budget that can be met.
        ContradictionError: the demands contradict each other.
        InputError: the model has no layer that could be updated.
    """
    require_possible(request)
    try:
        decision = solve(request)
    except OutOfTime:
        decision = None
    # Else the budget is the minimum to the byte and the solver's tolerances say no, or there was no time at all.
    return decision or _by_greed(request)


def _by_greed(request: PlanRequest) -> Decision:
    """A plan where the solver has none: nothing is known of the optimum, so the gap is all."""
    updates = greedy(request).updates
    found = request.interpolated_value(updates)
    facts = {"interpolated_objective": found, "interpolation_loss": request.value(updates) - found}
    return Decision(updates=updates, strategy="optimal", status="feasible", gap_ratio=1.0, facts=facts)
