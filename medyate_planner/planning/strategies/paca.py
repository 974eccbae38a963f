"""Random channels of the whole net, drawn once."""

from __future__ import annotations

from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering
from medyate_planner.planning.pools import drawn_once
from medyate_planner.planning.request import PlanRequest


def paca(request: PlanRequest) -> Decision:
    """One uniform draw over all channels that may be updated, until the budget is full, kept for the whole run.

    No biases are updated.

    Raises:
        InfeasibleBudgetError: not a single channel fits.

    Source: PaCA (ICLR 2025): random input columns of linear layers, drawn once.
    Limits: PaCA has no budget and gives every layer the same number of columns; here the budget sets the number, over
        convolutions as well.
    """
    return drawn_once(request, "paca", request.layers, Ordering(method="static"))
