"""A training step simulated by hand: bytes kept and floating-point operations.

The tests' own accounting, which shares no code with `medyate_planner.memory`: it walks forward, holds storages in a
dictionary of holders, walks backward releasing them, and notes the largest sum on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from builders import FLOAT_BYTES, channels_of

from medyate_planner.graph import Layer, ModelGraph, Op
from medyate_planner.memory.rules import Keep


@dataclass(frozen=True)
class Simulated:
    """What one simulated step saw, in bytes."""

    training: int
    saved: int
    selected: int
    gradients: int
    loss: int
    index: int
    update: int


@dataclass
class _Hands:
    """Who holds which storage now."""

    holders: dict[str, set[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    now: int = 0

    def take(self, who: str, key: str, nbytes: int) -> bool:
        fresh = key not in self.holders
        if fresh:
            self.holders[key], self.sizes[key] = set(), nbytes
            self.now += nbytes
        self.holders[key].add(who)
        return fresh

    def let_go(self, who: str) -> None:
        for key in [key for key, holders in self.holders.items() if who in holders]:
            self.holders[key].discard(who)
            if not self.holders[key]:
                del self.holders[key]
                self.now -= self.sizes.pop(key)


def held_for(graph: ModelGraph, op: Op, source: str) -> dict[str, int]:
    """What an operator holds for the gradient to one of its sources, by the derivatives; key -> bytes."""

    def whole(value: str) -> dict[str, int]:
        number = graph.values[value].storage
        storage = graph.storages[number]
        return {f"storage/{number}": storage.nbytes} if storage.kind in ("input", "activation") else {}

    out = op.outputs[0].shape
    bits = out[0] * ((prod(out[1:]) + 7) // 8)
    if op.family in ("relu", "clamp", "leaky_relu", "hard_sigmoid"):
        return {f"{op.name}/bits": bits}
    if op.family == "max_pool":
        return {f"{op.name}/bytes": prod(out)}
    if op.family == "keeps_input":
        if op.inplace:
            return {f"{op.name}/before": prod(graph.values[source].shape) * FLOAT_BYTES}
        return whole(source)
    if op.family == "keeps_output":
        return whole(op.name)
    if op.family == "product":
        others = [x for x in op.operands if x != source] or [source]
        if op.inplace and others[0] == op.operands[0]:
            return {f"{op.name}/before": prod(graph.values[others[0]].shape) * FLOAT_BYTES}
        return whole(others[0])
    if op.family == "group_norm":
        rows = out[0] * op.attributes["1"] * FLOAT_BYTES
        return {**whole(source), f"{op.name}/m": rows, f"{op.name}/r": rows}
    if op.family == "measured":
        assert op.measured is not None
        found: dict[str, int] = {}
        for keep in op.measured[op.sources.index(source)]:
            if keep.storage is None:
                found[f"{op.name}/fresh/{keep.label}"] = keep.nbytes
            elif graph.storages[keep.storage].kind in ("input", "activation"):
                found[f"storage/{keep.storage}"] = graph.storages[keep.storage].nbytes
        return found
    assert op.family in ("conv", "linear", "keeps_nothing", "batch_norm"), op.family
    return {}


def compact_bytes(graph: ModelGraph, layer: Layer, op: Op) -> int:
    """One channel of the input of an operator."""
    return prod(graph.values[op.operands[0]].shape) // channels_of(layer) * FLOAT_BYTES


def slice_of_a_channel(layer: Layer) -> int:
    """Bytes of one channel's gradient."""
    if layer.kind == "norm":
        return FLOAT_BYTES
    out, _, *kernel = layer.weight_shape
    return out // layer.groups * prod(kernel) * FLOAT_BYTES


def bias_bytes(layer: Layer) -> int:
    return layer.weight_shape[0] * FLOAT_BYTES if layer.bias else 0


_UPSTREAM: dict[int, tuple[ModelGraph, set[str]]] = {}


def upstream_of_outputs(graph: ModelGraph) -> set[str]:
    """Operators that an output is made of; remembered, because brute force asks often."""
    if id(graph) in _UPSTREAM and _UPSTREAM[id(graph)][0] is graph:
        return _UPSTREAM[id(graph)][1]
    by_name = {op.name: op for op in graph.ops}
    found: set[str] = set()
    waiting = list(graph.outputs)
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found.add(name)
            waiting += by_name[name].sources
    _UPSTREAM.clear()
    _UPSTREAM[id(graph)] = (graph, found)
    return found


