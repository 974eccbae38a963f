"""The closed form of memory/timeline.py against a step simulated by hand, on random graphs and updates."""

from __future__ import annotations

import json

from builders import Case, cases, simulate, updates_of
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import MemoryModel, Updates
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
    name = data.draw(st.sampled_from([layer.name for layer in case.graph.layers]))
    limit = case.graph.layer_by_name[name].weight_shape[1] * case.graph.layer_by_name[name].groups
    more_quotas = {**quotas, name: data.draw(st.integers(quotas.get(name, 0), limit))}
    more_biases = biases | {name} if case.graph.layer_by_name[name].bias else biases
    more = footprint(memory, Updates(quotas=more_quotas, biases=more_biases, full=full))
    for figure in ("training_bytes", "saved_bytes", "update_bytes", "elements", "index_bytes"):
        assert getattr(more, figure) >= getattr(less, figure), figure


@RANDOM
@given(case=cases(max_layers=5, max_channels=6, max_plans=10**9))
def test_graph_json_round_trip_is_the_identity(case: Case) -> None:
    graph = case.graph
    again = ModelGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.fingerprint == graph.fingerprint
    assert again.to_dict() == graph.to_dict()
