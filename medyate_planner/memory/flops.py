"""Floating-point operations of a planned step, linear in what the planner decides (derived here).

A multiply-add is 2 operations, as `torch.utils.flop_counter` counts. Forward is always spent; an operator's input
gradient is spent once something is trained upstream of it; a layer's weight gradient in proportion to its quota: one
channel costs what the forward costs divided by the number of input channels, whatever the kind of layer.

Limits:
    * Convolutions, linear layers, matrix products and scaled dot product attention count. Everything else counts 0:
      norms, activations, pooling, the loss, bias gradients, the update of the weights, products with a vector; and,
      although they multiply matrices, einsum, bilinear, tensordot and recurrent layers.
    * Padding is not subtracted. Attention counts in full with a causal mask. Attention whose mask needs a gradient runs
      by another kernel, whose backward is cheaper: it is counted as if the mask needed none, never below the truth.
    * A weight that is no layer of the graph (computed, or used otherwise) is never trained: `full_flops` leaves it out.
      A convolution whose weight is a buffer counts 0.
    * What a checkpointed block computes again in ordinary fine-tuning is not counted; the lean executor does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from medyate_planner import families as f
from medyate_planner.graph import ModelGraph, Op
from medyate_planner.memory.model import MemoryModel, Step, Updates

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_PRODUCTS = frozenset({"matmul", "linalg_matmul", "mm", "bmm", "addmm", "baddbmm"})
_ATTENTION = "scaled_dot_product_attention"
_BY_CHANNELS = frozenset({f.CONV, f.CONV_TRANSPOSE, f.LINEAR, f.ADDMM})

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientFlops:
    """Operations spent, once, if the output of any of `sources` needs a gradient."""

    sources: tuple[str, ...]
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFlops:
    """Operations of one operator in one training step.

    Forward is always spent. `per_channel` is the weight gradient at this site, for each channel of `layer` that is
    updated. What lies upstream of no output that the loss reads has a forward alone.
    """

    name: str
    forward: int
    input_gradients: tuple[GradientFlops, ...] = ()
    per_channel: int = 0
    layer: str | None = None


class FlopModel:
    """Operations of a `MemoryModel`'s graph, worked out once; evaluating updates is then a few short sums."""

    def __init__(self, memory: MemoryModel) -> None:
        self.memory = memory

    @cached_property
    def ops(self) -> tuple[OpFlops, ...]:
        """One for each operator of the graph, in execution order."""
        graph = self.memory.graph
        steps = {step.op.name: step for step in self.memory.steps}
        shapes = _Shapes(graph)
        return tuple(_op_flops(shapes, op, steps.get(op.name)) for op in graph.ops)

    @cached_property
    def inference_flops(self) -> int:
        """One forward."""
        return sum(op.forward for op in self.ops)

    @cached_property
    def channel_flops(self) -> Mapping[str, int]:
        """Weight gradient of one channel, by layer, summed over its sites; layers that cost nothing are left out."""
        total: dict[str, int] = {}
        for op in self.ops:
            if op.layer is not None and op.per_channel:
                total[op.layer] = total.get(op.layer, 0) + op.per_channel
        return total

    @cached_property
    def full_flops(self) -> int:
        """Ordinary full fine-tuning: all that the user did not freeze, in full."""
        found = (step.layer for step in self.memory.steps)
        return self.training(
            Updates(quotas={}, full=frozenset(layer.name for layer in found if layer is not None and layer.trainable))
        )

    def training(self, updates: Updates) -> int:
        """One step of the lean executor: forward, input gradients in the reach, gradients of the updated channels.

        Raises:
            InputError: an unknown layer or a quota out of range.
        """
        self.memory.check(updates)
        trained = 0
        for name in updates.layers:
            trained |= self._bits.get(name, 0)
        passing = sum(flops for upstream, flops in self._passing.items() if upstream & trained)
        cost = self.channel_flops
        weights = sum(cost.get(name, 0) * n for name, n in self.memory.channels(updates).items())
        return self.inference_flops + passing + weights

    @cached_property
    def _bits(self) -> Mapping[str, int]:
        """A bit for each layer that has a site upstream of an output."""
        names = dict.fromkeys(step.layer.name for step in self.memory.steps if step.layer is not None)
        return {name: 1 << place for place, name in enumerate(names)}

    @cached_property
    def _passing(self) -> Mapping[int, int]:
        """Operations of input gradients, by the set of layers (as bits) of which any makes them necessary."""
        upstream: dict[str, int] = {}
        total: dict[int, int] = {}
        costs = {op.name: op for op in self.ops}
        for step in self.memory.steps:
            for gradient in costs[step.op.name].input_gradients:
                layers = _union(upstream, gradient.sources)
                if layers:
                    total[layers] = total.get(layers, 0) + gradient.flops
            own = self._bits[step.layer.name] if step.layer is not None else 0
            upstream[step.op.name] = _union(upstream, step.op.sources) | own
        return total


def _union(upstream: Mapping[str, int], sources: tuple[str, ...]) -> int:
    found = 0
    for source in sources:
        found |= upstream.get(source, 0)
    return found


