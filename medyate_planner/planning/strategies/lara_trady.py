"""TraDy's uniform draws in the layers that LaRa chooses."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import best_layers, drawn_anew
from medyate_planner.planning.request import PlanRequest


def lara_trady(request: PlanRequest) -> Decision:
    """Each interval a uniform draw over the channels of the top-K layers by LaRa, until the budget is full.

    K: `settings.top_layers`, or the layers that carry `settings.top_share` of the sum of LaRa. No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits.

    Source: MeDyate (arXiv 2510.20979), the combination LaRa + TraDy.
    Limits: LaRa's formula and the paper's K were not available; see `importance.metrics.rank_layers` for ours.
    """
    return drawn_anew(request, "lara-trady", best_layers(request, "lara"), Ordering(method="uniform"))
