"""Train biases alone, which keep no activation of their own."""

from __future__ import annotations

from medyate_planner.errors import InputError
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import longest
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import fits, require_fit
from medyate_planner.planning.request import PlanRequest


def bias_only(request: PlanRequest) -> Decision:
    """Every bias, those of norms included; if not all fit, as many of the last ones as do.

    Raises:
        InfeasibleBudgetError: the last bias alone does not fit.
        ContradictionError: layers are forced, or operations forbid even that.
        InputError: there is no bias.

    Source: TinyTL (NeurIPS 2020).
    Limits: TinyTL also adds lite residual modules to the network; a planner adds nothing, so they are left out.
    """
    names = [layer.name for layer in request.biases]
    if not names:
        raise InputError("strategy bias-only: there is no bias beside the head's to be updated; see --forbid-layer")

    def last(count: int) -> Updates:
        return request.updates({}, frozenset(names[-count:]))

    require_allowed(request, last(1), strategy="bias-only")
    require_fit(request, last(1), spent_on=f"the bias of {names[-1]}, the last one")
    count = longest(len(names), lambda n: fits(request, last(n)), low=1)
    return Decision(updates=last(count), strategy="bias-only", status="optimal" if count == len(names) else "feasible")
