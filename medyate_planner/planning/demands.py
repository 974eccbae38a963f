"""Can a request be met at all? If not: the smallest budget that can, and the fewest demands that contradict each other.

Bytes, operations and layers never fall when something is added, so a request can be met if and only if its smallest
plan keeps every limit: what is forced with the least quotas, or else the cheapest single unit. No solver is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.memory.model import Updates
from medyate_planner.planning.recompute import fits, scope_bytes, spent_on
from medyate_planner.planning.request import PlanRequest
from medyate_planner.summary import the_head

_UNLIMITED = 10**18


@dataclass(frozen=True, slots=True)
class Demand:
    """One thing a request insists on, and the same request without it."""

    text: str
    drop: Callable[[PlanRequest], PlanRequest]


def smallest_plan(request: PlanRequest) -> Updates | None:
    """The cheapest updates that a plan may consist of. None when there is nothing to buy, or operations forbid all."""
    allowed = [
        updates
        for updates in _candidates(request)
        if request.max_flops is None or request.flops.training(updates) <= request.max_flops
    ]
    if not allowed:
        return None
    return min(allowed, key=lambda updates: scope_bytes(request, updates))


def require_possible(request: PlanRequest) -> Updates:
    """A plan from which nothing can be taken, and which keeps every limit.

    Raises:
        InputError: nothing can be updated at all.
        InfeasibleBudgetError: the budget is too small; states the smallest that can be met.
        ContradictionError: the demands contradict each other whatever the budget.
    """
    if not request.layers and not request.biases:
        raise InputError(
            "there is nothing to plan: no layer beside the head can be updated; see --forbid-layer and --head"
        )
    found = next((updates for updates in _candidates(request) if fits(request, updates)), None)
    if found is not None:
        return found
    unlimited = replace(request, budget_bytes=_UNLIMITED, margin_ratio=0.0)
    cheapest = smallest_plan(unlimited)
    if cheapest is None or not fits(unlimited, cheapest):
        raise ContradictionError(tuple(d.text for d in smallest_conflict(request)))
    conflict = smallest_conflict(request, with_budget=True)
    raise InfeasibleBudgetError(
        budget_bytes=request.budget_bytes,
        minimum_bytes=request.budget_for(scope_bytes(request, cheapest)),
        scope=request.scope,
        spent_on=spent_on(request, cheapest),
        demands=tuple(d.text for d in conflict),
    )


def _candidates(request: PlanRequest) -> Iterator[Updates]:
    """The plans that nothing can be taken from: what is forced, or each single unit, the last ones (which have the
    shortest reach) first."""
    if request.forced:
        yield request.updates({x.name: request.least(x) for x in request.layers if x.name in request.forced})
        return
    yield from (request.updates({}, frozenset({layer.name})) for layer in reversed(request.biases))
    yield from (request.updates({layer.name: request.least(layer)}) for layer in reversed(request.layers))


def smallest_conflict(request: PlanRequest, *, with_budget: bool = False) -> tuple[Demand, ...]:
    """The fewest demands that can not be met together, whatever becomes of the others.

    `with_budget`: of the sets with the budget in it, the first demand of `demands_of`.
    """
    demands = demands_of(request)
    for count in range(1, len(demands) + 1):
        for kept in combinations(demands, count):
            if with_budget and demands[0] not in kept:
                continue
            relaxed = request
            for demand in demands:
                if demand not in kept:
                    relaxed = demand.drop(relaxed)
            smallest = smallest_plan(relaxed)
            if smallest is None or not fits(relaxed, smallest):
                return kept
    return ()


def demands_of(request: PlanRequest) -> tuple[Demand, ...]:
    """All that the request insists on and could do without."""
    found = [
        Demand(f"--budget {request.budget_bytes}B", lambda r: replace(r, budget_bytes=_UNLIMITED, margin_ratio=0.0))
    ]
    if request.margin_ratio:
        found.append(Demand(f"--margin {request.margin_ratio:g}", lambda r: replace(r, margin_ratio=0.0)))
    if request.head:
        found.append(Demand(f"training {the_head(request.head)} in full", lambda r: replace(r, head_mode="optional")))
    if request.weights_in == "ram" and request.scope == "peak":
        found.append(Demand("--weights-in ram", lambda r: replace(r, weights_in="flash")))
    found += [Demand(f"--force-layer {p}", _without_force(p)) for p in request.force_layers]
    found += [Demand(f"--forbid-layer {p}", _without_forbid(p)) for p in request.forbid_layers]
    if not request.buy_biases:
        found.append(Demand("--no-biases", lambda r: replace(r, buy_biases=True)))
    if request.max_layers is not None:
        found.append(Demand(f"--max-layers {request.max_layers}", lambda r: replace(r, max_layers=None)))
    if request.min_quota > 1:
        found.append(Demand(f"--min-quota {request.min_quota}", lambda r: replace(r, min_quota=1)))
    if request.granularity > 1:
        found.append(Demand(f"--granularity {request.granularity}", lambda r: replace(r, granularity=1)))
    if request.max_flops is not None:
        found.append(Demand(f"--max-flops {request.max_flops}", lambda r: replace(r, max_flops=None)))
    return tuple(found)


def _without_forbid(pattern: str) -> Callable[[PlanRequest], PlanRequest]:
    return lambda r: replace(r, forbid_layers=tuple(p for p in r.forbid_layers if p != pattern))


def _without_force(pattern: str) -> Callable[[PlanRequest], PlanRequest]:
    """Without the demand, what it put up for sale (a frozen layer, a norm's scale) still is."""
    return lambda r: replace(r, waived=(*r.waived, pattern))
