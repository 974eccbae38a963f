"""A fake twin of a whole model: the same modules and hooks, every tensor without memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from medyate_planner.errors import TraceError
from medyate_planner.trace.fake import storage_key


class Twins:
    """Fake tensors in place of real or meta ones: one for each, which share storages where the originals do."""

    def __init__(self, mode: FakeTensorMode, device: str) -> None:
        self._mode, self._device = mode, device
        self._bases: dict[tuple[int, torch.dtype], Tensor] = {}
        self._twins: dict[int, Tensor] = {}
        self._held: list[Tensor] = []

    def has(self, tensor: Tensor) -> bool:
        """Whether this tensor has a twin already."""
        return id(tensor) in self._twins

    def of(self, tensor: Tensor) -> Tensor:
        """The twin of one tensor: same shape, strides and type, on the device asked for."""
        if id(tensor) not in self._twins:
            self._held.append(tensor)  # its identity and its storage's are keys
            with self._mode:
                fake = self._fake(tensor)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            elif tensor.is_leaf and tensor.requires_grad:
                fake.requires_grad_()
            self._twins[id(tensor)] = fake
        return self._twins[id(tensor)]

    def _fake(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:
            return torch.empty_like(tensor, device=self._device)
        key, whole = storage_key(tensor), int(tensor.untyped_storage().nbytes())
        base = self._bases.get((key, tensor.dtype))
        if base is None and tensor.numel() * tensor.element_size() == whole:
            base = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)
            self._bases[key, tensor.dtype] = base
            return base.detach()
        if base is None:
            base = torch.empty(whole // tensor.element_size(), dtype=tensor.dtype, device=self._device)
            self._bases[key, tensor.dtype] = base
        return base.detach().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class _CopyAsFake(TorchFunctionMode):
    """Deep copies of tensors met on the way become twins."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self._twins = twins

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__deepcopy__" and isinstance(args[0], Tensor):
            tensor, memo = args[0], args[1]
            if id(tensor) not in memo:
                memo[id(tensor)] = self._twins.of(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def fake_copy(model: nn.Module, mode: FakeTensorMode, device: str) -> nn.Module:
    """A deep copy of a model on real, meta or fake tensors whose tensors are all fake, on `device`.

    Raises:
        TraceError: the model holds something that can not be copied.
    """
    twins = Twins(mode, device)
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        memo.setdefault(id(tensor), twins.of(tensor))
    try:
        with _CopyAsFake(twins):
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} can not be copied ({type(error).__name__}: {error}); a model must hold nothing "
            "that copy.deepcopy refuses"
        ) from error
    assert isinstance(copied, nn.Module)
    return copied
