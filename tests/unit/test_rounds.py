"""Rounds that fit a budget: each channel once, the budget by a step simulated by hand, nothing left that still fits."""

from __future__ import annotations

from collections import Counter

import pytest
from builders import Case, Sketch, cases, channels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import simulate, upstream_of_outputs

from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import MemoryModel
from medyate_planner.planning.rounds import Packing, pack_rounds

RANDOM = settings(max_examples=200, deadline=None, derandomize=True)


def bytes_of(case: Case, quotas: dict[str, int], biases: frozenset[str] = frozenset()) -> int:
    return simulate(case.graph, quotas, biases, (), case.loss).training


def reachable(graph: ModelGraph) -> list[str]:
    """Layers and norms that an output is made of, in forward order."""
    upstream = upstream_of_outputs(graph)
    return [unit.name for unit in graph.units if upstream & set(unit.sites)]


def smallest(case: Case) -> int:
    """The fewest bytes in which any channel or bias can be measured."""
    alone = [bytes_of(case, {name: 1}) for name in reachable(case.graph)]
    biases = [name for name in reachable(case.graph) if case.graph.layer_by_name[name].bias]
    return min([*alone, *(bytes_of(case, {}, frozenset({name})) for name in biases)])


@st.composite
def packed(draw: st.DrawFn) -> tuple[Case, Packing]:
    """A random graph in rounds, within a budget from the smallest possible to more than enough."""
    case = draw(cases(max_layers=5, max_channels=6, max_plans=10**9))
    everything = {name: channels_of(case.graph.layer_by_name[name]) for name in reachable(case.graph)}
    biases = frozenset(name for name in everything if case.graph.layer_by_name[name].bias)
    low, high = smallest(case), bytes_of(case, everything, biases)
    budget_bytes = draw(st.integers(low, high + 1))
    return case, pack_rounds(MemoryModel(case.graph, loss=case.loss), budget_bytes)


@RANDOM
@given(packed())
def test_every_channel_that_fits_is_in_exactly_one_round(found: tuple[Case, Packing]) -> None:
    case, packing = found
    counted: Counter[tuple[str, int]] = Counter()
    biases: Counter[str] = Counter()
    for chosen in packing.rounds:
        counted.update((name, channel) for name, channels in chosen.channels.items() for channel in channels)
        biases.update(chosen.biases)
    beyond = [name for name in reachable(case.graph) if bytes_of(case, {name: 1}) > packing.budget_bytes]
    assert packing.beyond_budget == tuple(beyond)
    within = [case.graph.layer_by_name[name] for name in reachable(case.graph) if name not in beyond]
    assert counted == Counter((layer.name, channel) for layer in within for channel in range(channels_of(layer)))
    with_bias = [name for name in reachable(case.graph) if case.graph.layer_by_name[name].bias]
    fitting = [name for name in with_bias if bytes_of(case, {}, frozenset({name})) <= packing.budget_bytes]
    assert biases == Counter(fitting)


@RANDOM
@given(packed())
def test_every_round_fits_and_takes_what_still_fits(found: tuple[Case, Packing]) -> None:
    case, packing = found
    left: Counter[str] = Counter()
    waiting: set[str] = set()
    for chosen in reversed(packing.rounds):
        quotas = {name: len(channels) for name, channels in chosen.channels.items()}
        assert 0 < chosen.training_bytes == bytes_of(case, quotas, chosen.biases) <= packing.budget_bytes
        for name in left:  # what later rounds measure did not fit here
            more = {**quotas, name: quotas.get(name, 0) + 1}
            assert bytes_of(case, more, chosen.biases) > packing.budget_bytes
        for name in waiting:
            assert bytes_of(case, quotas, chosen.biases | {name}) > packing.budget_bytes
        left.update(quotas)
        waiting |= chosen.biases


@RANDOM
@given(case=cases(max_layers=4, max_channels=6, max_plans=10**9))
def test_the_smallest_budget_is_stated_and_is_enough(case: Case) -> None:
    memory, least = MemoryModel(case.graph, loss=case.loss), smallest(case)
    assert pack_rounds(memory, least).rounds
    with pytest.raises(InfeasibleBudgetError, match=f"pass --within-budget {least}B or more") as caught:
        pack_rounds(memory, least - 1)
    assert (caught.value.budget_bytes, caught.value.minimum_bytes) == (least - 1, least)
    assert caught.value.scope == "training"


def chain() -> ModelGraph:
    """Two 1x1 convolutions on 4 x 4 pixels, batch 2; a channel keeps 2 * 16 floats = 128 B."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 4, 4), 5, name="first", bias=True)
    return sketch.build([sketch.conv(sketch.unary("relu", x), 2, name="second")], head=["second"])


def test_rounds_of_a_chain_by_hand() -> None:
    """Channels of `second`: 128 B kept, 8 B gradient, 4 B index. Of `first`: 128 + 20 + 4 B, bias 20 B, mask 20 B.

    In 420 B: three of `second` (3 * 140 = 420). Then its other two (280) with the bias of `first` (mask 20, and its
    gradient when `second` is done): 2 * 128 + 8 index + 20 = 284 and 16 of gradient. A channel of `first` beside
    would need 432. Then two of `first`: 256 + 40 + 8, the mask gone; at the end of forward 256 + 8 + 20.
    """
    packing = pack_rounds(MemoryModel(chain()), 420)
    assert [dict(chosen.channels) for chosen in packing.rounds] == [
        {"second": range(0, 3)},
        {"second": range(3, 5)},
        {"first": range(0, 2)},
        {"first": range(2, 3)},
    ]
    assert [chosen.biases for chosen in packing.rounds] == [set(), {"first"}, set(), set()]
    assert [chosen.training_bytes for chosen in packing.rounds] == [420, 300, 304, 152]
    assert packing.rounds[1].draw(7) == {"second": [3, 4]}
    assert packing.beyond_budget == ()


def test_a_layer_beyond_the_budget_is_named_and_its_bias_measured() -> None:
    packing = pack_rounds(MemoryModel(chain()), 150)
    assert packing.beyond_budget == ("first",)
    *channels, last = packing.rounds
    assert [dict(chosen.channels) for chosen in channels] == [{"second": range(i, i + 1)} for i in range(5)]
    assert (last.channels, last.biases) == ({}, {"first"})  # its bias does fit, once there is room for the mask


def test_the_head_has_to_fit_as_a_whole() -> None:
    """All five channels of `second`: 5 * (128 + 8) B, without an index."""
    memory = MemoryModel(chain())
    assert len(pack_rounds(memory, 680, head=frozenset({"second"})).rounds) > 1
    with pytest.raises(InfeasibleBudgetError) as caught:
        pack_rounds(memory, 679, head=frozenset({"second"}))
    assert caught.value.minimum_bytes == 680
    assert caught.value.message == (
        "budget 679 B (scope training) can not be met: the smallest possible one is 680 B, for training the head "
        "(second) before importance is measured; pass --within-budget 680B or more"
    )
