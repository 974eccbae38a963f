"""Rounds: every channel of every layer in one of several selections that fit a budget, so that all can be measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.graph import Layer
from medyate_planner.memory.channels import INDEX_BYTES
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import Footprint, footprint
from medyate_planner.summary import the_head


@dataclass(frozen=True, kw_only=True)
class Round:
    """The channels and biases measured together, by layer, and what a step keeps for them (scope `training`)."""

    channels: Mapping[str, range]
    biases: frozenset[str]
    training_bytes: int

    @property
    def updates(self) -> Updates:
        """What a session has to make gradients of; the head is a layer like any other."""
        return Updates(quotas={name: len(chosen) for name, chosen in self.channels.items()}, biases=self.biases)

    def draw(self, _interval: int) -> dict[str, list[int]]:
        """The same channels in every interval."""
        return {name: list(chosen) for name, chosen in self.channels.items()}


@dataclass(frozen=True, kw_only=True)
class Packing:
    """All rounds, nearest the output first, and the layers of which not even one channel fits, in forward order."""

    budget_bytes: int
    rounds: tuple[Round, ...]
    beyond_budget: tuple[str, ...]


def pack_rounds(memory: MemoryModel, budget_bytes: int, *, head: frozenset[str] = frozenset()) -> Packing:
    """Put every channel and bias that the loss depends on into exactly one round of at most `budget_bytes`.

    Greedy: a round takes of what is left as much as fits, from the layer nearest the output backwards, because the
    shorter its reach the less it keeps to pass gradients through. What no round could hold is left out.

    Args:
        memory: Costs at the batch size of a step.
        budget_bytes: What a step may keep (scope `training`).
        head: Layers that are trained in full before anything is measured, which has to fit too.

    Raises:
        InfeasibleBudgetError: the head does not fit, or nothing does; states the smallest budget that is enough.

    Source: derived here. Limits: not the fewest rounds.
    """
    if head:
        _require_head(memory, budget_bytes, head)
    units = [unit for unit in reversed(memory.graph.units) if memory.site_positions[unit.name]]
    alone = {unit.name: _bytes(memory, {unit.name: 1}) for unit in units}
    bias_alone = {unit.name: _bytes(memory, {}, frozenset({unit.name})) for unit in units if unit.bias}
    left = {name: range(memory.graph.layer_by_name[name].channels) for name, b in alone.items() if b <= budget_bytes}
    biases = frozenset(name for name, nbytes in bias_alone.items() if nbytes <= budget_bytes)
    if alone and not left and not biases:
        raise _nothing_fits(budget_bytes, alone, bias_alone)
    rounds = []
    while left or biases:
        chosen = _fill(memory, budget_bytes, units, left, biases)
        for name, taken in chosen.channels.items():
            left[name] = range(taken.stop, left[name].stop)
        left = {name: channels for name, channels in left.items() if channels}
        biases -= chosen.biases
        rounds.append(chosen)
    beyond = tuple(unit.name for unit in reversed(units) if alone[unit.name] > budget_bytes)
    return Packing(budget_bytes=budget_bytes, rounds=tuple(rounds), beyond_budget=beyond)


def _fill(
    memory: MemoryModel, budget_bytes: int, units: Sequence[Layer], left: Mapping[str, range], biases: frozenset[str]
) -> Round:
    """One round: of each layer in turn its bias and as many channels as fit beside what was taken before."""
    chosen = Updates(quotas={})
    figures = footprint(memory, chosen)
    for unit in units:
        if unit.name in biases:
            with_bias = replace(chosen, biases=chosen.biases | {unit.name})
            grown = footprint(memory, with_bias)
            if grown.training_bytes <= budget_bytes:
                chosen, figures = with_bias, grown
        most = min(len(left.get(unit.name, ())), _room_for(memory, budget_bytes, figures, unit.name))

        def with_channels(count: int, name: str = unit.name, chosen: Updates = chosen) -> Updates:
            return replace(chosen, quotas={**chosen.quotas, name: count})

        counts = range(1, most + 1)
        count = bisect_right(counts, budget_bytes, key=lambda n: footprint(memory, with_channels(n)).training_bytes)
        if count:
            chosen = with_channels(count)
            figures = footprint(memory, chosen)
    return Round(
        channels={name: left[name][:count] for name, count in chosen.quotas.items()},
        biases=chosen.biases,
        training_bytes=figures.training_bytes,
    )


def _room_for(memory: MemoryModel, budget_bytes: int, figures: Footprint, name: str) -> int:
    """No more channels of a layer than this fit beside what is chosen, whatever else they bring: a quick bound, by the
    end of forward alone."""
    held_bytes = figures.saved_bytes + figures.loss_bytes + figures.index_bytes
    return (budget_bytes - held_bytes) // (memory.costs[name].saved_bytes + INDEX_BYTES)


def _bytes(memory: MemoryModel, quotas: Mapping[str, int], biases: frozenset[str] = frozenset()) -> int:
    return footprint(memory, Updates(quotas=quotas, biases=biases)).training_bytes


def _require_head(memory: MemoryModel, budget_bytes: int, head: frozenset[str]) -> None:
    needed_bytes = footprint(memory, Updates(quotas={}, full=head)).training_bytes
    if needed_bytes > budget_bytes:
        raise _infeasible(budget_bytes, needed_bytes, f"training {the_head(head)} before importance is measured")


def _nothing_fits(budget_bytes: int, alone: Mapping[str, int], bias_alone: Mapping[str, int]) -> InfeasibleBudgetError:
    choices = [(nbytes, f"one channel of {name}") for name, nbytes in alone.items()]
    choices += [(nbytes, f"the bias of {name}") for name, nbytes in bias_alone.items()]
    return _infeasible(budget_bytes, *min(choices))


def _infeasible(budget_bytes: int, minimum_bytes: int, spent_on: str) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(
        budget_bytes=budget_bytes,
        minimum_bytes=minimum_bytes,
        scope="training",
        spent_on=spent_on,
        option="--within-budget",
    )