class _Shapes:
    """Shapes of operands: values of the graph, or parameters that an operator without a rule reads directly."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._weights = {layer.weight: layer.weight_shape for layer in graph.layers}
        self._parameters = {_node_name(name): shape for name, (shape, _) in graph.parameters.items()}

    def of(self, name: str) -> Shape | None:
        """Shape of an operand; None of a buffer, which the graph does not describe."""
        spec = self._graph.values.get(name)
        if spec is not None:
            return spec.shape
        return self._parameters.get(name) or self._parameters.get(re.sub(r"_\d+$", "", name))

    def weight(self, op: Op) -> Shape | None:
        """Shape of a weight, be it a layer's, another parameter or computed."""
        if op.weight is None:
            return self.of(op.operands[1]) if len(op.operands) > 1 else None
        entry = self._graph.parameters.get(op.weight)
        return entry[0] if entry is not None else self._weights.get(op.weight)


def _node_name(parameter: str) -> str:
    """Name of the FX node that reads a parameter: `encoder.LayerNorm.weight` -> `encoder_layer_norm_weight`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", parameter).lower()
    plain = re.sub(r"[^0-9a-z_]+", "_", snake)
    return f"_{plain}" if plain[0].isdigit() else plain


def _op_flops(shapes: _Shapes, op: Op, step: Step | None) -> OpFlops:
    name = _operator(op)
    if name == _ATTENTION:
        forward, gradients = _attention(shapes, op)
    elif op.family == f.ADDMM:
        forward = _linear(shapes, op, width=0)
        gradients = _two_factors(op, op.operands[:1], forward)
    elif name in _PRODUCTS:
        forward = _product(shapes, op)
        gradients = _two_factors(op, op.operands[-2:], forward)
    elif name in _CONVOLUTIONS or name in _TRANSPOSED or name == "linear":
        forward = _linear(shapes, op) if name == "linear" else _convolution(shapes, op, name in _TRANSPOSED)
        gradients = _two_factors(op, op.operands[:2], forward)
    else:
        return OpFlops(name=op.name, forward=0)
    if step is None:
        return OpFlops(name=op.name, forward=forward)
    layer = step.layer if op.family in _BY_CHANNELS else None
    return OpFlops(
        name=op.name,
        forward=forward,
        input_gradients=gradients,
        per_channel=forward // layer.channels if layer is not None else 0,
        layer=layer.name if layer is not None else None,
    )


def _operator(op: Op) -> str:
    """`conv2d` of `aten.conv2d.default`; in-place forms without their underscore."""
    parts = op.target.split(".")
    return (parts[1] if len(parts) > 1 else parts[0]).rstrip("_")


def _convolution(shapes: _Shapes, op: Op, transposed: bool) -> int:
    """2 * B * positions * C_out * (C_in / G) * kernel; positions of the output, of the input if transposed."""
    weight, at = shapes.weight(op), shapes.of(op.operands[0]) if transposed else op.output.shape
    if weight is None or at is None:
        return 0
    positions = prod(at) // at[1 - len(weight)]  # channels counted from the end: the batch dimension may be absent
    return 2 * positions * prod(weight)


def _linear(shapes: _Shapes, op: Op, *, width: int = -1) -> int:
    """2 * positions * in * out; `width` is the axis of the weight that runs over inputs."""
    shape = shapes.weight(op) or shapes.of(op.operands[0])
    return 0 if shape is None else 2 * op.output.numel * shape[width]


def _product(shapes: _Shapes, op: Op) -> int:
    """2 * elements of the result * length of the sums; 0 of a product with a vector, which is no matrix product."""
    left, right = shapes.of(op.operands[-2:][0]), shapes.of(op.operands[-1])
    known = [shape for shape in (left, right) if shape is not None]
    if not known or min(len(shape) for shape in known) < 2 or len(op.output.shape) < max(len(s) for s in known):
        return 0
    length = left[-1] if left is not None else known[0][-2]
    return 2 * op.output.numel * length


def _two_factors(op: Op, factors: tuple[str, ...], forward: int) -> tuple[GradientFlops, ...]:
    """The gradient to each factor is a product with the other, as large as the forward; twice of a square."""
    each = 2 * forward if len(op.operands) == 1 and op.weight is None else forward
    return tuple(GradientFlops(sources=(x,), flops=each) for x in factors if x in op.sources and each)


def _attention(shapes: _Shapes, op: Op) -> tuple[int, tuple[GradientFlops, ...]]:
    """Two products forward, of queries and keys and of scores and values.

    Backward: a fused kernel, told by its keeping its own result, computes the scores again and then all gradients, as
    soon as one is needed. Else PyTorch runs the products one by one and leaves out what nobody needs.
    """
    query, key, value = (*op.operands, op.operands[-1], op.operands[-1])[:3]
    q, k, v = shapes.of(query), shapes.of(key), shapes.of(value)
    width, length = q or k, k or v
    if width is None or length is None:
        return 0, ()
    rows = prod(op.output.shape[:-1])
    scores = 2 * rows * length[-2] * width[-1]
    mixed = 2 * rows * length[-2] * op.output.shape[-1]
    if not op.sources:
        return scores + mixed, ()
    fused = any(keep.storage == op.output.storage for keeps in op.measured or () for keep in keeps)
    if fused:
        return scores + mixed, (GradientFlops(sources=op.sources, flops=3 * scores + 2 * mixed),)
    if len(op.operands) < 3:  # one tensor in two places
        return scores + mixed, (GradientFlops(sources=op.sources, flops=2 * scores + 2 * mixed),)
    scored = tuple(x for x in op.sources if x != value)
    needed = (((value,), mixed), (scored, mixed), ((query,), scores), ((key,), scores))
    gradients = ((tuple(x for x in sources if x in op.sources), flops) for sources, flops in needed)
    return scores + mixed, tuple(GradientFlops(sources=sources, flops=flops) for sources, flops in gradients if sources)
