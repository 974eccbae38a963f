"""Hand-made `ModelGraph`s without torch, and random ones for hypothesis; simulation.py walks a step through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from medyate_planner.graph import Layer, MeasuredKeep, ModelGraph, Op, Storage, TensorSpec, Workspace
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import LossCost
from medyate_planner.memory.rules import Keep

FLOAT_BYTES = 4
_NO_COST = LossCost()
_TARGETS = {"conv": "conv2d"}  # torch's names, where they are not the family's


class Sketch:
    """Draws a graph operator by operator; every method returns the name of the value it made."""

    def __init__(self, *, batch: int = 2) -> None:
        self.batch = batch
        self.ops: list[Op] = []
        self.values: dict[str, TensorSpec] = {}
        self.storages: dict[int, Storage] = {}
        self.inputs: list[str] = []
        self.layers: dict[str, dict[str, Any]] = {}
        self.norms: dict[str, dict[str, Any]] = {}
        self.buffer_bytes = 0
        self.parameters: dict[str, tuple[tuple[int, ...], str]] = {}

    def input(self, *shape: int, dtype: str = "float32") -> str:
        """An input of this shape, without the batch dimension."""
        name = f"in{len(self.inputs)}"
        self.values[name] = self._spec((self.batch, *shape), "input", dtype)
        self.inputs.append(name)
        return name

    def conv(
        self,
        x: str,
        out: int,
        *,
        name: str | None = None,
        kernel: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """A convolution that keeps height and width; `name` of a known layer uses its weight again."""
        batch, channels, *size = self.values[x].shape
        kind = "conv" if groups == 1 else "depthwise" if groups == channels else "grouped"
        layer = self._layer(name, kind, (out, channels // groups, *kernel), groups, bias)
        return self._weighted("conv", x, (batch, out, *size), layer)

    def linear(self, x: str, out: int, *, name: str | None = None, bias: bool = False) -> str:
        *lead, features = self.values[x].shape
        return self._weighted("linear", x, (*lead, out), self._layer(name, "linear", (out, features), 1, bias))

    def norm(self, x: str, *, name: str | None = None, bias: bool = True, groups: int | None = None) -> str:
        """A BatchNorm in evaluation mode, or a GroupNorm if `groups` are given; a known `name` uses its scale again."""
        channels = self.values[x].shape[1]
        name = name or f"norm{len(self.norms)}"
        if name not in self.norms:
            self._declare(self.norms, name, "norm", (channels,), 1, bias)
            self.buffer_bytes += 2 * FLOAT_BYTES * channels if groups is None else 0
        facts = self.norms[name]
        site = self._op(
            "batch_norm" if groups is None else "group_norm",
            (x,),
            self._spec(self.values[x].shape, "activation"),
            scale=facts["weight"],
            shift=facts["bias"],
            attributes={} if groups is None else {"1": groups},
        )
        facts["sites"].append(site)
        return site

    def unary(
        self,
        family: str,
        x: str,
        *,
        inplace: bool = False,
        attributes: Mapping[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Any operator of one operand; in place it shares the operand's storage."""
        spec = self.values[x]
        out = TensorSpec(shape=spec.shape, dtype=spec.dtype, storage=spec.storage) if inplace else None
        out = out or self._spec(shape or spec.shape, "activation", spec.dtype)
        return self._op(family, (x,), out, inplace=inplace, attributes=attributes or {})

    def view(self, x: str, *shape: int) -> str:
        """Another shape of the same storage; fewer elements make it a part of its base."""
        spec = self.values[x]
        out = TensorSpec(shape=(self.batch, *shape), dtype=spec.dtype, storage=spec.storage)
        return self._op("keeps_nothing", (x,), out)

    def add(self, *operands: str) -> str:
        return self._op("keeps_nothing", operands, self._spec(self.values[operands[0]].shape, "activation"))

    def cat(self, *operands: str) -> str:
        batch, _, *size = self.values[operands[0]].shape
        channels = sum(self.values[x].shape[1] for x in operands)
        return self._op("keeps_nothing", operands, self._spec((batch, channels, *size), "activation"))

    def mul(self, a: str, b: str, *, inplace: bool = False) -> str:
        spec = self.values[a]
        out = (
            TensorSpec(shape=spec.shape, dtype=spec.dtype, storage=spec.storage)
            if inplace
            else self._spec(spec.shape, "activation")
        )
        return self._op("product", (a, b) if a != b else (a,), out, inplace=inplace)

    def measured(self, operands: Sequence[str], keeps: Sequence[Sequence[MeasuredKeep]]) -> str:
        """An operator without a rule, of which it was measured what it keeps for each operand."""
        out = self._spec(self.values[operands[0]].shape, "activation")
        return self._op("measured", tuple(operands), out, measured=tuple(tuple(k) for k in keeps))

    def pooled(self, x: str) -> str:
        """Mean over the positions: `(B, C)`."""
        spec = self.values[x]
        return self._op("keeps_nothing", (x,), self._spec(spec.shape[:2], "activation"))

    def build(self, outputs: Sequence[str], *, head: Sequence[str] = ()) -> ModelGraph:
        return ModelGraph(
            batch_size=self.batch,
            ops=tuple(self.ops),
            layers=_used(self.layers),
            norms=_used(self.norms),
            values=self.values,
            storages=self.storages,
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            head=tuple(head),
            parameters=self.parameters,
            buffer_bytes=self.buffer_bytes,
        )

    def _layer(self, name: str | None, kind: str, shape: tuple[int, ...], groups: int, bias: bool) -> dict[str, Any]:
        name = name or f"l{len(self.layers)}"
        if name in self.layers:
            assert self.layers[name]["weight_shape"] == shape
            return self.layers[name]
        return self._declare(self.layers, name, kind, shape, groups, bias)

    def _declare(
        self, kin: dict[str, dict[str, Any]], name: str, kind: str, shape: tuple[int, ...], groups: int, bias: bool
    ) -> dict[str, Any]:
        self.parameters[f"{name}.weight"] = (shape, "float32")
        if bias:
            self.parameters[f"{name}.bias"] = (shape[:1], "float32")
        kin[name] = {
            "name": name,
            "kind": kind,
            "weight": f"{name}.weight",
            "weight_shape": shape,
            "dtype": "float32",
            "bias": f"{name}.bias" if bias else None,
            "groups": groups,
            "sites": [],
        }
        return kin[name]

    def _weighted(self, family: str, x: str, shape: tuple[int, ...], layer: dict[str, Any]) -> str:
        spec = self._spec(shape, "activation")
        name = self._op(family, (x,), spec, weight=layer["weight"], bias=layer["bias"])
        layer["sites"].append(name)
        return name

    def _spec(self, shape: tuple[int, ...], kind: Any, dtype: str = "float32") -> TensorSpec:
        number = len(self.storages)
        self.storages[number] = Storage(nbytes=FLOAT_BYTES * prod(shape), kind=kind)
        return TensorSpec(shape=tuple(shape), dtype=dtype, storage=number)

    def _op(self, family: str, operands: tuple[str, ...], out: TensorSpec, **facts: Any) -> str:
        name = f"{family}_{len(self.ops)}"
        distinct = tuple(dict.fromkeys(operands))
        self.ops.append(
            Op(
                name=name,
                family=family,
                target=f"aten.{_TARGETS.get(family, family)}.default",
                operands=distinct,
                sources=distinct,
                outputs=(out,),
                **facts,
            )
        )
        self.values[name] = out
        return name


