"""Workspace of an operator: bytes alive beside operands, results and what is kept. Upper bounds, derived here."""

from __future__ import annotations

from medyate_planner import families as f
from medyate_planner.graph import Layer, ModelGraph, Op, TensorSpec

_ROW_INDEX_BYTES = 8 * 4  # per weight row of a grouped layer: its int64 index and what that is computed from
_NORM_BYTES = 4 * 8  # per channel: mean, variance, and what they were selected from
_LARGEST_WINDOW = 256  # places in it, of a max-pool that keeps a byte for each output
_MASKED = (f.RELU, f.CLAMP, f.LEAKY_RELU, f.HARD_SIGMOID, f.DROPOUT)


def forward_workspace(graph: ModelGraph, op: Op, *, reached: bool) -> int:
    """Bytes of an operator's forward beside operands and results; `reached`: its output needs a gradient."""
    own = op.workspace.forward_bytes + op.cast_bytes
    if reached and op.scale is not None:
        return own + _norm_forward(graph, op)
    return max(own, _lean_forward(graph, op) + op.cast_bytes) if reached and op.family in f.LEAN else own


def backward_workspace(graph: ModelGraph, op: Op, layer: Layer | None, *, updated: bool) -> int:
    """Bytes of an operator's backward, its results included, weight gradient excepted.

    `updated`: channels of its layer are trained.
    """
    updated_norm = 2 * op.output.nbytes if updated and op.scale is not None else 0  # gradients of selected channels
    if op.family in f.LEAN:
        return _lean_backward(graph, op, layer, updated=updated) + op.cast_bytes + updated_norm
    return updated_norm + op.workspace.backward_bytes + op.output.nbytes


def _lean_forward(graph: ModelGraph, op: Op) -> int:
    """Packing, offsets, noise, a contiguous copy before channels are selected."""
    spec = _input_spec(graph, op)
    if op.family in _MASKED:
        noise = 3 * spec.nbytes if op.family == f.DROPOUT else 0
        return noise + (0 if spec.dtype in ("float32", "float64") else 12 * spec.numel)
    if op.family == f.MAX_POOL:
        return (2 * 8 + 1) * op.output.numel + 2 * spec.shape[2] * spec.shape[3] + 16 * _LARGEST_WINDOW
    return spec.nbytes if op.family in (f.LINEAR, f.ADDMM) else 0


def _norm_forward(graph: ModelGraph, op: Op) -> int:
    """Should the scale be updated: its channels' statistics, one for each channel and, of a GroupNorm, sample; of an
    RMSNorm of half precision also what it computes with in float32."""
    spec = _input_spec(graph, op)
    return _NORM_BYTES * spec.shape[0] * spec.shape[1] if op.family == f.GROUP_NORM else _NORM_BYTES * spec.shape[1]


def _lean_backward(graph: ModelGraph, op: Op, layer: Layer | None, *, updated: bool) -> int:
    spec, out = _input_spec(graph, op), op.output
    if op.family in _MASKED:
        if spec.dtype in ("float32", "float64"):
            return spec.nbytes
        scaled = op.family in (f.HARD_SIGMOID, f.DROPOUT)  # bits may be unpacked by operators that are seen
        return (3 if scaled else 2) * spec.nbytes + 12 * spec.numel
    if op.family == f.BATCH_NORM:
        return out.nbytes + 4 * 8 * out.shape[1]
    if op.family == f.MAX_POOL:
        return max(2 * 8 * out.numel, spec.nbytes + 2 * 8 * out.numel + out.nbytes)
    if op.family in (f.AVG_POOL, f.ADAPTIVE_AVG_POOL):
        return 2 * spec.nbytes + 2 * out.nbytes
    if op.family in (f.LINEAR, f.ADDMM):
        return spec.nbytes + 2 * out.nbytes
    if op.family == f.EMBEDDING:
        return 2 * out.nbytes
    rows = 0
    if layer is not None and layer.groups > 1 and updated:
        shared = layer.channels // layer.groups  # channels that own the same rows, which are copied for each of them
        rows = shared * (out.nbytes + _ROW_INDEX_BYTES * layer.out_channels)
    return max(spec.nbytes, rows) + (spec.nbytes if rows else 0)


def _input_spec(graph: ModelGraph, op: Op) -> TensorSpec:
    return graph.values[op.operands[0]]
