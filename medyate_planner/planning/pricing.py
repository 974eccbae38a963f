"""What each layer and bias costs and is worth beside a plan: one step more, one step less, all it has. Exact bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import LOSS_MOMENT, footprint
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest

What = Literal["channels", "bias"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """From some updates to larger ones: bytes of the scope, value and operations more."""

    nbytes: int
    value: float
    flops: int

    @property
    def per_kb(self) -> float | None:
        return 1000 * self.value / self.nbytes if self.nbytes > 0 else None


@dataclass(frozen=True, kw_only=True)
class UnitPrice:
    """A unit beside the plan; what is not for sale has no steps. `growth` is how many channels `next` adds."""

    layer: Layer
    what: What
    quota: int
    for_sale: bool
    growth: int = 0
    next: Step | None = None
    last: Step | None = None
    own_bytes: int | None = None
    reach_bytes: int | None = None


class PricedPlan:
    """The plan that is explained, and other updates relative to it."""

    def __init__(self, request: PlanRequest, decision: Decision) -> None:
        self.request, self.decision, self.updates = request, decision, decision.updates

    @cached_property
    def used_bytes(self) -> int:
        return scope_bytes(self.request, self.updates)

    @property
    def left_bytes(self) -> int:
        return self.request.limit_bytes - self.used_bytes

    @cached_property
    def used_flops(self) -> int:
        return self.request.flops.training(self.updates)

    @property
    def left_flops(self) -> int | None:
        return None if self.request.max_flops is None else self.request.max_flops - self.used_flops

    def quota(self, layer: Layer, what: What) -> int:
        return int(layer.name in self.updates.biases) if what == "bias" else self.updates.quotas.get(layer.name, 0)

    def changed(self, layer: Layer, what: What, quota: int) -> Updates:
        """The plan with this quota instead (of a bias: 1 in, 0 out)."""
        if what == "bias":
            biases = self.updates.biases - {layer.name} | ({layer.name} if quota else set())
            return replace(self.updates, biases=frozenset(biases))
        quotas = {name: n for name, n in {**self.updates.quotas, layer.name: quota}.items() if n}
        return replace(self.updates, quotas=quotas)

    def step(self, smaller: Updates, larger: Updates) -> Step:
        request = self.request
        return Step(
            nbytes=scope_bytes(request, larger) - scope_bytes(request, smaller),
            value=request.value(larger) - request.value(smaller),
            flops=0 if request.max_flops is None else request.flops.training(larger) - request.flops.training(smaller),
        )


def units_of(request: PlanRequest) -> list[tuple[Layer, What]]:
    """All channels and biases in forward order; a layer in full is one unit."""
    found: list[tuple[Layer, What]] = []
    for layer in request.memory.graph.units:
        found.append((layer, "channels"))
        if layer.bias is not None and layer.name not in request.head:
            found.append((layer, "bias"))
    return found


def price_of(base: PricedPlan, layer: Layer, what: What) -> UnitPrice:
    request, quota = base.request, base.quota(layer, what)
    sold = {unit.name for unit in (request.biases if what == "bias" else request.layers)}
    if layer.name not in sold:
        return UnitPrice(layer=layer, what=what, quota=quota, for_sale=False)
    least, most = (1, 1) if what == "bias" else (request.least(layer), request.most(layer))
    grain = 1 if what == "bias" else request.granularity
    more = least if not quota else min(quota + grain, most)
    less = quota - grain if quota - grain >= least else 0
    without, whole = base.changed(layer, what, 0), base.changed(layer, what, quota or least)
    own, reach = _own_and_reach(base, layer, what, without, whole)
    return UnitPrice(
        layer=layer,
        what=what,
        quota=quota,
        for_sale=True,
        growth=more - quota,
        next=base.step(base.updates, base.changed(layer, what, more)) if more > quota else None,
        last=base.step(base.changed(layer, what, less), base.updates) if quota else None,
        own_bytes=own,
        reach_bytes=reach,
    )


def _own_and_reach(base: PricedPlan, layer: Layer, what: What, without: Updates, whole: Updates) -> tuple[int, int]:
    """What a unit itself needs, and how much more having it adds to the scope.

    In scope `training` only what it needs at the moment that is then the largest explains that growth: at the end of
    forward there is no gradient, and in backward what lies behind has been released.
    """
    request = base.request
    cost = request.memory.costs[layer.name]
    n = 0 if what == "bias" else whole.quotas[layer.name]
    gradient = cost.bias_gradient_bytes if what == "bias" else cost.gradient_bytes * n
    upkeep = _upkeep(request, layer, what, n)
    own = cost.saved_bytes * n + gradient + upkeep
    added = scope_bytes(request, whole) - scope_bytes(request, without)
    if request.scope != "training":
        return own, max(0, added - own)
    at = footprint(request.memory, whole).peak_moment.at
    position = request.memory.graph.position
    waits = request.memory.gradients_outlive_backward
    if at == LOSS_MOMENT:
        return own, max(0, added - own + (0 if waits else gradient))
    kept = sum(cost.site_saved_bytes[i] * n for i, site in enumerate(layer.sites) if position[site] <= position[at])
    copies = request.memory.gradient_copies(position[at]).get(layer.name, 0)
    complete = position[at] < request.memory.site_positions[layer.name][0] and not request.memory.mode.is_fused
    copies += 1 if waits or complete else 0
    return own, max(0, added - kept - gradient * copies - upkeep)


def _upkeep(request: PlanRequest, layer: Layer, what: What, channels: int) -> int:
    """Index, optimizer state and working copy of so many channels, or of the bias; scope `update` counts no index."""
    unit = request.memory.upkeeps[layer.name]
    if what == "bias":
        return unit.per_bias.total_bytes
    each = unit.per_channel.beside_index_bytes if request.scope == "update" else unit.per_channel.total_bytes
    return each * channels + (unit.per_weight.total_bytes if channels else 0)
