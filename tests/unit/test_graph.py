"""The nouns of a traced model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import Sketch

from medyate_planner.graph import Layer, MeasuredKeep, ModelGraph, Storage, TensorSpec


def layer(kind: str, shape: tuple[int, ...], groups: int = 1) -> Layer:
    return Layer(
        name="a", kind=kind, weight="a.weight", weight_shape=shape, dtype="float32", bias=None, groups=groups, sites=()
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "channels", "out_channels", "elements", "per_channel"),
    [
        (layer("conv", (8, 3, 3, 3)), 3, 8, 216, 72),
        (layer("depthwise", (6, 1, 3, 3), groups=6), 6, 6, 54, 9),
        (layer("depthwise", (12, 1, 5, 5), groups=6), 6, 12, 300, 50),
        (layer("grouped", (8, 3, 1, 1), groups=2), 6, 8, 24, 4),
        (layer("linear", (10, 7)), 7, 10, 70, 10),
        (layer("conv", (4, 5, 3)), 5, 4, 60, 12),
    ],
)
def test_layer_counts_input_channels(
    made: Layer, channels: int, out_channels: int, elements: int, per_channel: int
) -> None:
    assert made.channels == channels
    assert made.out_channels == out_channels
    assert made.weight_elements == elements
    assert made.elements_per_channel == per_channel
    assert made.element_bytes == 4


def test_tensor_spec_bytes() -> None:
    assert TensorSpec(shape=(2, 3, 4), dtype="bfloat16", storage=0).nbytes == 48
    assert TensorSpec(shape=(), dtype="int64", storage=0).nbytes == 8
    assert TensorSpec(shape=(2, 0), dtype="float32", storage=0).nbytes == 0
    assert TensorSpec(shape=(1,), dtype="float16", storage=0).is_floating
    assert not TensorSpec(shape=(1,), dtype="int32", storage=0).is_floating


def test_storage_of_parameters_and_buffers_is_not_kept() -> None:
    kept = {
        kind for kind in ("input", "parameter", "buffer", "activation") if Storage(nbytes=1, kind=kind).counts_as_kept
    }  # type: ignore[arg-type]
    assert kept == {"input", "activation"}


def small(batch: int = 2) -> ModelGraph:
    sketch = Sketch(batch=batch)
    x = sketch.input(3, 2, 2)
    a = sketch.conv(x, 4, name="a", bias=True, kernel=(3, 3))
    relu = sketch.unary("clamp", a, attributes={"1": 0.0, "2": 6, "3": True, "4": "text", "5": None, "6": (1, 2)})
    keeps = [MeasuredKeep(storage=None, nbytes=8, label="0"), MeasuredKeep(storage=0, nbytes=96)]
    m = sketch.measured([relu], [keeps])
    sketch.unary("keeps_input", m)  # feeds nothing
    out = sketch.linear(sketch.pooled(m), 5, name="head")
    return sketch.build([out], head=["head"])


def test_graph_knows_its_operators_and_what_feeds_the_output() -> None:
    graph = small()
    assert list(graph.position.values()) == [0, 1, 2, 3, 4, 5]
    dead = graph.ops[3].name
    assert graph.feeds_output == {op.name for op in graph.ops} - {dead} | {"in0"}
    assert graph.op_by_name[dead].family == "keeps_input"
    assert set(graph.layer_by_name) == {"a", "head"}
    assert list(graph.flow.predecessors(graph.ops[1].name)) == [graph.ops[0].name]
    assert graph.ops[1].output is graph.ops[1].outputs[0]


def test_graph_counts_parameters() -> None:
    graph = small()
    assert graph.num_parameters == 4 * 3 * 9 + 4 + 5 * 4
    assert graph.parameter_bytes == 4 * graph.num_parameters
    mixed = replace(graph, parameters={"w": ((3, 5), "float32"), "h": ((7,), "bfloat16")})
    assert (mixed.num_parameters, mixed.parameter_bytes) == (22, 60 + 14)


def test_graph_of_two_outputs_is_fed_by_both() -> None:
    sketch = Sketch()
    x = sketch.input(2, 1, 1)
    a, b = sketch.unary("relu", x), sketch.unary("relu", x)
    assert sketch.build([a]).feeds_output >= {a}
    assert b not in sketch.build([a]).feeds_output
    assert sketch.build([a, b]).feeds_output >= {a, b}


def test_graph_json_round_trip_keeps_tuples_and_types() -> None:
    graph = small()
    again = ModelGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert again.ops[1].attributes == {"1": 0.0, "2": 6, "3": True, "4": "text", "5": None, "6": (1, 2)}
    assert again.ops[2].measured == graph.ops[2].measured
    assert isinstance(again.ops[2].measured, tuple)
    assert isinstance(next(iter(again.storages)), int)


def test_fingerprint_is_independent_of_the_batch_size() -> None:
    assert small(2).fingerprint == small(5).fingerprint
    assert small().fingerprint == small().fingerprint
    assert len(small().fingerprint) == 64


def test_fingerprint_changes_with_wiring_names_shapes_and_literals() -> None:
    graph = small()
    first = graph.ops[0]
    others = [
        replace(graph, ops=(replace(first, weight="b.weight"), *graph.ops[1:])),
        replace(graph, ops=(replace(first, bias=None), *graph.ops[1:])),
        replace(graph, ops=(replace(first, attributes={"3": 2}), *graph.ops[1:])),
        replace(graph, ops=(replace(first, target="aten.conv1d.default"), *graph.ops[1:])),
        replace(graph, ops=graph.ops[:-1]),
        replace(graph, ops=(*graph.ops[:1], graph.ops[2], graph.ops[1], *graph.ops[3:])),
        replace(graph, parameters={**graph.parameters, "a.weight": ((4, 3, 1, 1), "float32")}),
        replace(graph, parameters={**graph.parameters, "a.weight": ((4, 3, 3, 3), "float16")}),
        replace(graph, values={**graph.values, "in0": TensorSpec(shape=(2, 3, 4, 4), dtype="float32", storage=0)}),
    ]
    prints = {other.fingerprint for other in others}
    assert len(prints) == len(others)
    assert graph.fingerprint not in prints
