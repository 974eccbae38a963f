"""Pass-through per operator family, numbers worked out by hand, and the families themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import Sketch

from medyate_planner import families
from medyate_planner.errors import TraceError
from medyate_planner.graph import MeasuredKeep, ModelGraph, Storage
from medyate_planner.memory.rules import Keep, passthrough

SHAPE = (5, 3, 3)  # 45 elements a sample: 6 bytes of bits
STORAGE_BYTES = 2 * 45 * 4


def one(family: str, **facts: object) -> tuple[ModelGraph, str]:
    sketch = Sketch(batch=2)
    x = sketch.input(*SHAPE)
    name = sketch.unary(family, x, **facts)  # type: ignore[arg-type]
    return sketch.build([name]), name


def keeps(graph: ModelGraph, name: str, source: str = "in0") -> tuple[Keep, ...]:
    return passthrough(graph, graph.op_by_name[name], source)


@pytest.mark.parametrize("family", ["conv", "linear", "batch_norm", "keeps_nothing", "avg_pool", "adaptive_avg_pool"])
def test_linear_operators_keep_nothing(family: str) -> None:
    assert keeps(*one(family)) == ()


@pytest.mark.parametrize("family", ["relu", "clamp", "leaky_relu", "hard_sigmoid"])
@pytest.mark.parametrize("inplace", [True, False])
def test_masks_are_bits_packed_per_sample(family: str, inplace: bool) -> None:
    graph, name = one(family, inplace=inplace)
    (keep,) = keeps(graph, name)
    assert keep.nbytes == 2 * 6


@pytest.mark.parametrize(("shape", "expected"), [((7,), 2), ((8,), 2), ((9,), 4), ((2, 4, 2), 4), ((1,), 2)])
def test_mask_bytes_round_up_per_sample(shape: tuple[int, ...], expected: int) -> None:
    sketch = Sketch(batch=2)
    name = sketch.unary("relu", sketch.input(*shape))
    assert keeps(sketch.build([name]), name)[0].nbytes == expected


@pytest.mark.parametrize(
    ("attributes", "expected"), [({"1": 0.5, "2": True}, 12), ({"1": 0.5, "2": False}, 0), ({}, 0)]
)
def test_dropout_keeps_bits_only_when_it_drops(attributes: dict[str, object], expected: int) -> None:
    assert sum(keep.nbytes for keep in keeps(*one("dropout", attributes=attributes))) == expected


def test_max_pool_keeps_a_byte_per_output_element() -> None:
    (keep,) = keeps(*one("max_pool", shape=(2, 5, 2, 1)))
    assert keep.nbytes == 20


def test_keeps_input_keeps_the_storage_of_its_input_or_a_copy() -> None:
    graph, name = one("keeps_input")
    assert keeps(graph, name) == (Keep("storage/0", STORAGE_BYTES),)
    graph, name = one("keeps_input", inplace=True)
    assert keeps(graph, name) == (Keep(f"{name}/copy", STORAGE_BYTES),)


def test_keeps_output_keeps_the_storage_of_its_output() -> None:
    graph, name = one("keeps_output")
    assert keeps(graph, name) == (Keep("storage/1", STORAGE_BYTES),)
    graph, name = one("keeps_output", inplace=True)
    assert keeps(graph, name) == (Keep("storage/0", STORAGE_BYTES),)


def test_two_readers_of_one_value_keep_one_storage() -> None:
    sketch = Sketch(batch=2)
    x = sketch.input(*SHAPE)
    a, b = sketch.unary("keeps_input", x), sketch.unary("keeps_input", x)
    graph = sketch.build([a, b])
    assert keeps(graph, a) == keeps(graph, b)


def test_a_view_keeps_its_whole_base() -> None:
    sketch = Sketch(batch=2)
    part = sketch.view(sketch.input(*SHAPE), 1, 3, 3)
    name = sketch.unary("keeps_input", part)
    assert keeps(sketch.build([name]), name, part) == (Keep("storage/0", STORAGE_BYTES),)


def test_parameters_and_buffers_are_never_kept() -> None:
    graph, name = one("keeps_input")
    for kind in ("parameter", "buffer"):
        frozen = replace(graph, storages={**graph.storages, 0: Storage(nbytes=STORAGE_BYTES, kind=kind)})  # type: ignore[arg-type]
        assert keeps(frozen, name) == ()


def test_product_keeps_the_other_operand() -> None:
    sketch = Sketch(batch=2)
    a, b = sketch.input(*SHAPE), sketch.input(*SHAPE)
    name = sketch.mul(a, b)
    graph = sketch.build([name])
    assert keeps(graph, name, a) == (Keep("storage/1", STORAGE_BYTES),)
    assert keeps(graph, name, b) == (Keep("storage/0", STORAGE_BYTES),)


def test_product_in_place_copies_what_it_overwrites() -> None:
    sketch = Sketch(batch=2)
    a, b = sketch.input(*SHAPE), sketch.input(*SHAPE)
    name = sketch.mul(a, b, inplace=True)
    graph = sketch.build([name])
    assert keeps(graph, name, a) == (Keep("storage/1", STORAGE_BYTES),)
    assert keeps(graph, name, b) == (Keep(f"{name}/copy", STORAGE_BYTES),)


def test_product_with_itself_keeps_itself() -> None:
    sketch = Sketch(batch=2)
    a = sketch.input(*SHAPE)
    name = sketch.mul(a, a)
    assert keeps(sketch.build([name]), name, a) == (Keep("storage/0", STORAGE_BYTES),)


def test_product_with_a_parameter_keeps_nothing() -> None:
    sketch = Sketch(batch=2)
    a, b = sketch.input(*SHAPE), sketch.input(*SHAPE)
    name = sketch.mul(a, b)
    graph = sketch.build([name])
    scaled = replace(graph, storages={**graph.storages, 1: Storage(nbytes=STORAGE_BYTES, kind="parameter")})
    assert keeps(scaled, name, a) == ()
    assert keeps(scaled, name, b) == (Keep("storage/0", STORAGE_BYTES),)
    unknown = replace(graph, values={k: v for k, v in graph.values.items() if k != b})
    assert keeps(unknown, name, a) == ()


@pytest.mark.parametrize(("normalised", "rows"), [((3,), 30), ((3, 3), 10), ((5, 3, 3), 2)])
def test_layer_norm_keeps_its_input_and_two_statistics_a_row(normalised: tuple[int, ...], rows: int) -> None:
    found = keeps(*one("layer_norm", attributes={"1": normalised}))
    assert sorted(keep.nbytes for keep in found) == sorted([STORAGE_BYTES, rows * 4, rows * 4])
    assert len({keep.key for keep in found}) == 3


def test_group_norm_keeps_its_input_and_two_statistics_a_group() -> None:
    found = keeps(*one("group_norm", attributes={"1": 5}))
    assert sorted(keep.nbytes for keep in found) == [2 * 5 * 4, 2 * 5 * 4, STORAGE_BYTES]


def test_measured_keeps_what_was_seen_for_each_source() -> None:
    sketch = Sketch(batch=2)
    a, b = sketch.input(*SHAPE), sketch.input(*SHAPE)
    shared = MeasuredKeep(storage=None, nbytes=16, label="0")
    name = sketch.measured(
        [a, b], [[shared], [shared, MeasuredKeep(storage=None, nbytes=7, label="1"), MeasuredKeep(storage=0, nbytes=1)]]
    )
    graph = sketch.build([name])
    (first,) = keeps(graph, name, a)
    second = keeps(graph, name, b)
    assert first.nbytes == 16
    assert first in second
    assert sorted(keep.nbytes for keep in second) == [7, 16, STORAGE_BYTES]


@pytest.mark.parametrize("family", ["measured", "no such family"])
def test_an_operator_without_a_rule_is_named_with_its_line(family: str) -> None:
    sketch = Sketch(batch=2)
    name = sketch.unary(family, sketch.input(*SHAPE))
    graph = sketch.build([name])
    op = replace(graph.op_by_name[name], source_line="net.py:102")
    with pytest.raises(TraceError) as caught:
        passthrough(graph, op, "in0")
    assert all(part in caught.value.message for part in (op.target, name, "net.py:102"))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("operator", "family"),
    [
        ("conv2d", families.CONV),
        ("relu", families.RELU),
        ("relu_", families.RELU),
        ("hardtanh_", families.CLAMP),
        ("_softmax", families.KEEPS_OUTPUT),
        ("_unsafe_view", families.KEEPS_NOTHING),
        ("silu_", families.KEEPS_INPUT),
        ("mul", families.PRODUCT),
        ("scaled_dot_product_attention", families.MEASURED),
        ("div", families.MEASURED),
    ],
)
def test_family_of(operator: str, family: str) -> None:
    assert families.family_of(operator) == family
