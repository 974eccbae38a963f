"""MeDyate's sampling in TraDy's layers: channels drawn by importance, anew for each interval."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import best_layers, drawn_anew
from medyate_planner.planning.request import PlanRequest


def medyate(request: PlanRequest) -> Decision:
    """Each interval a draw over the channels of the top-K layers by RGN, until the budget is full, with probabilities
    proportional to RGN_c ** alpha. `settings.boost` > 0 lets them follow the gradients seen while training.

    K as in `trady`. No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits.

    Source: MeDyate (arXiv 2510.20979).
    Limits: the paper's formulas of sampling and boosting, and its K, were not available; these are derived here.
        Boosting changes which channels are drawn, not how many of each layer: those are planned beforehand.
    """
    ordering = Ordering(method="weighted", metric="rgn", alpha=request.settings.alpha)
    return drawn_anew(request, "medyate", best_layers(request, "rgn"), ordering)
