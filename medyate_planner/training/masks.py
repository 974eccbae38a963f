"""Bit masks: one bit per element, packed per sample, and their application to a gradient.

On the CPU numpy compares and packs, several times faster than torch, and a table of 256 rows turns a byte of the mask
into the eight words that a gradient is and-ed with; elsewhere torch does it. Under FakeTensorMode only the shapes are
made. What numpy allocates in between is workspace of the kernel, freed before the function returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from medyate_planner.training.layout import memory_format

_Array = np.ndarray[Any, np.dtype[Any]]
_BIT_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)
_CHUNK = 1 << 17  # elements, a multiple of 8: few enough to stay in a cache from one pass to the next
_KNOWN = {torch.float32: np.float32, torch.float64: np.float64}
_HALVES = (torch.bfloat16, torch.float16)
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_KEEP_OR_CLEAR = {
    dtype: -_BITS.astype(word)
    for dtype, word in zip((*_KNOWN, *_HALVES), (np.int32, np.int64, np.int16, np.int16), strict=True)
}


def pack_between(
    value: Tensor, low: float, high: float, order: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """One bit per element: neither `value <= low` nor `value >= high` (so NaN counts as between, as in PyTorch).

    Returns uint8 `(B, ceil(n / 8))`, n elements per sample in the order they have in a tensor of memory format `order`.
    """
    batch, elements = value.shape[0], value.numel()
    per_sample = elements // batch if batch else 0
    if _in_one_go(value, elements, per_sample) and value.is_contiguous(memory_format=order):
        packed = torch.empty((batch, per_sample // 8), dtype=torch.uint8)
        flat = value.as_strided((elements,), (1,)).numpy()
        outside = np.less_equal(flat, low)
        if high != math.inf:
            np.logical_or(outside, np.greater_equal(flat, high), outside)
        np.invert(np.packbits(outside), packed.numpy().reshape(-1))
        return packed
    packed = value.new_empty((batch, -(-per_sample // 8)), dtype=torch.uint8)
    if not _by_numpy(value):
        rows = _in_order(value.detach(), order).reshape(batch, -1)
        return packed.copy_(_pack_torch((rows <= low).logical_or_(rows >= high).logical_not_()))
    if isinstance(value, FakeTensor):
        return packed
    bits = packed.numpy()
    if per_sample % 8 or not value.is_contiguous(memory_format=order):
        ordered = _array(_in_order(value.detach(), order))
        for sample in range(batch):
            outside = _outside(ordered[sample : sample + 1], value.dtype, low, high)
            bits[sample] = np.packbits(np.invert(outside).reshape(-1))
        return packed
    source, bits = _array(_flat(value)), bits.reshape(-1)
    for start in range(0, source.size, _CHUNK):
        outside = _outside(source[start : start + _CHUNK], value.dtype, low, high)
        np.invert(np.packbits(outside), out=bits[start // 8 : (start + _CHUNK) // 8])
    return packed


def apply_mask(
    gradient: Tensor,
    packed: Tensor,
    order: torch.memory_format = torch.contiguous_format,
    *,
    inside: float = 1.0,
    outside: float = 0.0,
) -> Tensor:
    """`gradient` times `inside` where the bit is set, times `outside` elsewhere; shape and order as packed from.

    The values are those of PyTorch's own derivatives, infinities and the sign of zeros included.
    """
    if not _by_numpy(gradient) or (outside != 0.0 and gradient.dtype not in _KNOWN):
        return _apply_torch(gradient, packed, order, inside, outside)
    table: _Array
    combine: Callable[..., Any]
    if outside == 0.0:
        scaled = gradient if inside == 1.0 else gradient * inside
        table, combine = _KEEP_OR_CLEAR[gradient.dtype], np.bitwise_and
    else:
        scaled = gradient
        table, combine = _slopes(inside, outside, gradient.dtype), np.multiply
    result = torch.empty_like(gradient) if scaled is gradient else scaled
    if not isinstance(gradient, FakeTensor):
        _combine(scaled, packed, result, order, table, combine)
    return result


def clear_outside_(gradient: Tensor, packed: Tensor, order: torch.memory_format) -> Tensor:
    """Zero `gradient`, in place, where the bit is not set."""
    elements = gradient.numel()
    if _in_one_go(gradient, elements, 8 * packed.shape[1]) and gradient.is_contiguous(memory_format=order):
        words = gradient.as_strided((elements,), (1,)).numpy().view(np.int32)
        np.multiply(words, np.unpackbits(packed.numpy()).view(np.int8), words)  # of words: a zero clears, NaN and all
    elif not _by_numpy(gradient):
        gradient.copy_(_apply_torch(gradient, packed, order, 1.0, 0.0))
    elif not isinstance(gradient, FakeTensor):
        _combine(gradient, packed, gradient, order, _KEEP_OR_CLEAR[gradient.dtype], np.bitwise_and)
    return gradient


def _combine(
    source: Tensor,
    packed: Tensor,
    result: Tensor,
    order: torch.memory_format,
    table: _Array,
    combine: Callable[..., Any],
) -> None:
    """`result` = combine(source, the table's entry for each bit); `result` may be `source`."""
    per_sample = source.numel() // source.shape[0]
    dense = source.is_contiguous(memory_format=order) and result.is_contiguous(memory_format=order)
    if per_sample % 8 or not dense:
        given, target = (_array(_in_order(t, order)).view(table.dtype) for t in (source, result))
        for sample, row in enumerate(packed.numpy()):
            one = slice(sample, sample + 1)
            factors = table.take(row, axis=0).reshape(-1)[:per_sample].reshape(given[one].shape)
            combine(given[one], factors, out=target[one])
        return
    given = _array(_flat(source)).view(table.dtype)
    target = given if result is source else _array(_flat(result)).view(table.dtype)
    bits = packed.numpy().reshape(-1)
    for start in range(0, given.size, _CHUNK):
        end = start + _CHUNK
        if result is source:
            factors = table.take(bits[start // 8 : end // 8], axis=0).reshape(-1)
        else:
            factors = target[start:end]
            table.take(bits[start // 8 : end // 8], axis=0, out=factors.reshape(-1, 8), mode="clip")
        combine(given[start:end], factors, out=target[start:end])


def _outside(values: _Array, dtype: torch.dtype, low: float, high: float) -> _Array:
    if dtype is torch.bfloat16:  # the upper half of a float32
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype is torch.float16:
        values = values.view(np.float16).astype(np.float32)
    outside: _Array = np.less_equal(values, low)
    return outside if high == math.inf else np.logical_or(outside, np.greater_equal(values, high), out=outside)


@lru_cache(maxsize=64)
def _slopes(inside: float, outside: float, dtype: torch.dtype) -> _Array:
    return np.where(_BITS, inside, outside).astype(_KNOWN[dtype])


def _in_one_go(x: Tensor, elements: int, per_sample: int) -> bool:
    """Whether x is of the kind that nearly every step has: the checks of other kinds would cost more than the work."""
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and elements == per_sample * x.shape[0] <= _CHUNK
        and per_sample % 8 == 0
        and x.is_cpu
        and not torch.compiler.is_compiling()
    )


def _by_numpy(x: Tensor) -> bool:
    return x.dtype in _KEEP_OR_CLEAR and x.is_cpu and not torch.compiler.is_compiling()


def _array(x: Tensor) -> _Array:
    """The same memory; half precision as int16."""
    array: _Array = x.numpy() if x.dtype in _KNOWN else x.view(torch.int16).numpy()
    return array


def _flat(x: Tensor) -> Tensor:
    """The elements of a tensor without gaps, as they lie in memory."""
    return x.as_strided((x.numel(),), (1,))


def _in_order(x: Tensor, order: torch.memory_format) -> Tensor:
    """With the axes in the order that elements have in this memory format."""
    return x.permute(0, 2, 3, 1) if order is torch.channels_last and x.dim() == 4 else x


def _apply_torch(gradient: Tensor, packed: Tensor, order: torch.memory_format, inside: float, outside: float) -> Tensor:
    """Through the kernels of relu and leaky relu."""
    ordered = _in_order(gradient, order)
    bits = _unpack_torch(packed, gradient.numel() // gradient.shape[0]).view(ordered.shape)
    if ordered is not gradient:
        bits = bits.permute(0, 3, 1, 2)
    mask = bits.to(gradient.dtype, memory_format=memory_format(gradient))
    scaled = gradient if inside == 1.0 else gradient * inside
    if outside == 0.0:
        result: Tensor = torch.ops.aten.threshold_backward.default(scaled, mask, 0.0)
    else:
        result = torch.ops.aten.leaky_relu_backward.default(scaled, mask, outside / inside, False)
    return result


def _pack_torch(bits: Tensor) -> Tensor:
    missing = -bits.shape[1] % 8
    if missing:
        bits = torch.nn.functional.pad(bits, (0, missing))
    weights = torch.tensor(_BIT_WEIGHTS, dtype=torch.uint8, device=bits.device)
    grouped = bits.view(bits.shape[0], -1, 8).to(torch.uint8)
    return (grouped * weights).sum(dim=2, dtype=torch.uint8)


def _unpack_torch(packed: Tensor, per_sample: int) -> Tensor:
    """uint8 zeros and ones `(B, n)`."""
    weights = torch.tensor(_BIT_WEIGHTS, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(2) & weights).ne(0).to(torch.uint8)
    return bits.view(packed.shape[0], -1)[:, :per_sample].contiguous()