def _used(kin: Mapping[str, dict[str, Any]]) -> tuple[Layer, ...]:
    return tuple(Layer(**{**facts, "sites": tuple(facts["sites"])}) for facts in kin.values() if facts["sites"])


def channels_of(layer: Layer) -> int:
    """Number of channels that can be chosen: of a norm the elements of its scale."""
    return layer.weight_shape[0] if layer.kind == "norm" else layer.weight_shape[1] * layer.groups


# Random graphs


@dataclass(frozen=True)
class Case:
    """A graph, what its loss keeps, and what its loss needs."""

    graph: ModelGraph
    loss: tuple[Keep, ...]
    loss_cost: LossCost = _NO_COST

    def __repr__(self) -> str:
        ops = ", ".join(f"{op.name}({', '.join(op.operands)})" for op in self.graph.ops)
        layers = [(x.name, x.weight_shape, x.groups, x.bias, x.sites, x.trainable) for x in self.graph.units]
        return f"Case({ops}; {layers}; head {self.graph.head}; loss {self.loss} {self.loss_cost})"


_MIDDLE = (
    "conv", "conv", "conv", "conv", "conv", "depthwise", "reuse", "reuse", "reuse", "relu", "relu_", "clamp",
    "silu", "silu_", "sigmoid", "twice", "add", "mul", "square", "mul_", "view", "max_pool", "measured", "branch",
    "norm", "norm", "norm", "group_norm",
)  # fmt: skip


