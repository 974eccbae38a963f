"""Operations of networks of a few operators, worked out by hand; a multiply-add is 2."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import Sketch

from medyate_planner.errors import InputError
from medyate_planner.graph import MeasuredKeep, ModelGraph, TensorSpec
from medyate_planner.memory.flops import FlopModel, GradientFlops
from medyate_planner.memory.model import MemoryModel, Updates


def chain() -> ModelGraph:
    """conv a (3 -> 4, 3x3, bias) - relu - depthwise b (4 -> 8, 3x3) - mean - linear head (8 -> 5); batch 2, 2x2 px."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 2, 2), 4, name="a", kernel=(3, 3), bias=True)
    x = sketch.conv(sketch.unary("relu", x), 8, name="b", kernel=(3, 3), groups=4)
    return sketch.build([sketch.linear(sketch.pooled(x), 5, name="head")], head=["head"])


A = 2 * (2 * 4) * 4 * 3 * 9  # 2 per multiply-add, 8 positions, outputs, inputs, kernel
B = 2 * (2 * 4) * 8 * 1 * 9
HEAD = 2 * 2 * 8 * 5
FORWARD = A + B + HEAD
ATTENTION = "scaled_dot_product_attention"


def flops_of(graph: ModelGraph, measured: str = "") -> FlopModel:
    """Sketches name operators by family; torch's names decide what counts."""
    names = {"conv": "conv2d", "measured": measured}
    ops = tuple(replace(op, target=f"aten.{names.get(op.family, op.family)}.default") for op in graph.ops)
    return FlopModel(MemoryModel(replace(graph, ops=ops)))


def test_inference_and_full_fine_tuning_by_hand() -> None:
    found = flops_of(chain())
    assert found.inference_flops == FORWARD
    assert found.full_flops == FORWARD + (B + HEAD) + (A + B + HEAD)  # nothing is trained below the stem
    assert found.channel_flops == {"a": A // 3, "b": B // 4, "head": HEAD // 8}


def test_ops_name_what_decides_each_term() -> None:
    a, relu, b, mean, head = flops_of(chain()).ops
    assert (a.name, a.layer, a.forward, a.per_channel) == ("conv_0", "a", A, 2 * 8 * 4 * 9)
    assert a.input_gradients == (GradientFlops(sources=("in0",), flops=A),)  # an input never needs a gradient
    assert b.per_channel == 2 * 8 * 2 * 9
    assert b.input_gradients == (GradientFlops(sources=("relu_1",), flops=B),)
    assert (head.per_channel, head.layer) == (2 * 2 * 5, "head")
    assert (relu.forward, relu.input_gradients, mean.forward, mean.layer) == (0, (), 0, None)


@pytest.mark.parametrize(
    ("updates", "beside_forward"),
    [
        (Updates(quotas={}), 0),
        (Updates(quotas={}, full=frozenset({"head"})), HEAD),
        (Updates(quotas={"head": 3}), 3 * 20),
        (Updates(quotas={"b": 1}), B // 4 + HEAD),
        (Updates(quotas={"a": 2, "head": 1}), 2 * A // 3 + B + HEAD + 20),
        (Updates(quotas={}, biases=frozenset({"a"})), B + HEAD),
        (Updates(quotas={"a": 0}), 0),
    ],
)
def test_training_by_hand(updates: Updates, beside_forward: int) -> None:
    assert flops_of(chain()).training(updates) == FORWARD + beside_forward


def test_training_of_a_weight_used_twice_counts_both_sites() -> None:
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(2, 3, 3), 2, name="a")
    x = sketch.conv(sketch.unary("relu", x), 2, name="a")
    found, site = flops_of(sketch.build([x])), 2 * 9 * 2 * 2
    assert found.training(Updates(quotas={"a": 1})) == 2 * site + site + 2 * (site // 2)


def test_training_of_what_leads_to_no_output_is_its_forward_alone() -> None:
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(2, 3, 3), 2, name="a")
    sketch.conv(x, 2, name="aside")
    found, each = flops_of(sketch.build([x])), 2 * 9 * 2 * 2
    assert found.training(Updates(quotas={"a": 2, "aside": 2})) == 2 * each + each
    assert found.full_flops == 3 * each


def test_full_fine_tuning_leaves_out_what_the_user_froze() -> None:
    graph = chain()
    layers = tuple(replace(layer, trainable=layer.name == "head") for layer in graph.layers)
    assert flops_of(replace(graph, layers=layers)).full_flops == FORWARD + HEAD


def test_a_product_has_a_gradient_for_each_factor_and_two_for_a_square() -> None:
    sketch = Sketch(batch=2)
    a, b = sketch.linear(sketch.input(3, 3), 3, name="a"), sketch.linear(sketch.input(3, 3), 3, name="b")
    product_of_both = sketch.measured([a, b], [(), ()])
    out = sketch.measured([product_of_both], [()])
    product = 2 * (2 * 3 * 3) * 3
    *_, both, square = flops_of(sketch.build([out]), "matmul").ops
    assert both.forward == square.forward == product
    assert both.input_gradients == (
        GradientFlops(sources=("linear_0",), flops=product),
        GradientFlops(sources=("linear_1",), flops=product),
    )
    assert square.input_gradients == (GradientFlops(sources=(product_of_both,), flops=2 * product),)


def attention(*, fused: bool) -> ModelGraph:
    """One head, 4 queries of width 3, 5 keys, values of width 2; queries and values are trained, keys are an input."""
    sketch = Sketch(batch=2)
    q, v = sketch.linear(sketch.input(4, 3), 3, name="q"), sketch.linear(sketch.input(5, 2), 2, name="v")
    k = sketch.input(5, 3)
    out: TensorSpec = sketch._spec((2, 4, 2), "activation")
    keeps = (MeasuredKeep(storage=out.storage if fused else None, nbytes=64),)
    y = sketch._op("measured", (q, k, v), out, measured=(keeps,) * 3)
    return sketch.build([y])


def test_attention_by_the_fused_kernel_computes_all_gradients_at_once() -> None:
    *_, found = flops_of(attention(fused=True), ATTENTION).ops
    scores, mixed = 2 * 2 * 4 * 5 * 3, 2 * 2 * 4 * 5 * 2
    assert found.forward == scores + mixed
    every = ("linear_0", "in2", "linear_1")
    assert found.input_gradients == (GradientFlops(sources=every, flops=3 * scores + 2 * mixed),)


def test_attention_by_single_products_leaves_out_what_nobody_needs() -> None:
    graph = attention(fused=False)
    scores, mixed = 2 * 2 * 4 * 5 * 3, 2 * 2 * 4 * 5 * 2
    found = flops_of(graph, ATTENTION)
    base = found.inference_flops
    assert found.training(Updates(quotas={"v": 1})) - base - found.channel_flops["v"] == mixed
    assert found.training(Updates(quotas={"q": 1})) - base - found.channel_flops["q"] == mixed + scores


def test_training_refuses_impossible_updates() -> None:
    with pytest.raises(InputError, match="updates name the layer 'z'"):
        flops_of(chain()).training(Updates(quotas={"z": 1}))
