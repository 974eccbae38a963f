"""Fill a budget with channels in a given order: what strategies that draw across layers have in common.

Bytes, operations and layers never fall when something is added. So what does not fit now never fits later: its layer
is closed, and the rest of the order goes on. Whatever the order, something is placed as soon as the cheapest single
channel fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape

import numpy as np

from medyate_planner.graph import Layer
from medyate_planner.importance.metrics import channel_scores
from medyate_planner.planning.demands import require_possible
from medyate_planner.planning.recompute import fits
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.sampling import DrawKeys, draw_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """How channels are put in order: a sampling method, and for `weighted` and `top` the metric it goes by."""

    method: str
    metric: str = "raw"
    alpha: float = 1.0

    @property
    def by_importance(self) -> bool:
        return self.method in ("weighted", "top")


@dataclass(frozen=True, slots=True)
class Step:
    """The next block of a layer's channels: with it the layer has `quota` of them."""

    layer: str
    quota: int


def require_a_channel(request: PlanRequest, layers: Sequence[Layer]) -> None:
    """Raise unless the forced layers, or else the fewest channels of one of these layers, can be trained.

    Raises:
        InfeasibleBudgetError: states the smallest budget that can be met. Biases do not count.
        ContradictionError, InputError: as `require_possible`.
    """
    chosen = {layer.name for layer in layers}
    others = tuple(escape(layer.name) for layer in request.layers if layer.name not in chosen)
    require_possible(replace(request, buy_biases=False, forbid_layers=(*request.forbid_layers, *others)))


def fill(request: PlanRequest, layers: Sequence[Layer], ordering: Ordering, *, interval: int = 0) -> dict[str, int]:
    """Quotas by layer: forced layers first, then channels in order, until nothing more fits."""
    quotas = {layer.name: request.least(layer) for layer in layers if layer.name in request.forced}
    waiting = in_order(request, layers, ordering, interval)
    while waiting:
        count = _how_many_fit(request, quotas, waiting)
        quotas = _with(quotas, waiting[:count])
        closed = waiting[count].layer if count < len(waiting) else None
        waiting = [step for step in waiting[count:] if step.layer != closed]
    return quotas


def in_order(request: PlanRequest, layers: Sequence[Layer], ordering: Ordering, interval: int) -> list[Step]:
    """All blocks of channels of these layers by falling keys; a block has the key of its middle channel.

    Blocks with equal keys take turns by how far they are in their layer.
    """
    steps: list[Step] = []
    keys: list[float] = []
    turns: list[float] = []
    for layer in layers:
        order = _keys(request, layer, ordering, interval)
        quota = 0
        for more in _quotas(request, layer):
            if quota or layer.name not in request.forced:
                steps.append(Step(layer.name, more))
                keys.append(float(order.keys[(quota + more - 1) // 2]))
                turns.append(more / layer.channels)
            quota = more
    return [steps[i] for i in np.lexsort((np.array(turns), -np.array(keys)))]


def channels_of(
    request: PlanRequest, quotas: Mapping[str, int], ordering: Ordering, *, interval: int = 0
) -> dict[str, list[int]]:
    """The channels that `fill` placed, by layer, ascending."""
    layers = request.memory.graph.layer_by_name
    return {
        name: sorted(int(c) for c in _keys(request, layers[name], ordering, interval).order[:quota])
        for name, quota in quotas.items()
    }


def _quotas(request: PlanRequest, layer: Layer) -> range:
    return range(request.least(layer), request.most(layer) + 1, request.granularity)


def _keys(request: PlanRequest, layer: Layer, ordering: Ordering, interval: int) -> DrawKeys:
    """A layer's draw. The cost of its channels only moves all keys alike, so that the order within the layer is to
    the last bit the one in which a session draws."""
    scores = None
    if ordering.by_importance:
        scores = list(channel_scores(request.importance, layer.name, ordering.metric, cost_per_channel=1))
    drawn = draw_keys(
        ordering.method,
        layer=layer.name,
        channels=layer.channels,
        seed=request.seed,
        interval=interval,
        importance=scores,
        alpha=ordering.alpha,
    )
    if not ordering.by_importance or ordering.metric == "raw":
        return drawn
    cost = request.memory.costs[layer.name].update_bytes
    keys = drawn.keys / cost if ordering.method == "top" else drawn.keys - ordering.alpha * np.log(cost)
    return DrawKeys(drawn.order, keys)


def longest(count: int, holds: Callable[[int], bool], *, low: int = 0, step: int = 1) -> int:
    """The largest n of low..count for which `holds` is true; it is true up to there, and taken to be so for `low`.

    Doubling from `step`, then halving: a small step suits small answers, half of `count` answers anywhere.
    """
    while low + step <= count and holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, count + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _how_many_fit(request: PlanRequest, quotas: Mapping[str, int], steps: Sequence[Step]) -> int:
    """Length of the longest beginning of `steps` that fits on top of `quotas`."""
    return longest(len(steps), lambda n: fits(request, request.updates(_with(quotas, steps[:n]))))


def _with(quotas: Mapping[str, int], steps: Sequence[Step]) -> dict[str, int]:
    return {**quotas, **{step.layer: step.quota for step in steps}}