def random_case(
    seed: int, *, max_layers: int = 4, max_channels: int = 4, max_plans: int = 2500, dead: bool = True
) -> Case:
    """2 to `max_layers` layers of at most 2 * `max_channels` channels and a head; about `max_plans` plans at most."""
    dice = Random(seed)
    sketch = Sketch(batch=dice.randint(1, 3))
    size = dice.choice([(1, 1), (1, 2), (2, 2), (3, 3), (56, 57)])
    x = sketch.input(dice.randint(1, max_channels), *size)
    wanted = dice.randint(2, max_layers)
    plans, here, known = 1, [x], [x]
    head_bias = dice.random() < 0.5

    def channels(value: str) -> int:
        return sketch.values[value].shape[1]

    def add_layer(value: str, kind: str) -> str:
        nonlocal plans
        bias = dice.random() < 0.5 and plans * (channels(value) + 1) * 2 <= max_plans
        plans *= (channels(value) + 1) * (1 + bias)
        out, groups = dice.randint(1, max_channels), 1
        if kind == "depthwise":
            groups = channels(value)
            out = groups * dice.randint(1, 2 if groups <= max_channels else 1)
        kernel = dice.choice([(1, 1), (3, 3), (1, 2)])
        return sketch.conv(value, out, kernel=kernel, groups=groups, bias=bias)

    def add_norm(value: str, kind: str) -> str:
        nonlocal plans
        known_ones = [name for name, facts in sketch.norms.items() if facts["weight_shape"] == (channels(value),)]
        if known_ones and dice.random() < 0.4:
            name = dice.choice(known_ones)
            same_kind = sketch.ops[int(sketch.norms[name]["sites"][0].rpartition("_")[2])].family
            return sketch.norm(value, name=name, groups=1 if same_kind == "group_norm" else None)
        bias = dice.random() < 0.7
        if plans * (channels(value) + 1) * (1 + bias) > max_plans:
            return sketch.unary("clamp", value)
        plans *= (channels(value) + 1) * (1 + bias)
        return sketch.norm(value, bias=bias, groups=1 if kind == "group_norm" else None)

    for _ in range(dice.randint(wanted, 3 * wanted + 4)):
        kind = dice.choice(_MIDDLE)
        value = here[-1] if dice.random() < 0.5 else dice.choice(known)
        same = [v for v in known if sketch.values[v].shape == sketch.values[value].shape]
        if kind in ("conv", "depthwise"):
            fits = plans * (channels(value) + 1) <= max_plans and len(sketch.layers) < wanted
            new = add_layer(value, kind) if fits else sketch.unary("relu", value)
        elif kind == "reuse":
            twins = [
                facts
                for facts in sketch.layers.values()
                if facts["weight_shape"][1] * facts["groups"] == channels(value)
            ]
            if not twins:
                continue
            facts = dice.choice(twins)
            new = sketch.conv(
                value,
                facts["weight_shape"][0],
                name=facts["name"],
                kernel=facts["weight_shape"][2:],
                groups=facts["groups"],
            )
        elif kind in ("relu", "relu_", "clamp", "max_pool"):
            new = sketch.unary(kind.rstrip("_"), value, inplace=kind.endswith("_"))
        elif kind in ("silu", "silu_"):
            new = sketch.unary("keeps_input", value, inplace=kind.endswith("_"))
        elif kind in ("norm", "group_norm"):
            new = add_norm(value, kind)
        elif kind == "sigmoid":
            new = sketch.unary("keeps_output", value)
        elif kind == "twice":  # two holders of one storage
            known.append(sketch.unary("keeps_input", value))
            new = sketch.unary("keeps_input", value)
        elif kind == "add":
            new = sketch.add(value, dice.choice(same))
        elif kind in ("mul", "mul_"):
            new = sketch.mul(value, dice.choice(same), inplace=kind.endswith("_"))
        elif kind == "square":
            new = sketch.mul(value, value)
        elif kind == "view":
            c, h, w = sketch.values[value].shape[1:]
            new = sketch.view(value, dice.randint(1, c), h, w)
        elif kind == "measured":
            operands = (value, *dice.choices(same, k=dice.randint(0, 1)))
            operands = tuple(dict.fromkeys(operands))
            new = sketch.measured(operands, [_measured_keeps(dice, sketch, operands) for _ in operands])
        else:
            known.append(sketch.unary("keeps_nothing", value))
            new = sketch.unary("relu", value)
        known.append(new)
        here.append(new)
    while len(sketch.layers) < wanted:
        known.append(add_layer(min(known, key=channels), "conv"))
    read = {operand for op in sketch.ops for operand in op.operands}
    loose = [v for v in known if v not in read]
    joined = sketch.cat(*loose) if len(loose) > 1 else loose[0]
    if dead and dice.random() < 0.5:
        sketch.unary("keeps_input", joined)
    head: tuple[str, ...] = ()
    if dice.randint(0, 3):
        out = sketch.linear(sketch.pooled(joined), dice.randint(1, 3), name="head", bias=head_bias)
        head = ("head",)
    else:
        out = sketch.unary(dice.choice(["keeps_nothing", "keeps_output"]), joined)
    loss = [Keep("loss/probabilities", dice.randint(0, 60))]
    if dice.random() < 0.5:  # the loss reads a storage that the model may keep as well
        number = sketch.values[dice.choice([out, joined, *known])].storage
        loss.append(Keep(f"storage/{number}", sketch.storages[number].nbytes))
    for i, op in enumerate(sketch.ops):
        if dice.random() < 0.3:
            space = Workspace(forward_bytes=dice.randint(0, 200), backward_bytes=dice.randint(0, 200))
            sketch.ops[i] = replace(op, workspace=space)
    for name in sketch.layers:
        if dice.random() < 0.06 and name not in head:
            sketch.layers[name]["trainable"] = False  # as if the user had frozen it
    loss_cost = LossCost(
        target_bytes=dice.randint(0, 40), forward_bytes=dice.randint(0, 300), backward_bytes=dice.randint(0, 300)
    )
    return Case(sketch.build([out], head=head), tuple(loss), loss_cost)


