"""What operators need beside their operands, results and kept storages: seen on fake tensors while a graph is read.

For the closed-form bound of the live peak. Equal calls (same operator, shapes and literals) are differentiated once.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medyate_planner.families import LEAN
from medyate_planner.graph import Workspace
from medyate_planner.trace.fake import signature_of, storage_key
from medyate_planner.trace.kernels import as_real


class FreshTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that storages made since entering have alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = self.peak_bytes = 0
        self.seen: dict[int, Any] = {}
        self._old: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves([args, kwargs]):
            if isinstance(leaf, Tensor) and storage_key(leaf) not in self.seen:
                self._old.add(storage_key(leaf))
        result = as_real(func, args, func(*args, **(kwargs or {})))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self.seen or key in self._old:
            return
        nbytes = int(storage.nbytes())
        self.now_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

        def freed(_reference: Any, key: int = key, nbytes: int = nbytes) -> None:
            self.now_bytes -= nbytes
            self.seen.pop(key, None)

        self.seen[key] = weakref.ref(storage, freed)


class Workspaces:
    """Workspace of the operators of one reading; `env` holds the fake values of its nodes."""

    def __init__(self, mode: FakeTensorMode, env: Mapping[fx.Node, Any]) -> None:
        self._mode, self._env = mode, env
        self._backward: dict[Any, int] = {}

    def of(
        self, node: fx.Node, forward: FreshTracker, result: Any, family: str, sources: tuple[str, ...], inplace: bool
    ) -> Workspace:
        """What the call that `forward` watched needs; backward only where PyTorch itself differentiates."""
        own = {storage_key(t): t for t in tree_leaves(result) if isinstance(t, Tensor)}
        made = sum(int(t.untyped_storage().nbytes()) for key, t in own.items() if key in forward.seen)
        backward = 0
        if sources and family not in LEAN:
            key = signature_of(node, self._env, sources)
            if key not in self._backward:
                self._backward[key] = self._differentiate(node, sources, inplace)
            backward = self._backward[key]
        return Workspace(forward_bytes=max(0, forward.peak_bytes - made), backward_bytes=backward)

    def _differentiate(self, node: fx.Node, sources: tuple[str, ...], inplace: bool) -> int:
        """The most that backward has alive at once, beside its incoming gradients and what is kept."""
        leaves: list[Tensor] = []

        def leaf(n: fx.Node) -> Any:
            value = self._env[n]
            if not isinstance(value, Tensor):
                return value
            plain = value.detach()
            if n.name in sources:
                leaves.append(plain.requires_grad_())
            return plain.clone() if inplace else plain

        target: Any = node.target
        with self._mode, torch.enable_grad():
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), leaf)
            result = target(*args, **kwargs)
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
            if not outputs or not leaves:
                return 0
            gradients = [torch.ones_like(t) for t in outputs]
            with FreshTracker() as fresh:
                torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
        return int(fresh.peak_bytes)
