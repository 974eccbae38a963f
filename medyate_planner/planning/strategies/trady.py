"""TraDy: random channels of the layers that matter, drawn anew for each interval."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import best_layers, drawn_anew
from medyate_planner.planning.request import PlanRequest


def trady(request: PlanRequest) -> Decision:
    """Each interval a uniform draw over the channels of the top-K layers by RGN, until the budget is full.

    K are the layers that carry 97 % of the sum of RGN (`settings.top_share`), or `settings.top_layers`. TraDy updates
    weights: no biases.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits.

    Source: TraDy (arXiv 2510.19675).
    Limits: the paper's budget and costs are elements of one sample; here they are bytes of the whole step, so the same
        K can mean other layers.
    """
    return drawn_anew(request, "trady", best_layers(request, "rgn"), Ordering(method="uniform"))
