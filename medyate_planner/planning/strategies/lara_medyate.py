"""MeDyate in full: LaRa chooses the layers, channels are drawn by importance, anew for each interval."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import best_layers, drawn_anew
from medyate_planner.planning.request import PlanRequest


def lara_medyate(request: PlanRequest) -> Decision:
    """Each interval a draw over the channels of the top-K layers by LaRa, until the budget is full, with probabilities
    proportional to RGN_c ** alpha, and with boosting as in `medyate`.

    K as in `lara_trady`. No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits.

    Source: MeDyate (arXiv 2510.20979), the combination LaRa + MeDyate.
    Limits: as `medyate` and `lara_trady`: the paper's formulas and K were not available.
    """
    ordering = Ordering(method="weighted", metric="rgn", alpha=request.settings.alpha)
    return drawn_anew(request, "lara-medyate", best_layers(request, "lara"), ordering)