def simulate(
    graph: ModelGraph,
    quotas: Mapping[str, int],
    biases: Iterable[str] = (),
    full: Iterable[str] = (),
    loss: Sequence[Keep] = (),
) -> Simulated:
    """Walk one training step (fused SGD) forward and backward."""
    biases, full = set(biases), set(full)
    layers = {layer.name: layer for layer in graph.units}
    chosen = {name: n for name, n in quotas.items() if n}
    chosen |= {name: channels_of(layers[name]) for name in full}
    trained = set(chosen) | biases
    layer_of = {site: layer for layer in graph.units for site in layer.sites}
    upstream = upstream_of_outputs(graph)
    hands = _Hands()
    needs_gradient: set[str] = set()
    tape: list[Op] = []
    selected = 0
    visits = dict.fromkeys(trained, 0)
    for op in graph.ops:
        if op.name not in upstream:
            continue
        tape.append(op)
        for source in op.sources:
            if source in needs_gradient:
                for key, nbytes in held_for(graph, op, source).items():
                    hands.take(op.name, key, nbytes)
                needs_gradient.add(op.name)
        layer = layer_of.get(op.name)
        if layer is not None and layer.name in trained:
            needs_gradient.add(op.name)
            visits[layer.name] += 1
            if layer.name in chosen:
                nbytes = chosen[layer.name] * compact_bytes(graph, layer, op)
                hands.take(op.name, f"{op.name}/compact", nbytes)
                selected += nbytes
    saved = hands.now
    for keep in loss:
        hands.take("the loss", keep.key, keep.nbytes)
    loss_bytes = hands.now - saved
    index = 4 * sum(n for name, n in chosen.items() if name not in full)
    slice_bytes = {}
    for name in trained:
        slice_bytes[name] = chosen.get(name, 0) * slice_of_a_channel(layers[name])
        slice_bytes[name] += bias_bytes(layers[name]) if name in biases or name in full else 0
    largest = hands.now
    most_gradients = gradients = 0
    hands.let_go("the loss")
    arrived = dict.fromkeys(trained, 0)
    for op in reversed(tape):
        layer = layer_of.get(op.name)
        if layer is not None and layer.name in trained:
            arrived[layer.name] += 1
            gradients += slice_bytes[layer.name]
            largest = max(largest, hands.now + gradients)
            most_gradients = max(most_gradients, gradients)
            if arrived[layer.name] > 1:  # added to the sum, then dropped
                gradients -= slice_bytes[layer.name]
            if arrived[layer.name] == visits[layer.name]:  # applied, then dropped
                gradients -= slice_bytes[layer.name]
        largest = max(largest, hands.now + gradients)
        hands.let_go(op.name)
    assert hands.now == 0
    assert gradients == 0
    return Simulated(
        training=largest + index,
        saved=saved,
        selected=selected,
        gradients=most_gradients,
        loss=loss_bytes,
        index=index,
        update=selected + sum(slice_bytes.values()),
    )


def simulate_flops(
    graph: ModelGraph, quotas: Mapping[str, int], biases: Iterable[str] = (), full: Iterable[str] = ()
) -> int:
    """Multiplications and additions of a step: convolutions and linear layers alone have any that count."""
    full = set(full)
    trained = {name for name, n in quotas.items() if n} | set(biases) | full
    layer_of = {site: layer for layer in graph.layers for site in layer.sites}
    norm_of = {site: norm for norm in graph.norms for site in norm.sites}
    upstream = upstream_of_outputs(graph)
    needs_gradient: set[str] = set()
    total = 0
    for op in graph.ops:
        layer = layer_of.get(op.name)
        forward = 0
        if layer is not None:  # each result is a sum of products, over a row of the weight
            forward = 2 * prod(op.outputs[0].shape) * prod(layer.weight_shape[1:])
        total += forward
        if op.name not in upstream:
            continue
        if needs_gradient & set(op.sources):
            total += forward
            needs_gradient.add(op.name)
        owner = layer or norm_of.get(op.name)
        if owner is not None and owner.name in trained:
            needs_gradient.add(op.name)
        if layer is not None and (layer.name in full or quotas.get(layer.name)):
            n = channels_of(layer) if layer.name in full else quotas[layer.name]
            total += forward * n // channels_of(layer)
    return total
