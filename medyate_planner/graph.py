"""The nouns of a traced model: values, storages, operators, layers. Plain data, no torch inside.

A `ModelGraph` describes one training step's forward pass at one batch size. Every value knows the storage it
lives in, so that "what is kept for backward" can be counted once per storage however many operators refer to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import networkx as nx

from medyate_planner import families

StorageKind = Literal["input", "parameter", "buffer", "activation"]
LayerKind = Literal["conv", "depthwise", "grouped", "transposed", "linear", "embedding", "norm"]
Scalar = int | float | bool | str | None
Attribute = Scalar | tuple[int, ...]

ELEMENT_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex64": 8,
}  # fmt: skip
FLOATING = frozenset({"float64", "float32", "bfloat16", "float16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Shape and type of a value, and the id of the storage it lives in (several values may share one)."""

    shape: tuple[int, ...]
    dtype: str
    storage: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; the storage can be larger (a view) or smaller (an expansion)."""
        return self.numel * self.element_bytes

    @property
    def is_floating(self) -> bool:
        return self.dtype in FLOATING


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A block of memory. Parameters and buffers are never counted as kept for backward."""

    nbytes: int
    kind: StorageKind

    @property
    def counts_as_kept(self) -> bool:
        return self.kind in ("input", "activation")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKeep:
    """Something PyTorch was seen to keep for one operator: an existing storage, or a fresh one of `nbytes`.

    Fresh storages of one operator with the same `label` are the same storage.
    """

    storage: int | None
    nbytes: int
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Bytes an operator has alive at most beside operands, results and what is kept; backward: beside its incoming
    gradients and what is kept, so the gradients it makes are part of it."""

    forward_bytes: int
    backward_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator call.

    `operands` are the tensors it reads, in argument order, without weight and bias; `sources` are those of them
    through which a gradient can flow. `measured` gives, for an operator without a rule, what PyTorch keeps for
    the gradient to each source (same order). `weight` and `bias` are those of a layer; a norm's parameters are its
    `scale` and `shift`. `cast_bytes`: of weight and bias in the type that autocast computes with, made for the call.
    `inserted`: a cast that autocast makes, and no operator of the model's.
    """

    name: str
    family: str
    target: str
    operands: tuple[str, ...]
    sources: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    inplace: bool = False
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    measured: tuple[tuple[MeasuredKeep, ...], ...] | None = None
    weight: str | None = None
    bias: str | None = None
    scale: str | None = None
    shift: str | None = None
    module_path: str = ""
    source_line: str = ""
    cast_bytes: int = 0
    inserted: bool = False
    workspace: Workspace = Workspace(forward_bytes=0, backward_bytes=0)

    @property
    def output(self) -> TensorSpec:
        return self.outputs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A distinct weight that may be updated, by input channels, and the operators that use it (`sites`).

    Of a norm the weight is its scale, `(C,)`, and a channel one element of it.

    `trainable` is False where the user had frozen it (requires_grad) when the model was traced.
    """

    name: str
    kind: LayerKind
    weight: str
    weight_shape: tuple[int, ...]
    dtype: str
    bias: str | None
    groups: int
    sites: tuple[str, ...]
    trainable: bool = True

    @property
    def channels(self) -> int:
        """Number of input channels (of an embedding: feature dimensions): the unit of selection."""
        if self.kind in ("transposed", "norm"):
            return self.weight_shape[0]
        return self.weight_shape[1] * self.groups

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that runs over channels (grouped weights: over the rows that channels own)."""
        return 0 if self.kind in ("depthwise", "transposed", "norm") else 1

    @property
    def out_channels(self) -> int:
        return self.weight_shape[1] * self.groups if self.kind == "transposed" else self.weight_shape[0]

    @property
    def weight_elements(self) -> int:
        return prod(self.weight_shape)

    @property
    def elements_per_channel(self) -> int:
        """Weight elements that belong to one input channel: (C_out / groups) * kh * kw."""
        return self.weight_elements // self.channels

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """A model as operators in execution order, at one batch size.

    `layers` are what reports and schemes count; the affine scales of norms stand beside them, in `norms`.
    """

    batch_size: int
    ops: tuple[Op, ...]
    layers: tuple[Layer, ...]
    values: Mapping[str, TensorSpec]
    storages: Mapping[int, Storage]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    head: tuple[str, ...]
    parameters: Mapping[str, tuple[tuple[int, ...], str]]
    buffer_bytes: int = 0
    norms: tuple[Layer, ...] = ()

    @cached_property
    def op_by_name(self) -> Mapping[str, Op]:
        return {op.name: op for op in self.ops}

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Place of each operator in execution order."""
        return {op.name: index for index, op in enumerate(self.ops)}

    @cached_property
    def layer_by_name(self) -> Mapping[str, Layer]:
        """Layers and norms by name."""
        return {layer.name: layer for layer in self.units}

    @cached_property
    def units(self) -> tuple[Layer, ...]:
        """All that can be updated by channels: layers and norms, in order of first use."""
        return tuple(sorted((*self.layers, *self.norms), key=lambda layer: self.position[layer.sites[0]]))

    @cached_property
    def flow(self) -> nx.DiGraph:
        """Operators as nodes; an edge u -> v where a gradient can flow from v back to u."""
        flow = nx.DiGraph()
        flow.add_nodes_from(op.name for op in self.ops)
        flow.add_edges_from((source, op.name) for op in self.ops for source in op.sources)
        return flow

    @cached_property
    def feeds_output(self) -> frozenset[str]:
        """Operators that lie upstream of an output, hence of the loss."""
        found = set(self.outputs)
        for output in self.outputs:
            if output in self.flow:
                found |= nx.ancestors(self.flow, output)
        return frozenset(found)

    def with_norms_in_training(self) -> ModelGraph:
        """The same graph with BatchNorms that use the statistics of the batch and update the stored ones."""
        ops = (
            replace(op, family=families.BATCH_NORM_TRAIN, workspace=_of_batch_statistics(op))
            if op.family == families.BATCH_NORM
            else op
            for op in self.ops
        )
        return replace(self, ops=tuple(ops))

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape, _ in self.parameters.values())

    @property
    def parameter_bytes(self) -> int:
        return sum(prod(shape) * ELEMENT_BYTES[dtype] for shape, dtype in self.parameters.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a plan relies on: operators, their order and wiring, parameter names and shapes.

        Independent of the batch size, of the weights' values, of how BatchNorms run, and of the casts of autocast.
        """
        behind = {op.name: op.operands[0] for op in self.ops if op.inserted}
        facts = {
            "ops": [
                [
                    op.name,
                    families.BATCH_NORM if op.family == families.BATCH_NORM_TRAIN else op.family,
                    op.target,
                    [behind.get(source, source) for source in op.sources],
                    op.weight,
                    op.bias,
                    _jsonable({k: v for k, v in op.attributes.items() if k != families.STATISTICS}),
                ]
                for op in self.ops
                if not op.inserted
            ],
            "parameters": {name: [list(shape), dtype] for name, (shape, dtype) in self.parameters.items()},
            "inputs": [[list(self.values[name].shape[1:]), self.values[name].dtype] for name in self.inputs],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {
            "batch_size": self.batch_size,
            "ops": [asdict(op) for op in self.ops],
            "layers": [asdict(layer) for layer in self.layers],
            "norms": [asdict(norm) for norm in self.norms],
            "values": {name: asdict(spec) for name, spec in self.values.items()},
            "storages": {str(key): asdict(storage) for key, storage in self.storages.items()},
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "head": list(self.head),
            "parameters": {name: [list(shape), dtype] for name, (shape, dtype) in self.parameters.items()},
            "buffer_bytes": self.buffer_bytes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelGraph:
        """Inverse of `to_dict`, also after a trip through JSON."""
        return cls(
            batch_size=data["batch_size"],
            ops=tuple(_op_from_dict(op) for op in data["ops"]),
            layers=tuple(_layer_from_dict(layer) for layer in data["layers"]),
            norms=tuple(_layer_from_dict(norm) for norm in data.get("norms", ())),
            values={name: _spec_from_dict(spec) for name, spec in data["values"].items()},
            storages={int(key): Storage(**storage) for key, storage in data["storages"].items()},
            inputs=tuple(data["inputs"]),
            outputs=tuple(data["outputs"]),
            head=tuple(data["head"]),
            parameters={name: (tuple(shape), dtype) for name, (shape, dtype) in data["parameters"].items()},
            buffer_bytes=data["buffer_bytes"],
        )


def _of_batch_statistics(op: Op) -> Workspace:
    """A BatchNorm in training mode: statistics of its channels, and the gradients of input, scale and shift."""
    statistics = 4 * 8 * op.output.shape[1]
    return Workspace(
        forward_bytes=op.workspace.forward_bytes + statistics, backward_bytes=op.output.nbytes + statistics
    )


def _jsonable(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()}


def _spec_from_dict(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(shape=tuple(data["shape"]), dtype=data["dtype"], storage=data["storage"])


def _layer_from_dict(data: Mapping[str, Any]) -> Layer:
    return Layer(**{**data, "weight_shape": tuple(data["weight_shape"]), "sites": tuple(data["sites"])})


def _op_from_dict(data: Mapping[str, Any]) -> Op:
    measured = data["measured"]
    if measured is not None:
        measured = tuple(tuple(MeasuredKeep(**keep) for keep in keeps) for keeps in measured)
    return Op(
        **{
            **data,
            "operands": tuple(data["operands"]),
            "sources": tuple(data["sources"]),
            "outputs": tuple(_spec_from_dict(spec) for spec in data["outputs"]),
            "attributes": {k: tuple(v) if isinstance(v, list) else v for k, v in data["attributes"].items()},
            "measured": measured,
            "workspace": Workspace(**data.get("workspace", {"forward_bytes": 0, "backward_bytes": 0})),
        }
    )
