"""The accountings of other papers: by hand on a few operators, and against the 15 published Sparse Update schemes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from builders import Sketch
from torch import nn

from medyate_planner.errors import InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.accounting import (
    SparseUpdateScheme,
    convolutions,
    elements,
    full_scheme,
    read_scheme,
    sparse_update_bits,
    sparse_update_bytes,
)
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.models import example_input
from medyate_planner.models.zoo import build_zoo_model
from medyate_planner.trace import trace

REPORTS = Path(__file__).resolve().parents[2] / "reports"
PUBLISHED = json.loads((REPORTS / "sparse_update_schemes.json").read_text(encoding="utf-8"))
LABELS = [(network, label) for network, schemes in PUBLISHED.items() for label in schemes]
HEAD = 8 * 5


def chain(*, batch: int = 2) -> ModelGraph:
    """stem (3 -> 4, 3x3) - depthwise (4, 3x3) - mix (4 -> 6, 2 groups) - mean - mid (6 -> 5) - head (5 -> 3); 4 px."""
    sketch = Sketch(batch=batch)
    x = sketch.conv(sketch.input(3, 2, 2), 4, name="stem", kernel=(3, 3), bias=True)
    x = sketch.conv(sketch.unary("relu", x), 4, name="dw", kernel=(3, 3), groups=4, bias=True)
    x = sketch.conv(x, 6, name="mix", groups=2)
    x = sketch.linear(sketch.pooled(x), 5, name="mid", bias=True)
    return sketch.build([sketch.linear(x, 3, name="head", bias=True)], head=["head"])


def no_convolutions() -> ModelGraph:
    sketch = Sketch()
    return sketch.build([sketch.linear(sketch.input(5), 3, name="head")], head=["head"])


def bits(graph: ModelGraph, n_bias: int = 0, **ratios: Fraction | int) -> int:
    scheme = SparseUpdateScheme(n_bias=n_bias, ratios={name: Fraction(ratio) for name, ratio in ratios.items()})
    return sparse_update_bits(graph, scheme)


# elements


def test_elements_by_hand() -> None:
    memory = MemoryModel(chain())
    updates = Updates(quotas={"stem": 2, "dw": 3, "mix": 0}, biases=frozenset({"stem"}), full=frozenset({"head"}))
    assert elements(memory, updates) == 2 * (4 * 9 + 4) + 3 * (9 + 4) + 5 * (3 + 1)
    assert elements(memory, Updates(quotas={"mix": 1})) == 3 + 4
    assert elements(memory, Updates(quotas={}, biases=frozenset({"stem"}))) == 0
    assert elements(memory, updates) == footprint(memory, updates).elements


def test_elements_are_per_sample() -> None:
    updates = Updates(quotas={"stem": 2, "mix": 4}, full=frozenset({"head"}))
    assert elements(MemoryModel(chain(batch=7)), updates) == elements(MemoryModel(chain(batch=1)), updates)


def test_elements_refuse_impossible_updates() -> None:
    with pytest.raises(InputError, match="layer dw: expected a quota of 0 to 4 channels, got 5"):
        elements(MemoryModel(chain()), Updates(quotas={"dw": 5}))


# sparse-update, by hand


@pytest.mark.parametrize(
    ("n_bias", "expected"),
    [
        (0, 0),
        (1, 32 * 6 + 6 * 4),
        (2, (32 * 6 + 6 * 4) + (32 * 4 + 4 * 4)),
        (3, (32 * 6 + 6 * 4) + 2 * (32 * 4 + 4 * 4)),
    ],
)
def test_sparse_update_bits_of_the_last_biases(n_bias: int, expected: int) -> None:
    assert bits(chain(), n_bias) == HEAD + expected


def test_sparse_update_bits_of_weights() -> None:
    graph = chain()
    assert bits(graph, stem=1) == HEAD + 8 * 3 * 4 + 8 * (3 * 4 * 9)
    assert bits(graph, stem=Fraction(2, 3)) == HEAD + 8 * 2 * 4 + 8 * (2 * 4 * 9)
    assert bits(graph, dw=Fraction(1, 2)) == HEAD + 8 * 2 * 4 + 8 * (2 * 9)
    assert bits(graph, mix=Fraction(1, 4)) == HEAD + 8 * 1 * 4 + 8 * (6 * 2)  # grouped: all of its weight
    both = bits(graph, 1, dw=1, mix=1)
    assert both == HEAD + (32 * 6 + 6 * 4) + (8 * 4 * 4 + 8 * 4 * 9) + (8 * 4 * 4 + 8 * 6 * 2)


def test_sparse_update_bits_of_less_than_one_channel_are_none() -> None:
    assert bits(chain(), stem=Fraction(1, 8), dw=Fraction(1, 8), mix=Fraction(1, 8)) == HEAD
    assert bits(chain(), 1, mix=0) == bits(chain(), 1)


def test_sparse_update_bits_do_not_depend_on_the_batch() -> None:
    for batch in (1, 5):
        graph = chain(batch=batch)
        assert sparse_update_bits(graph, full_scheme(graph)) == sparse_update_bits(chain(), full_scheme(chain()))


def test_sparse_update_bits_of_a_weight_used_twice_add_over_its_places() -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(2, 1, 3), 2, name="a")
    graph = sketch.build([sketch.conv(sketch.unary("relu", x), 2, name="a")])
    assert bits(graph, 1) == 32 * 2 + 2 * (2 * 3)
    assert bits(graph, a=Fraction(1, 2)) == 2 * (8 * 3) + 8 * 2


def test_sparse_update_bytes_round_up_once() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input(1, 1, 1), 3, name="a")
    graph = sketch.build([sketch.conv(x, 1, name="b")])
    scheme = SparseUpdateScheme(n_bias=2, ratios={})
    assert sparse_update_bits(graph, scheme) == (32 * 3 + 3) + (32 + 1)
    assert sparse_update_bytes(graph, scheme) == 17  # 132 bits; 13 + 5 if each layer were rounded
    assert sparse_update_bytes(graph, SparseUpdateScheme(n_bias=0, ratios={})) == 0


def test_full_scheme_is_all_of_every_convolution() -> None:
    graph = chain()
    assert [layer.name for layer in convolutions(graph)] == ["stem", "dw", "mix"]
    assert full_scheme(graph) == SparseUpdateScheme(
        n_bias=3, ratios={"stem": Fraction(1), "dw": Fraction(1), "mix": Fraction(1)}
    )
    weights = (8 * 3 * 4 + 8 * 4 * 27) + (8 * 4 * 4 + 8 * 36) + (8 * 4 * 4 + 8 * 12)
    assert sparse_update_bits(graph, full_scheme(graph)) == bits(graph, 3) + weights
    assert sparse_update_bits(no_convolutions(), full_scheme(no_convolutions())) == 8 * 5


def test_convolutions_leave_out_one_that_is_the_head() -> None:
    graph = replace(chain(), head=("mix",))
    assert [layer.name for layer in convolutions(graph)] == ["stem", "dw"]
    assert bits(graph) == 8 * 4


# Reading a scheme


def test_read_scheme_takes_indices_and_names() -> None:
    found = read_scheme({"n_bias": 2, "weights": {"0": 1, "dw": 0.25, "2": 0}}, chain())
    assert found == SparseUpdateScheme(n_bias=2, ratios={"stem": Fraction(1), "dw": Fraction(1, 4), "mix": Fraction(0)})
    assert read_scheme({"n_bias": 0, "weights": {}}, chain()) == SparseUpdateScheme(n_bias=0, ratios={})


def test_read_scheme_takes_decimals_as_written() -> None:
    assert int(100 * 0.29) == 28
    found = read_scheme({"n_bias": 0, "weights": {"stem": 0.29}}, chain())
    assert int(100 * found.ratios["stem"]) == 29


def test_read_scheme_takes_digits_as_an_index_even_if_a_layer_is_called_so() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input(1, 1, 1), 1, name="1")
    graph = sketch.build([sketch.conv(x, 1, name="2")])
    assert list(read_scheme({"n_bias": 0, "weights": {"1": 1}}, graph).ratios) == ["2"]


FORM = 'expected {"n_bias": N, "weights": {"INDEX or NAME": RATIO, …}}'
EXTENT = "its convolutions are 0 (stem) to 2 (mix), the head not counted"
OUT_OF_RANGE = "expected a ratio from 0 to 1, got"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([16], f"scheme: {FORM}, got a list"),
        ({"n_bias": 1, "weights": {}, "lr": 1}, f"scheme: unknown key 'lr'; {FORM}"),
        ({"weights": {}}, f"scheme: the key 'n_bias' is missing; {FORM}"),
        ({"n_bias": 1}, f"scheme: the key 'weights' is missing; {FORM}"),
        ({"n_bias": 1, "weights": [1]}, f"scheme: weights: {FORM}, got a list"),
        ({"n_bias": -1, "weights": {}}, "scheme: n_bias: expected a whole number of 0 or more, got -1"),
        ({"n_bias": 1.0, "weights": {}}, "scheme: n_bias: expected a whole number of 0 or more, got 1.0"),
        ({"n_bias": True, "weights": {}}, "scheme: n_bias: expected a whole number of 0 or more, got True"),
        ({"n_bias": 4, "weights": {}}, "scheme: n_bias 4 is more than the 3 convolutions of the model"),
        ({"n_bias": 1, "weights": {"3": 1}}, f"scheme: weights: the index 3 is out of range; {EXTENT}"),
        ({"n_bias": 1, "weights": {"-1": 1}}, f"scheme: weights: the index -1 is out of range; {EXTENT}"),
        ({"n_bias": 1, "weights": {"z": 1}}, f"scheme: weights name 'z', which the model does not have; {EXTENT}"),
        (
            {"n_bias": 1, "weights": {"head": 1}},
            "scheme: weights name 'head', which is the head: it is always trained, at a fixed cost; leave it out",
        ),
        (
            {"n_bias": 1, "weights": {"mid": 1}},
            "scheme: weights name 'mid', which is a linear layer: this accounting covers convolutions alone; "
            "leave it out",
        ),
        (
            {"n_bias": 1, "weights": {"0": 1, "stem": 1}},
            "scheme: weights name the convolution stem twice, as '0' and 'stem'",
        ),
        ({"n_bias": 1, "weights": {"2": 1.5}}, f"scheme: weights: 2: {OUT_OF_RANGE} 1.5"),
        ({"n_bias": 1, "weights": {"2": -0.5}}, f"scheme: weights: 2: {OUT_OF_RANGE} -0.5"),
        ({"n_bias": 1, "weights": {"2": float("nan")}}, f"scheme: weights: 2: {OUT_OF_RANGE} nan"),
        ({"n_bias": 1, "weights": {"2": "1/4"}}, f"scheme: weights: 2: {OUT_OF_RANGE} '1/4'"),
        ({"n_bias": 1, "weights": {"2": True}}, f"scheme: weights: 2: {OUT_OF_RANGE} True"),
        ({"n_bias": 1, "weights": {"2": None}}, f"scheme: weights: 2: {OUT_OF_RANGE} None"),
    ],
)
def test_read_scheme_refuses_in_one_line(data: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_scheme(data, chain())
    assert caught.value.message == text
    assert caught.value.exit_code == 2


def test_read_scheme_of_a_model_without_convolutions() -> None:
    with pytest.raises(InputError) as caught:
        read_scheme({"n_bias": 0, "weights": {"0": 1}}, no_convolutions())
    assert caught.value.message.endswith("out of range; it has no convolution (the head is not counted)")


def test_sparse_update_bits_refuse_a_scheme_of_another_model() -> None:
    with pytest.raises(InputError, match="weights name 'z', which the model does not have"):
        bits(chain(), z=1)
    with pytest.raises(InputError, match="n_bias 4 is more than the 3 convolutions"):
        bits(chain(), 4)


def test_scheme_is_checked_when_made() -> None:
    with pytest.raises(InputError, match="n_bias: expected a whole number of 0 or more, got -1"):
        SparseUpdateScheme(n_bias=-1, ratios={})
    with pytest.raises(InputError, match="weights: stem: expected a ratio from 0 to 1"):
        SparseUpdateScheme(n_bias=1, ratios={"stem": Fraction(3, 2)})


# The published schemes


@lru_cache(maxsize=1)
def network_graph(network: str, num_classes: int | None = None) -> ModelGraph:
    """A network of the zoo at 128 px, without its weights."""
    model = build_zoo_model(network).eval()
    if num_classes is not None:
        model.classifier = nn.Linear(model.classifier.in_features, num_classes)
    return trace(model, example_input(model, (3, 128, 128), batch_size=2)).graph(2)


def test_there_are_fifteen_published_schemes() -> None:
    assert len(LABELS) == 15


@pytest.mark.parametrize(("network", "label"), LABELS)
def test_sparse_update_bytes_give_the_published_label(network: str, label: str) -> None:
    graph = network_graph(network)
    found = sparse_update_bytes(graph, read_scheme(PUBLISHED[network][label], graph))
    assert f"{found // 1024}kb" == label
    report = (REPORTS / "accountings.txt").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(network)} +{label} .* {found:,} ", report, flags=re.MULTILINE)


def test_sparse_update_bits_do_not_depend_on_the_number_of_classes() -> None:
    thousand, ten = network_graph("mcunet-5fps"), network_graph("mcunet-5fps", 10)
    assert ten.values[ten.outputs[0]].shape == (2, 10)
    assert sparse_update_bits(thousand, full_scheme(thousand)) == sparse_update_bits(ten, full_scheme(ten))
