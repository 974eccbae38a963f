"""Random channels of the whole net, drawn anew for each interval."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import drawn_anew
from medyate_planner.planning.request import PlanRequest


def random_net(request: PlanRequest) -> Decision:
    """Each interval a uniform draw over all channels that may be updated, until the budget is full.

    No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel fits.

    Source: TraDy (arXiv 2510.19675), its baseline "random over the full net".
    """
    return drawn_anew(request, "random", request.layers, Ordering(method="uniform"))
