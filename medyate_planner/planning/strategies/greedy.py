"""Greedy by density: again and again what adds the most value per byte."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.demands import require_possible, smallest_plan
from medyate_planner.planning.filling import longest
from medyate_planner.planning.recompute import fits, scope_bytes
from medyate_planner.planning.request import PlanRequest


def greedy(request: PlanRequest) -> Decision:
    """Add the unit with the largest marginal value per marginal byte, until nothing of any value fits.

    A unit is a bias, or a layer's next channels up to the next breakpoint of its value curve: between two of them
    each channel has the same value, so that single channels would be bought in nearly the same order. Of a unit that
    does not fit, the largest part that does is bought. Forced layers are there from the start.

    Raises:
        InfeasibleBudgetError, ContradictionError, InputError: as strategy `optimal`.

    Source: the usual heuristic for knapsacks; derived here for value curves and moments.
    Limits: a unit is judged alone. One that makes later ones cheap, as the first layer to pay for a pass-through does,
        is not credited with that.
    """
    require_possible(request)
    search = _Search(request)
    search.run()
    found = request.updates(search.quotas, frozenset(search.biases))
    if not found.quotas and not found.biases:  # nothing that fits is worth anything
        found = smallest_plan(request) or found
    return Decision(updates=found, strategy="greedy", facts={"evaluations": search.evaluations})


@dataclass(order=True, slots=True)
class _Offer:
    """A unit: `quota` channels of a layer instead of fewer, or (None) its bias. Offers sort by falling density."""

    rank: tuple[float, float, int]
    name: str = field(compare=False)
    quota: int | None = field(compare=False)
    seen: int = field(compare=False)


class _Search:
    """Lazy: an offer keeps the density it was last seen with, until it comes up or the reach grows below it."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.layers = {layer.name: layer for layer in request.layers}
        self.order = {unit.name: i for i, unit in enumerate(request.memory.graph.units)}
        self.quotas = {name: request.least(self.layers[name]) for name in sorted(request.forced)}
        self.biases: set[str] = set()
        self.evaluations = 0
        self.bought = 0
        self.bytes = self._bytes(self.updates())
        self.active = request.memory.active(self.updates())

    def updates(self, name: str | None = None, quota: int | None = None) -> Updates:
        """What was bought so far, and this unit."""
        quotas, biases = dict(self.quotas), set(self.biases)
        if name is not None and quota is None:
            biases.add(name)
        elif name is not None and quota is not None:
            quotas[name] = quota
        return self.request.updates(quotas, frozenset(biases))

    def run(self) -> None:
        """Buy until nothing of any value fits."""
        units: list[tuple[str, int | None]] = [(name, 0) for name in self.layers]
        units += [(layer.name, None) for layer in self.request.biases]
        offers = list(self._offers(units))
        heapq.heapify(offers)
        while offers:
            offer = heapq.heappop(offers)
            if offer.seen < self.bought:  # out of date: it comes up again at once if it is still the best
                for fresh in self._offers([(offer.name, offer.quota)]):
                    heapq.heappush(offers, fresh)
                continue
            if self._buy(offer):
                offers = self._refreshed(offers, offer)

    def _buy(self, offer: _Offer) -> bool:
        """Whether the unit was bought; else no more can be had of it."""
        quota = offer.quota
        if not fits(self.request, self.updates(offer.name, quota)):
            quota = self._largest_part(offer)
            if quota is not None:
                self.quotas[offer.name] = quota
                self._settle()
            return False
        if quota is None:
            self.biases.add(offer.name)
        else:
            self.quotas[offer.name] = quota
        self._settle()
        return True

    def _settle(self) -> None:
        self.bought += 1
        self.bytes = self._bytes(self.updates())

    def _largest_part(self, offer: _Offer) -> int | None:
        if offer.quota is None:
            return None
        layer, step = self.layers[offer.name], self.request.granularity
        have = self.quotas.get(offer.name, 0)
        first = have + step if have else self.request.least(layer)
        parts = range(first, offer.quota, step)
        count = longest(len(parts), lambda n: fits(self.request, self.updates(offer.name, parts[n - 1])))
        return parts[count - 1] if count else None

    def _refreshed(self, offers: list[_Offer], bought: _Offer) -> list[_Offer]:
        """The offers after a purchase: the layer's next one; and anew all whose pass-through it may have paid."""
        before, self.active = self.active, self.request.memory.active(self.updates())
        again: list[tuple[str, int | None]] = []
        if bought.quota is not None:
            again.append((bought.name, bought.quota))
        kept = offers
        if self.active != before:
            sites = {unit.name: unit.sites for unit in self.request.memory.graph.units}
            below = {offer.name for offer in offers if not before.issuperset(sites[offer.name])}
            again += [(offer.name, offer.quota) for offer in offers if offer.name in below]
            kept = [offer for offer in offers if offer.name not in below]
        kept += self._offers(again)
        heapq.heapify(kept)
        return kept

    def _offers(self, units: Iterable[tuple[str, int | None]]) -> Iterator[_Offer]:
        """Offers of these units as things stand; of a layer the next block. What is worth nothing is left out."""
        for name, quota in units:
            target = None if quota is None else self._next(self.layers[name])
            if quota is not None and target is None:
                continue
            worth = self._worth(name, target)
            if worth <= 0:
                continue
            more = self._bytes(self.updates(name, target)) - self.bytes
            density = worth / more if more > 0 else math.inf
            yield _Offer((-density, -worth, self.order[name]), name, target, self.bought)

    def _next(self, layer: Layer) -> int | None:
        """The quota at the next breakpoint, as a multiple of the granularity; None if the layer has all it may."""
        request, have = self.request, self.quotas.get(layer.name, 0)
        most, least, step = request.most(layer), request.least(layer), request.granularity
        if have >= most:
            return None
        point = next((p for p in request.curves[layer.name].breakpoints if p > have), most)
        return min(most, max(least, -(-point // step) * step))

    def _worth(self, name: str, quota: int | None) -> float:
        if quota is None:
            return self.request.bias_values[name]
        curve = self.request.curves[name]
        return curve.interpolated(quota) - curve.interpolated(self.quotas.get(name, 0))

    def _bytes(self, updates: Updates) -> int:
        self.evaluations += 1
        return scope_bytes(self.request, updates)
