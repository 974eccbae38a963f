"""TraDy's layers with channels drawn once."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import best_layers, drawn_once
from medyate_planner.planning.request import PlanRequest


def trady_static(request: PlanRequest) -> Decision:
    """One uniform draw over the channels of the top-K layers by RGN, until the budget is full, kept for the whole run.

    No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits.

    Source: TraDy (arXiv 2510.19675), its static variant.
    Limits: as `trady`.
    """
    return drawn_once(request, "trady-static", best_layers(request, "rgn"), Ordering(method="static"))
