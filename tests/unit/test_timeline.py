"""What is kept at each moment of a step, worked out by hand on networks of a few operators."""

from __future__ import annotations

import pytest
from builders import Sketch
from simulation import simulate

from medyate_planner.errors import InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.channels import channel_cost
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.rules import Keep
from medyate_planner.memory.timeline import Footprint, footprint


def chain() -> ModelGraph:
    """conv a (3 -> 4, 3x3, bias) - relu - depthwise b (4, 3x3) - silu - mean - linear head (4 -> 5, bias); 2x2 px."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 2, 2), 4, name="a", kernel=(3, 3), bias=True)
    x = sketch.conv(sketch.unary("relu", x), 4, name="b", kernel=(3, 3), groups=4)
    x = sketch.pooled(sketch.unary("keeps_input", x))
    return sketch.build([sketch.linear(x, 5, name="head", bias=True)], head=["head"])


def figures(graph: ModelGraph, loss: tuple[Keep, ...] = (), **updates: object) -> Footprint:
    updates.setdefault("quotas", {})
    return footprint(MemoryModel(graph, loss=loss), Updates(**updates))  # type: ignore[arg-type]


def test_channel_cost_by_hand() -> None:
    costs = MemoryModel(chain()).costs
    a, b, head = costs["a"], costs["b"], costs["head"]
    assert (a.gradient_bytes, a.saved_bytes, a.bias_gradient_bytes) == (4 * 9 * 4, 2 * 4 * 4, 16)
    assert (b.gradient_bytes, b.saved_bytes, b.bias_gradient_bytes) == (9 * 4, 2 * 4 * 4, 0)
    assert (head.gradient_bytes, head.saved_bytes, head.bias_gradient_bytes) == (5 * 4, 2 * 4, 20)
    assert (a.elements, b.elements, head.elements) == (4 * 9 + 4, 9 + 4, 5 + 1)
    assert a.update_bytes == 144 + 32
    graph = chain()
    assert channel_cost(graph, graph.layer_by_name["a"]) == a


def test_footprint_of_the_head_alone() -> None:
    found = figures(chain(), full=frozenset({"head"}), loss=(Keep("loss/p", 60),))
    assert (found.saved_bytes, found.selected_bytes, found.passthrough_bytes) == (32, 32, 0)
    assert found.loss_bytes == 60
    assert found.index_bytes == 0
    assert found.gradients_bytes == 5 * 4 * 4 + 20
    assert found.training_bytes == max(32 + 60, 32 + 100)
    assert found.update_bytes == 32 + 100
    assert found.peak_moment.at == "linear_5"
    assert [moment.at for moment in found.moments] == ["loss", "linear_5"]


def test_footprint_counts_what_the_gradient_passes_through() -> None:
    found = figures(chain(), quotas={"a": 2}, biases=frozenset({"a"}), full=frozenset({"head"}))
    mask, silu, head = 2 * 2, 2 * 16 * 4, 32
    assert found.passthrough_bytes == mask + silu
    assert found.selected_bytes == 2 * 32 + head
    assert found.index_bytes == 8
    by_place = {moment.at: moment.total_bytes for moment in found.moments}
    assert by_place["loss"] == 64 + mask + silu + head + 8
    assert by_place["linear_5"] == 64 + mask + silu + head + 100 + 8
    assert by_place["conv_0"] == 64 + (2 * 144 + 16) + 8  # all that lies above is released
    assert found.training_bytes == max(by_place.values())
    assert found.update_bytes == 64 + head + 2 * 144 + 16 + 100
    assert found.elements == 2 * 40 + 4 * 6


def test_footprint_of_a_bias_alone_saves_no_activation() -> None:
    found = figures(chain(), biases=frozenset({"a"}))
    assert (found.selected_bytes, found.index_bytes) == (0, 0)
    assert found.passthrough_bytes == 4 + 128
    assert found.training_bytes == 132  # the end of forward; the gradient of 16 bytes comes when all is released
    assert found.update_bytes == 16


def test_footprint_of_nothing_is_the_loss() -> None:
    found = figures(chain(), loss=(Keep("loss/p", 60),))
    assert (found.training_bytes, found.saved_bytes, found.update_bytes) == (60, 0, 0)


def test_footprint_of_the_deepest_layer_leaves_earlier_operators_alone() -> None:
    found = figures(chain(), quotas={"b": 1})
    assert found.passthrough_bytes == 128  # the silu; not the relu before b
    assert found.selected_bytes == 32


def test_footprint_counts_a_storage_of_the_loss_once() -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 2, 2), 3, name="a")
    x = sketch.unary("keeps_output", x)
    graph = sketch.build([x])
    loss = (Keep(f"storage/{graph.values[x].storage}", 96), Keep("loss/p", 10))
    assert figures(graph, loss, quotas={"a": 1}).loss_bytes == 10
    assert figures(graph, loss).loss_bytes == 106


def test_footprint_counts_one_storage_of_two_readers_until_the_first_reader() -> None:
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(2, 1, 1), 2, name="a")
    first, second = sketch.unary("keeps_input", x), sketch.unary("keeps_input", x)
    b = sketch.conv(second, 2, name="b")
    graph = sketch.build([sketch.add(first, b)])
    found = figures(graph, quotas={"a": 1, "b": 1})
    assert found.passthrough_bytes == 8
    assert found.saved_bytes == 8 + 4 + 4
    by_place = {moment.at: moment.total_bytes for moment in found.moments}
    assert by_place == {"loss": 16 + 8, "conv_3": 16 + 8 + 8, "conv_0": 4 + 8 + 8}


def test_footprint_of_a_weight_used_twice_holds_the_sum_beside_the_second_part() -> None:
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(2, 1, 1), 2, name="a")
    x = sketch.conv(sketch.unary("relu", x), 2, name="a")
    graph = sketch.build([x])
    assert graph.layer_by_name["a"].sites == ("conv_0", "conv_2")
    found = figures(graph, quotas={"a": 2})
    assert found.selected_bytes == 2 * 8
    by_place = {moment.at: (moment.kept_bytes, moment.gradient_bytes) for moment in found.moments}
    assert by_place["conv_2"] == (17, 16)
    assert by_place["relu_1"] == (9, 16)
    assert by_place["conv_0"] == (8, 32)
    assert found.gradients_bytes == 32
    assert found.update_bytes == 16 + 16
    assert found.training_bytes == 8 + 32 + 8 == simulate(graph, {"a": 2}).training


def test_footprint_at_full_quota_still_has_an_index() -> None:
    assert figures(chain(), quotas={"a": 3}).index_bytes == 12
    assert figures(chain(), full=frozenset({"a"})).index_bytes == 0


@pytest.mark.parametrize(
    ("updates", "text"),
    [
        ({"quotas": {"z": 1}}, "updates name the layer 'z'"),
        ({"quotas": {}, "biases": frozenset({"z"})}, "updates name the layer 'z'"),
        ({"quotas": {}, "full": frozenset({"z"})}, "updates name the layer 'z'"),
        ({"quotas": {"a": 4}}, "layer a: expected a quota of 0 to 3 channels, got 4"),
        ({"quotas": {"a": -1}}, "layer a: expected a quota of 0 to 3 channels, got -1"),
        ({"quotas": {}, "biases": frozenset({"b"})}, "layer b: has no bias"),
    ],
)
def test_footprint_refuses_impossible_updates(updates: dict[str, object], text: str) -> None:
    with pytest.raises(InputError) as caught:
        figures(chain(), **updates)
    assert text in caught.value.message
