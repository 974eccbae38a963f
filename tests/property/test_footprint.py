"""The closed forms of memory/ against a step simulated by hand, on random graphs and updates."""

from __future__ import annotations

import json

from builders import Case, cases, channels_of, updates_of
from hypothesis import given, settings
from hypothesis import strategies as st
from live_peak import LivePeak
from simulation import simulate, simulate_flops

from medyate_planner.graph import ModelGraph
from medyate_planner.memory.flops import FlopModel
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.peak import PeakModel, peak_bound
from medyate_planner.memory.timeline import footprint

RANDOM = settings(max_examples=400, deadline=None, derandomize=True)


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9), data=st.data())
def test_footprint_equals_a_simulated_step(case: Case, data: st.DataObject) -> None:
    quotas, biases, full = data.draw(updates_of(case.graph))
    expected = simulate(case.graph, quotas, biases, full, case.loss)
    figures = footprint(MemoryModel(case.graph, loss=case.loss), Updates(quotas=quotas, biases=biases, full=full))
    assert figures.training_bytes == expected.training
    assert figures.saved_bytes == expected.saved
    assert figures.selected_bytes == expected.selected
    assert figures.passthrough_bytes == expected.saved - expected.selected
    assert figures.gradients_bytes == expected.gradients
    assert figures.loss_bytes == expected.loss
    assert figures.index_bytes == expected.index
    assert figures.update_bytes == expected.update
    assert figures.optimizer_bytes == 0
    assert figures.training_bytes == figures.peak_moment.total_bytes


@RANDOM
@given(case=cases(max_layers=4, max_channels=6, max_plans=10**9), data=st.data())
def test_footprint_never_falls_when_something_is_added(case: Case, data: st.DataObject) -> None:
    quotas, biases, full = data.draw(updates_of(case.graph))
    memory = MemoryModel(case.graph, loss=case.loss)
    less = footprint(memory, Updates(quotas=quotas, biases=biases, full=full))
    name = data.draw(st.sampled_from([unit.name for unit in case.graph.units]))
    limit = channels_of(case.graph.layer_by_name[name])
    more_quotas = {**quotas, name: data.draw(st.integers(quotas.get(name, 0), limit))}
    more_biases = biases | {name} if case.graph.layer_by_name[name].bias else biases
    more = footprint(memory, Updates(quotas=more_quotas, biases=more_biases, full=full))
    for figure in ("training_bytes", "saved_bytes", "update_bytes", "elements", "index_bytes"):
        assert getattr(more, figure) >= getattr(less, figure), figure


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9), data=st.data())
def test_peak_bound_equals_the_sum_of_what_is_live(case: Case, data: st.DataObject) -> None:
    quotas, biases, full = data.draw(updates_of(case.graph))
    updates = Updates(quotas=quotas, biases=biases, full=full)
    memory = MemoryModel(case.graph, loss=case.loss, loss_cost=case.loss_cost)
    peak = LivePeak(case.graph, case.loss_cost, full)
    expected = peak.bytes(quotas, biases)
    assert PeakModel(memory).bound(updates) == peak_bound(memory, updates) == expected
    assert PeakModel(memory).weight_bytes == peak.weights
    assert expected >= footprint(memory, updates).training_bytes - sum(keep.nbytes for keep in case.loss)


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9), data=st.data())
def test_peak_bound_never_falls_when_something_is_added(case: Case, data: st.DataObject) -> None:
    quotas, biases, full = data.draw(updates_of(case.graph))
    memory = MemoryModel(case.graph, loss=case.loss, loss_cost=case.loss_cost)
    unit = data.draw(st.sampled_from(case.graph.units))
    more_quotas = {**quotas, unit.name: data.draw(st.integers(quotas.get(unit.name, 0), channels_of(unit)))}
    more_biases = biases | {unit.name} if unit.bias else biases
    less = Updates(quotas=quotas, biases=biases, full=full)
    more = Updates(quotas=more_quotas, biases=more_biases, full=full)
    assert peak_bound(memory, more) >= peak_bound(memory, less)
    assert FlopModel(memory).training(more) >= FlopModel(memory).training(less)


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9), data=st.data())
def test_flops_equal_those_of_a_simulated_step(case: Case, data: st.DataObject) -> None:
    quotas, biases, full = data.draw(updates_of(case.graph))
    expected = simulate_flops(case.graph, quotas, biases, full)
    assert FlopModel(MemoryModel(case.graph)).training(Updates(quotas=quotas, biases=biases, full=full)) == expected


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9))
def test_graph_json_round_trip_is_the_identity(case: Case) -> None:
    graph = case.graph
    again = ModelGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.fingerprint == graph.fingerprint
    assert again.to_dict() == graph.to_dict()
