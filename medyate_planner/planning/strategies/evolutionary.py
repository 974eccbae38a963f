"""A seeded genetic search, as Sparse Update used to find its schemes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.demands import require_possible, smallest_plan
from medyate_planner.planning.filling import longest
from medyate_planner.planning.recompute import fits
from medyate_planner.planning.request import PlanRequest

Quotas = NDArray[np.int64]
Bits = NDArray[np.bool_]
_TOURNAMENT = 3
_ELITE = 2
_PARTS = 16


def evolutionary(request: PlanRequest) -> Decision:
    """The best of `settings.population` genomes after `settings.generations` generations.

    A genome is a quota for each layer and a bit for each bias. It starts at random; children are crossed from the
    winners of two tournaments of three, gene by gene, and each gene is mutated with a chance of up to
    `settings.mutation`, mostly far less. What does not fit is repaired in one of three ways, at random: all quotas
    shrink alike, or genes are laid down, in random order or from the end of the net, until the first that does not
    fit, of which the largest part is kept. The two best go on unchanged. The same seed gives the same plan.

    Raises:
        InfeasibleBudgetError, ContradictionError, InputError: as strategy `optimal`.

    Source: Sparse Update (arXiv 2206.15472) maximises the sum of single layers' gains under a memory limit by
        evolutionary search.
    Limits: its population, operators and number of generations were not available; these are derived here.
    """
    require_possible(request)
    search = _Search(request)
    best = search.run()
    return Decision(updates=best.updates, strategy="evolutionary", facts={"evaluations": search.evaluations})


@dataclass(frozen=True, slots=True, eq=False)
class _Genome:
    """Quota by layer and bias by layer, as they stand in the request, and what that is worth."""

    quotas: Quotas
    biases: Bits
    updates: Updates
    worth: float


def _worth(genome: _Genome) -> float:
    return genome.worth


class _Search:
    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.smallest = smallest_plan(request) or request.updates({})
        self.settings = request.settings
        self.dice = np.random.default_rng(request.seed)
        self.names = [layer.name for layer in request.layers]
        self.bias_names = [layer.name for layer in request.biases]
        self.least = np.array([request.least(layer) for layer in request.layers], dtype=np.int64)
        self.most = np.array([request.most(layer) for layer in request.layers], dtype=np.int64)
        self.forced = np.array([name in request.forced for name in self.names], dtype=np.bool_)
        place = {unit.name: i for i, unit in enumerate(request.memory.graph.units)}
        self.places = np.array([place[name] for name in (*self.names, *self.bias_names)], dtype=np.int64)
        self.evaluations = 0

    def run(self) -> _Genome:
        """Generation by generation; the best genome of all."""
        people = [self._random() for _ in range(self.settings.population)]
        elite = min(_ELITE, max(1, len(people) // 2))
        for _ in range(self.settings.generations):
            people.sort(key=_worth, reverse=True)
            children = [self._child(people) for _ in range(max(1, self.settings.population - elite))]
            people = people[:elite] + children
        return max(people, key=_worth)

    def _random(self) -> _Genome:
        """Each gene after a random place in the net with a chance that is itself drawn: small and large, shallow and
        deep genomes come up."""
        chance = self.dice.random(len(self.places)) < self.dice.random()
        chosen = chance & (self.places >= self.dice.integers(self.places.max() + 1))
        quotas = np.where(chosen[: len(self.names)], self._some_quotas(), 0)
        return self._repaired(quotas, chosen[len(self.names) :])

    def _child(self, people: list[_Genome]) -> _Genome:
        father, mother = self._winner(people), self._winner(people)
        quotas = np.where(self.dice.random(len(self.names)) < 0.5, father.quotas, mother.quotas)
        biases = np.where(self.dice.random(len(self.bias_names)) < 0.5, father.biases, mother.biases)
        chance = self.settings.mutation * self.dice.random() ** 2
        flipped = self.dice.random(len(self.bias_names)) < chance
        return self._repaired(self._mutated(quotas, chance), biases ^ flipped)

    def _mutated(self, quotas: Quotas, chance: float) -> Quotas:
        """Of the genes that change a third vanishes, a third is drawn anew, a third becomes larger or smaller."""
        count, step = len(self.names), self.request.granularity
        scaled = quotas * np.exp2(self.dice.normal(size=count))
        scaled = np.clip(
            self.least + np.round((scaled - self.least) / step).astype(np.int64) * step, self.least, self.most
        )
        kind = self.dice.integers(3, size=count)
        anew = np.choose(kind, [np.zeros(count, dtype=np.int64), self._some_quotas(), np.where(quotas > 0, scaled, 0)])
        changed = self.dice.random(count) < chance
        mutated: Quotas = np.where(changed, anew, quotas)
        return mutated

    def _winner(self, people: list[_Genome]) -> _Genome:
        picked = self.dice.integers(len(people), size=_TOURNAMENT)
        return max((people[int(i)] for i in picked), key=_worth)

    def _some_quotas(self) -> Quotas:
        """A quota for every layer, each order of magnitude as likely as another."""
        step = self.request.granularity
        room = (self.most - self.least) // step + 1
        above = np.floor(room ** self.dice.random(len(self.names))).astype(np.int64) - 1
        drawn: Quotas = np.minimum(self.least + step * above, self.most)
        return drawn

    def _repaired(self, quotas: Quotas, biases: Bits) -> _Genome:
        """The genome, or one near it that fits: shrunk, or with fewer genes."""
        quotas = self._fewer_layers(np.where(self.forced, np.maximum(quotas, self.least), quotas))
        if self._fits(quotas, biases):
            return self._genome(quotas, biases)
        kind = self.dice.integers(3)
        if kind == 0 and self._fits(self._shrunk(quotas, 0), biases):
            part = longest(_PARTS, lambda n: self._fits(self._shrunk(quotas, n), biases), step=_PARTS // 2)
            return self._genome(self._shrunk(quotas, part), biases)
        active = np.concatenate([quotas > np.where(self.forced, self.least, 0), biases])
        genes = self.dice.permutation(np.flatnonzero(active))
        if kind == 1:
            genes = genes[np.argsort(-self.places[genes], kind="stable")]
        return self._genome(*self._as_many_as_fit(genes, quotas, biases))

    def _shrunk(self, quotas: Quotas, part: int) -> Quotas:
        """Every quota brought that near to its least: 0 parts reach it."""
        step = self.request.granularity
        above = (quotas - self.least) * part // _PARTS // step * step
        shrunk: Quotas = np.where(quotas > 0, self.least + above, 0)
        return shrunk

    def _as_many_as_fit(self, genes: Quotas, quotas: Quotas, biases: Bits) -> tuple[Quotas, Bits]:
        """The first of these genes, and of the first that does not fit the largest part that does."""
        count = longest(
            len(genes) - 1, lambda n: self._fits(*self._with(genes[:n], quotas, biases)), step=max(1, len(genes) // 2)
        )
        kept, bits = self._with(genes[:count], quotas, biases)
        if count < len(genes) and genes[count] < len(self.names):
            kept = self._largest_part(kept, bits, int(genes[count]), int(quotas[genes[count]]))
        return kept, bits

    def _genome(self, quotas: Quotas, biases: Bits) -> _Genome:
        if not quotas.any() and not biases.any():  # its first gene alone was too large
            quotas = np.array([self.smallest.quotas.get(name, 0) for name in self.names], dtype=np.int64)
            biases = np.array([name in self.smallest.biases for name in self.bias_names], dtype=np.bool_)
        updates = self._updates(quotas, biases)
        self.evaluations += 1
        return _Genome(quotas, biases, updates, self.request.interpolated_value(updates))

    def _fewer_layers(self, quotas: Quotas) -> Quotas:
        """Drop layers at random beyond the number that is allowed."""
        allowed = self.request.max_layers
        if allowed is None or np.count_nonzero(quotas) <= allowed:
            return quotas
        free = self.dice.permutation(np.flatnonzero((quotas > 0) & ~self.forced))
        fewer: Quotas = quotas.copy()
        fewer[free[max(0, allowed - int(self.forced.sum())) :]] = 0
        return fewer

    def _largest_part(self, quotas: Quotas, biases: Bits, place: int, wanted: int) -> Quotas:
        """The same with as many channels, below `wanted`, of one more layer as fit."""
        parts = range(int(self.least[place]), wanted, self.request.granularity)

        def part(count: int) -> Quotas:
            more: Quotas = quotas.copy()
            more[place] = parts[count - 1]
            return more

        count = longest(len(parts), lambda n: self._fits(part(n), biases), step=max(1, len(parts) // 2))
        return part(count) if count else quotas

    def _with(self, genes: Quotas, quotas: Quotas, biases: Bits) -> tuple[Quotas, Bits]:
        """What is forced, and these genes."""
        kept, bits = np.where(self.forced, self.least, 0), np.zeros_like(biases)
        of_layers = genes[genes < len(self.names)]
        kept[of_layers] = quotas[of_layers]
        bits[genes[genes >= len(self.names)] - len(self.names)] = True
        return kept, bits

    def _fits(self, quotas: Quotas, biases: Bits) -> bool:
        return fits(self.request, self._updates(quotas, biases))

    def _updates(self, quotas: Quotas, biases: Bits) -> Updates:
        chosen = {name: int(n) for name, n in zip(self.names, quotas, strict=True)}
        bits = frozenset(name for name, bit in zip(self.bias_names, biases, strict=True) if bit)
        return self.request.updates(chosen, bits)
