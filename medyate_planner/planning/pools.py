"""Strategies that draw across layers: which layers they draw from, and a draw for good or one for each interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer
from medyate_planner.importance.metrics import rank_layers, top_layers
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering, fill, require_a_channel
from medyate_planner.planning.request import PlanRequest


def best_layers(request: PlanRequest, metric: str) -> tuple[Layer, ...]:
    """The K best layers by `metric` and all that are forced, in forward order.

    K: `settings.top_layers`, else as many as carry `settings.top_share` of the sum of all scores, but one at least.
    """
    costs = {layer.name: request.memory.costs[layer.name].update_bytes for layer in request.layers}
    ranking = rank_layers(request.importance, metric, costs)
    carrying = max(1, len(top_layers(ranking, request.settings.top_share)))
    count = request.settings.top_layers or carrying
    chosen = {entry.name for entry in ranking[:count]} | request.forced
    return tuple(layer for layer in request.layers if layer.name in chosen)


def drawn_once(
    request: PlanRequest, strategy: str, layers: Sequence[Layer], ordering: Ordering, *, oracle: bool = False
) -> Decision:
    """One draw, kept for the whole run: the quotas are the plan's, and its sampling gives the same channels again.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits; states the smallest budget that can be met.
    """
    sampling = {**_sampling(request, strategy, ordering), "oracle": oracle}
    require_a_channel(request, layers)
    updates = request.updates(fill(request, layers, ordering))
    return Decision(updates=updates, strategy=strategy, sampling=sampling, facts={"pool_layers": len(layers)})


def drawn_anew(request: PlanRequest, strategy: str, layers: Sequence[Layer], ordering: Ordering) -> Decision:
    """A draw for each of `settings.intervals` intervals, each of which fills the budget.

    Raises:
        InfeasibleBudgetError: not a single channel of these layers fits; states the smallest budget that can be met.
    """
    sampling = _sampling(request, strategy, ordering)
    require_a_channel(request, layers)
    quotas = [fill(request, layers, ordering, interval=i) for i in range(request.settings.intervals)]
    draws = tuple(request.updates(q) for q in quotas)
    pool = tuple(layer.name for layer in layers)
    return Decision(
        updates=draws[0],
        strategy=strategy,
        draws=draws,
        sampling={**sampling, "pool": pool, "draws": tuple(dict(d.quotas) for d in draws)},
        facts={"pool_layers": len(pool)},
    )


def _sampling(request: PlanRequest, strategy: str, ordering: Ordering) -> dict[str, Any]:
    """What must be known to draw the same channels again."""
    boost = request.settings.boost
    if boost > 0 and ordering.method != "weighted":
        raise InputError(
            f"--boost {boost:g} and --strategy {strategy}: boosting learns the weights of weighted draws, and this "
            "strategy's draws have none; choose medyate or lara-medyate, or drop --boost"
        )
    return {
        "method": ordering.method,
        "metric": ordering.metric,
        "alpha": ordering.alpha,
        "seed": request.seed,
        "boost": boost,
    }