def _measured_keeps(dice: Random, sketch: Sketch, operands: tuple[str, ...]) -> list[MeasuredKeep]:
    keeps = []
    for label in dice.sample(["0", "1"], k=dice.randint(0, 2)):
        keeps.append(MeasuredKeep(storage=None, nbytes=8 * (1 + int(label)), label=label))
    for operand in dice.choices(operands, k=dice.randint(0, 1)):
        number = sketch.values[operand].storage
        keeps.append(MeasuredKeep(storage=number, nbytes=sketch.storages[number].nbytes))
    return keeps


def cases(**limits: Any) -> st.SearchStrategy[Case]:
    """Random cases for hypothesis, drawn by seed: hypothesis' own choices would nearly all be tiny."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_case(seed, **limits))


def random_importance(graph: ModelGraph, seed: int, *, zeros: float = 0.1) -> Importance:
    """Log-normal energies, some of them zero."""
    generator = np.random.default_rng(seed)
    energy = {}
    for layer in graph.units:
        values = np.exp(generator.normal(0, 1.5, size=channels_of(layer)))
        energy[layer.name] = values * (generator.random(len(values)) >= zeros)
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) for name, values in energy.items()},
        bias_energy={x.name: float(np.exp(generator.normal())) for x in graph.units if x.bias},
        fingerprint=graph.fingerprint,
        source="random",
    )


@st.composite
def updates_of(draw: st.DrawFn, graph: ModelGraph) -> tuple[dict[str, int], frozenset[str], frozenset[str]]:
    """Quotas, biases and layers in full, all at random (the head may be left out)."""
    quotas: dict[str, int] = {}
    full: set[str] = set()
    for layer in graph.units:
        if draw(st.integers(0, 5)) == 0 or (layer.name in graph.head and draw(st.booleans())):
            full.add(layer.name)
        else:
            quotas[layer.name] = draw(st.integers(0, channels_of(layer)))
    with_bias = [layer.name for layer in graph.units if layer.bias]
    biases = draw(st.sets(st.sampled_from(with_bias))) if with_bias else set()
    return quotas, frozenset(biases), frozenset(full)
