"""Pass-through: what must be kept so that a gradient can flow THROUGH an operator. One small function per family.

Each rule answers for one source of the operator, because what a product keeps for one operand is not what it keeps
for the other. Source of the byte counts: derived here from the derivatives; each is checked against measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from medyate_planner import families as f
from medyate_planner.errors import TraceError
from medyate_planner.graph import ELEMENT_BYTES, ModelGraph, Op


@dataclass(frozen=True, slots=True)
class Keep:
    """Bytes kept for backward. Equal keys are one storage, counted once however many operators hold it."""

    key: str
    nbytes: int


def passthrough(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    """What `op` keeps when `source` needs a gradient.

    Raises:
        TraceError: the operator has no rule and was not measured; names it and its source line.
    """
    rule = _RULES.get(op.family)
    if rule is None:
        raise TraceError(
            f"operator {op.target} ({op.name}) at {op.source_line} has no memory rule and was not measured"
        )
    return rule(graph, op, source)


def kept_by_update(graph: ModelGraph, op: Op) -> tuple[Keep, ...]:
    """What the operator of an updated layer keeps however many channels are selected: an embedding its indices."""
    return _storage(graph, graph.values[op.operands[0]].storage) if op.family == f.EMBEDDING else ()


def _nothing(_graph: ModelGraph, _op: Op, _source: str) -> tuple[Keep, ...]:
    return ()


def _bit_mask(_graph: ModelGraph, op: Op, _source: str) -> tuple[Keep, ...]:
    """One bit per element, packed per sample: B * ceil(n / 8)."""
    batch, *rest = op.output.shape
    return (Keep(f"{op.name}/mask", batch * -(-prod(rest) // 8)),)


def _dropout(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    return _bit_mask(graph, op, source) if op.attributes.get("2") else ()


def _window_offset(_graph: ModelGraph, op: Op, _source: str) -> tuple[Keep, ...]:
    """One byte per output element: the place of the maximum inside its window."""
    return (Keep(f"{op.name}/offset", op.output.numel),)


def _input(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    if op.inplace:  # the input is overwritten: PyTorch keeps a copy
        return (Keep(f"{op.name}/copy", graph.values[source].nbytes),)
    return _storage(graph, graph.values[source].storage)


def _output(graph: ModelGraph, op: Op, _source: str) -> tuple[Keep, ...]:
    return _storage(graph, op.output.storage)


def _other_operand(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    """A product keeps the OTHER operand; a square keeps itself."""
    first, *rest = op.operands
    other = rest[0] if source == first and rest else first
    if op.inplace and other == first:
        return (Keep(f"{op.name}/copy", graph.values[other].nbytes),)
    return _storage(graph, graph.values[other].storage) if other in graph.values else ()


def _layer_norm(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    """The input, and a mean and a reciprocal deviation for each normalised row."""
    normalised = op.attributes["1"]
    assert isinstance(normalised, tuple)
    rows = op.output.numel // prod(normalised)
    computed = [graph.values[name].storage for name in op.operands[1:] if name in graph.values]  # scale and shift
    own = (keep for number in computed for keep in _storage(graph, number))
    return (*_storage(graph, graph.values[source].storage), *own, *_statistics(op, rows))


def _batch_norm_train(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    """The input, and a mean and a reciprocal deviation for each channel, of the type of the norm's own parameters."""
    types = {norm.dtype for norm in graph.norms if op.name in norm.sites}  # a name of a tied one may be unknown
    types |= {str(op.attributes[f.STATISTICS])} if f.STATISTICS in op.attributes else set()
    types |= {graph.parameters[op.scale][1]} if op.scale is not None and op.scale in graph.parameters else set()
    element = max((ELEMENT_BYTES[dtype] for dtype in types), default=op.output.element_bytes)
    statistics = (Keep(f"{op.name}/{name}", element * op.output.shape[1]) for name in ("mean", "rstd"))
    return (*_storage(graph, graph.values[source].storage), *statistics)


def _group_norm(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    groups = op.attributes["1"]
    assert isinstance(groups, int)
    return (*_storage(graph, graph.values[source].storage), *_statistics(op, op.output.shape[0] * groups))


def _statistics(op: Op, rows: int) -> tuple[Keep, ...]:
    element = ELEMENT_BYTES[str(op.attributes.get(f.STATISTICS, op.output.dtype))]
    return (Keep(f"{op.name}/mean", rows * element), Keep(f"{op.name}/rstd", rows * element))


def _measured(graph: ModelGraph, op: Op, source: str) -> tuple[Keep, ...]:
    """What PyTorch was seen to keep when the model was traced."""
    if op.measured is None:
        raise TraceError(
            f"operator {op.target} ({op.name}) at {op.source_line} has no memory rule and was not measured"
        )
    keeps: list[Keep] = []
    for keep in op.measured[op.sources.index(source)]:
        if keep.storage is None:
            keeps.append(Keep(f"{op.name}/{keep.label}", keep.nbytes))
        else:
            keeps += _storage(graph, keep.storage)
    return tuple(keeps)


def _storage(graph: ModelGraph, number: int) -> tuple[Keep, ...]:
    """An existing storage, whole: a view keeps its base. Parameters and buffers are there anyway."""
    storage = graph.storages[number]
    return (Keep(f"storage/{number}", storage.nbytes),) if storage.counts_as_kept else ()


_RULES: Mapping[str, Callable[[ModelGraph, Op, str], tuple[Keep, ...]]] = {
    f.CONV: _nothing,
    f.CONV_TRANSPOSE: _nothing,
    f.LINEAR: _nothing,
    f.ADDMM: _nothing,
    f.EMBEDDING: _nothing,
    f.BATCH_NORM: _nothing,
    f.BATCH_NORM_TRAIN: _batch_norm_train,
    f.KEEPS_NOTHING: _nothing,
    f.AVG_POOL: _nothing,
    f.ADAPTIVE_AVG_POOL: _nothing,
    f.RELU: _bit_mask,
    f.CLAMP: _bit_mask,
    f.LEAKY_RELU: _bit_mask,
    f.HARD_SIGMOID: _bit_mask,
    f.DROPOUT: _dropout,
    f.MAX_POOL: _window_offset,
    f.KEEPS_INPUT: _input,
    f.KEEPS_OUTPUT: _output,
    f.PRODUCT: _other_operand,
    f.LAYER_NORM: _layer_norm,
    f.GROUP_NORM: _group_norm,
    f.MEASURED: _measured,
}
