"""Deterministic RGN: the channels with the largest gradient for their bytes."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import drawn_once
from medyate_planner.planning.request import PlanRequest


def rgn(request: PlanRequest) -> Decision:
    """Channels of the whole net by falling RGN_c = mean ||g_c|| / bytes, until the budget is full.

    The choice follows the importance that was measured beforehand. Choosing anew while training would need all
    gradients, far beyond the budget: the plan says `oracle`. No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel fits.

    Source: TraDy (arXiv 2510.19675), its baseline "deterministic RGN".
    """
    return drawn_once(request, "rgn", request.layers, Ordering(method="top", metric="rgn"), oracle=True)
