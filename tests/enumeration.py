"""Every plan that a request allows, priced by the tests' own accounting, and what a decision has to satisfy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
from builders import Case, channels_of, random_case, random_importance
from hypothesis import strategies as st
from live_peak import LivePeak
from simulation import bias_bytes, compact_bytes, simulate, simulate_flops, slice_of_a_channel, upstream_of_outputs

from medyate_planner.graph import Layer
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import MemoryModel
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.request import PlanRequest

SCOPES = ("training", "update", "peak")
TOLERANCE = 2e-6  # of the largest value; HiGHS works with 1e-6
BREAKPOINTS = {  # 1, C and quadratically spaced between, worked out by hand
    1: (0, 1),
    2: (0, 1, 2),
    3: (0, 1, 3),
    4: (0, 1, 2, 4),
    5: (0, 1, 2, 3, 5),
    6: (0, 1, 2, 3, 4, 6),
    7: (0, 1, 2, 3, 4, 5, 7),
    8: (0, 1, 2, 3, 5, 6, 8),
}


@dataclass(frozen=True)
class Sides:
    """Side constraints of a planning problem, named as in `PlanRequest`."""

    scope: str
    objective: str = "projection"
    curve: str = "uniform"
    metric: str = "sized"
    margin_ratio: float = 0.0
    weights_in: str = "ram"
    head_mode: str = "full"
    buy_biases: bool = True
    buy_norm_scales: bool = False
    max_layers: int | None = None
    granularity: int = 1
    min_quota: int = 1
    max_quota: int | None = None
    max_flops: int | None = None
    force_layers: tuple[str, ...] = ()
    forbid_layers: tuple[str, ...] = ()

    def limit(self, budget: int) -> int:
        """What is left of a budget beside its margin."""
        return math.floor(budget / (1 + Fraction(str(self.margin_ratio))))

    def budget_for(self, price: int) -> int:
        """The smallest budget whose limit is not below the price."""
        budget = math.ceil(price * (1 + Fraction(str(self.margin_ratio))))
        assert self.limit(budget) >= price > self.limit(budget - 1)
        return budget


@dataclass(frozen=True)
class Option:
    """One possible plan, its price and its worth."""

    quotas: Mapping[str, int]
    biases: frozenset[str]
    price: int
    worth: float


@dataclass(frozen=True)
class Offer:
    """What is for sale of one layer or norm."""

    unit: Layer
    quotas: tuple[int, ...]
    bias: bool


class Problem:
    """A network, what its channels are worth, and side constraints."""

    def __init__(self, case: Case, importance: Importance, sides: Sides) -> None:
        self.case, self.importance, self.sides = case, importance, sides
        self.graph = case.graph
        self.head = frozenset(case.graph.head) if sides.head_mode == "full" else frozenset()
        self.peak = LivePeak(case.graph, case.loss_cost, self.head)
        self.upstream = upstream_of_outputs(case.graph)

    def with_sides(self, **changes: Any) -> Problem:
        return Problem(self.case, self.importance, replace(self.sides, **changes))

    def request(self, budget_bytes: int, **options: Any) -> PlanRequest:
        """The package's request for this problem, to be solved to the optimum."""
        sides = {name: getattr(self.sides, name) for name in self.sides.__dataclass_fields__}
        memory = MemoryModel(self.graph, loss=self.case.loss, loss_cost=self.case.loss_cost)
        facts = {"memory": memory, "importance": self.importance, "budget_bytes": budget_bytes, "gap_ratio": 0.0}
        return PlanRequest(**{**facts, **sides, **options})

    def price(self, quotas: Mapping[str, int], biases: frozenset[str]) -> int:
        """Bytes in the scope, by the simulation."""
        if self.sides.scope == "peak":
            saved = self.peak.weights if self.sides.weights_in == "flash" else 0
            return self.peak.bytes(quotas, biases) - saved
        step = simulate(self.graph, quotas, biases, self.head, self.case.loss)
        return step.update if self.sides.scope == "update" else step.training

    def flops(self, quotas: Mapping[str, int], biases: frozenset[str]) -> int:
        return simulate_flops(self.graph, quotas, biases, self.head)

    @cached_property
    def forced(self) -> frozenset[str]:
        """Names of the units that a pattern forces, unless the head is trained in full anyway."""
        patterns = self.sides.force_layers
        return frozenset(u.name for u in self.graph.units if _matches(u.name, patterns)) - self.head

    @cached_property
    def offers(self) -> tuple[Offer, ...]:
        """What is for sale. A layer smaller than the granularity is not; one smaller than the least quota is whole."""
        sides, found = self.sides, []
        step = sides.granularity
        for unit in self.graph.units:
            dead = not any(site in self.upstream for site in unit.sites)
            frozen = not unit.trainable and unit.name not in self.forced
            if unit.name in self.head or _matches(unit.name, sides.forbid_layers) or dead or frozen:
                continue
            count = channels_of(unit)
            top = max(n for n in range(0, min(count, sides.max_quota or count) + 1) if n % step == 0)
            wanted = [n for n in range(step, top + 1, step) if n >= sides.min_quota] or [top]
            if unit.kind == "norm" and not sides.buy_norm_scales and unit.name not in self.forced:
                wanted = []
            quotas = (0, *(n for n in wanted if n))
            found.append(Offer(unit, quotas, sides.buy_biases and unit.bias is not None and count >= step))
        return tuple(offer for offer in found if len(offer.quotas) > 1 or offer.bias)

    @property
    def size(self) -> int:
        """How many plans there are before any is ruled out."""
        return math.prod(len(offer.quotas) * (1 + offer.bias) for offer in self.offers)

    @cached_property
    def options(self) -> list[Option]:
        """Every plan that the side constraints allow."""
        return [option for option in self._all_options() if self.allows(option)]

    def allows(self, option: Option) -> bool:
        sides = self.sides
        return (
            (sides.max_layers is None or len(option.quotas) <= sides.max_layers)
            and (sides.max_flops is None or self.flops(option.quotas, option.biases) <= sides.max_flops)
            and self.forced <= set(option.quotas)
        )

    def _all_options(self) -> Iterator[Option]:
        with_bias = [offer.unit.name for offer in self.offers if offer.bias]
        curves = {offer.unit.name: self.worth_of_channels(offer.unit) for offer in self.offers if offer.quotas[1:]}
        interpolated = {name: _interpolated(values) for name, values in curves.items()}
        of_biases = {name: self.worth_of_bias(name) for name in with_bias}
        for numbers in product(*(offer.quotas for offer in self.offers)):
            quotas = {offer.unit.name: n for offer, n in zip(self.offers, numbers, strict=True) if n}
            for bits in product([False, True], repeat=len(with_bias)):
                biases = frozenset(name for name, bit in zip(with_bias, bits, strict=True) if bit)
                if quotas or biases:
                    yield Option(
                        quotas=quotas,
                        biases=biases,
                        price=self.price(quotas, biases),
                        worth=sum(interpolated[name][n] for name, n in quotas.items())
                        + sum(of_biases[name] for name in biases),
                    )

    def worth_of_channels(self, unit: Layer) -> list[float]:
        """V(n) for n = 0..C, straight from DESIGN section 6."""
        energy = self.importance.energy[unit.name]
        cost = slice_of_a_channel(unit)
        cost += sum(compact_bytes(self.graph, unit, self.graph.op_by_name[s]) for s in unit.sites if s in self.upstream)
        if self.sides.metric == "rgn":
            energy = (self.importance.norms[unit.name] / cost) ** 2
        elif self.sides.metric == "lara":
            energy = energy / cost
        elif self.sides.metric == "sized":
            energy = energy * (math.prod(unit.weight_shape) // len(energy)) ** 2
        if self.sides.curve == "uniform":
            captured = [n * float(np.mean(energy)) for n in range(len(energy) + 1)]
        else:
            captured = [float(sum(sorted(energy, reverse=True)[:n])) for n in range(len(energy) + 1)]
        if self.sides.objective == "projection":  # the whole layer's length, times the share that is captured
            return [math.sqrt(captured[-1]) * v / (captured[-1] or 1.0) for v in captured]
        return captured if self.sides.objective == "energy" else [math.sqrt(v) for v in captured]

    def worth_of_bias(self, name: str) -> float:
        energy = self.importance.bias_energy[name]
        unit = next(unit for unit in self.graph.units if unit.name == name)
        cost = bias_bytes(unit)
        energy /= {"raw": 1, "sized": (unit.element_bytes / cost) ** 2, "lara": cost, "rgn": cost**2}[self.sides.metric]
        return energy if self.sides.objective == "energy" else math.sqrt(energy)

    def worth(self, quotas: Mapping[str, int], biases: frozenset[str], *, exact: bool) -> float:
        units = {unit.name: unit for unit in self.graph.units}
        total = sum(self.worth_of_bias(name) for name in biases)
        for name, n in quotas.items():
            values = self.worth_of_channels(units[name])
            total += values[n] if exact else _interpolated(values)[n]
        return total

    def check(self, decision: Decision, budget: int) -> float:
        """The plan keeps every constraint, by the simulation; returns its interpolated worth."""
        quotas, biases = decision.updates.quotas, decision.updates.biases
        assert decision.updates.full == self.head
        assert quotas or biases
        assert self.price(quotas, biases) <= self.sides.limit(budget)
        for_sale = {offer.unit.name: offer for offer in self.offers}
        assert all(n in for_sale[name].quotas and n > 0 for name, n in quotas.items())
        assert all(for_sale[name].bias for name in biases)
        assert self.allows(Option(quotas, biases, 0, 0.0))
        worth = self.worth(quotas, biases, exact=False)
        assert decision.facts["interpolated_objective"] == pytest.approx(worth, rel=1e-9)
        loss = self.worth(quotas, biases, exact=True) - worth
        assert decision.facts["interpolation_loss"] == pytest.approx(loss, rel=1e-6, abs=1e-9)
        assert decision.facts["interpolation_loss"] >= -1e-9
        return worth


def _interpolated(values: list[float]) -> list[float]:
    points = BREAKPOINTS[len(values) - 1] if len(values) - 1 in BREAKPOINTS else _quadratic(len(values) - 1)
    return [float(np.interp(n, points, [values[p] for p in points])) for n in range(len(values))]


def _quadratic(count: int) -> tuple[int, ...]:
    return (0, *sorted({1 + round((count - 1) * i * i / 49) for i in range(8)}))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def draw_problem(data: st.DataObject, case: Case, seed: int, scope: str, *, most_options: int = 1500) -> Problem:
    """A random problem on this case, for hypothesis."""
    dice = Random(seed ^ data.draw(st.integers(0, 2**32 - 1)))
    return random_problem(dice, scope, case=case, most_options=most_options)


def random_problem(dice: Random, scope: str, *, case: Case | None = None, most_options: int = 1500) -> Problem:
    """Two times of five without constraints on single units, layers and operations."""
    case = case or random_case(dice.getrandbits(32), max_plans=400)
    sides = Sides(
        scope=scope,
        objective=dice.choice(["projection", "norm", "energy"]),
        curve=dice.choice(["uniform", "top"]),
        metric=dice.choice(["sized", "raw", "rgn", "lara"]),
        weights_in=dice.choice(["ram", "flash"]) if scope == "peak" else "ram",
        buy_biases=dice.random() < 0.7,
        buy_norm_scales=dice.random() < 0.5,
    )
    problem = Problem(case, random_importance(case.graph, dice.getrandbits(32)), sides)
    if dice.random() < 0.4:
        return problem
    problem = problem.with_sides(**random_constraints(dice, case))
    if problem.size > most_options:
        problem = problem.with_sides(head_mode="full")
    if dice.random() < 0.4:
        forced = len(problem.forced)
        problem = problem.with_sides(max_layers=dice.randint(max(1, forced), forced + 2))
    if problem.options and dice.random() < 0.4:
        flops = sorted({problem.flops(option.quotas, option.biases) for option in problem.options})
        problem = problem.with_sides(max_flops=max(1, dice.choice(flops)))
    return problem


def random_constraints(dice: Random, case: Case) -> dict[str, Any]:
    """Constraints on single units, such that a request with them is accepted."""
    sizes = {unit.name: channels_of(unit) for unit in case.graph.units}
    upstream = upstream_of_outputs(case.graph)
    granularity, min_quota = dice.choice([1, 1, 2, 3]), dice.choice([1, 1, 2, 3])
    least = max(granularity, min_quota)
    forbidden = dice.sample(sorted(sizes), k=dice.randint(0, 1))
    may_force = [
        unit.name
        for unit in case.graph.units
        if upstream & set(unit.sites) and unit.name not in forbidden and sizes[unit.name] >= granularity
    ]
    return {
        "granularity": granularity,
        "min_quota": min_quota,
        "max_quota": dice.choice([None, None, least, least + 1]),
        "head_mode": dice.choice(["full", "channels"]),
        "margin_ratio": dice.choice([0.0, 0.1, 0.07, 0.5, 1.25]),
        "force_layers": tuple(dice.sample(may_force, k=min(len(may_force), dice.choice([0, 0, 0, 1, 1, 2])))),
        "forbid_layers": tuple(forbidden),
    }
