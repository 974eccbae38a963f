"""What operators need beside their operands, results and kept storages: seen on fake tensors, one run per operator.

For the closed-form bound of the live peak. Equal calls (same operator, shapes and literals) are looked at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from medyate_planner.families import LEAN
from medyate_planner.graph import ModelGraph, Workspace
from medyate_planner.trace.fake import fake_twin, lookup, storage_key

if TYPE_CHECKING:
    from medyate_planner.trace.capture import InputSpec, Trace


def workspaces(traced: Trace, graph: ModelGraph) -> Mapping[str, Workspace]:
    """Workspace of every operator of the graph by name; backward only for those that PyTorch itself differentiates."""
    return _Looker(traced, graph).look()


class _Looker:
    def __init__(self, traced: Trace, graph: ModelGraph) -> None:
        self._traced, self._graph = traced, graph
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._env: dict[fx.Node, Any] = {}
        self._known: dict[Any, Workspace] = {}

    def look(self) -> Mapping[str, Workspace]:
        module = self._traced.module
        specs = iter(self._traced.inputs)
        twins: dict[int, Tensor] = {}
        found: dict[str, Workspace] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._input(next(specs))
            elif node.op == "get_attr":
                tensor = lookup(module, str(node.target))
                if isinstance(tensor, Tensor):
                    twins.setdefault(id(tensor), fake_twin(tensor, self._mode, self._traced.device))
                self._env[node] = twins.get(id(tensor), tensor)
            elif node.op == "call_function":
                found[node.name] = self._call(node)
        return {name: space for name, space in found.items() if name in self._graph.op_by_name}

    def _input(self, spec: InputSpec) -> Tensor:
        with self._mode:
            return spec.empty(self._graph.batch_size, self._traced.device)

    def _call(self, node: fx.Node) -> Workspace:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self._env[n])
        op = self._graph.op_by_name.get(node.name)
        key = (node.target, _signature(args), _signature(kwargs), None if op is None else _roles(node, op.sources))
        target: Any = node.target
        forward = _Fresh()
        with self._mode, torch.no_grad(), forward:
            result = target(*args, **kwargs)
        self._env[node] = result
        if key not in self._known:
            results = {storage_key(t): int(t.untyped_storage().nbytes()) for t in tree_leaves(result) if _is_tensor(t)}
            own = sum(nbytes for k, nbytes in results.items() if k in forward.seen)
            backward = 0
            if op is not None and op.sources and op.family not in LEAN:
                backward = self._backward(node, op.sources, op.inplace)
            self._known[key] = Workspace(forward_bytes=max(0, forward.peak_bytes - own), backward_bytes=backward)
        return self._known[key]

    def _backward(self, node: fx.Node, sources: tuple[str, ...], inplace: bool) -> int:
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
            outputs = [t for t in tree_leaves(result) if _is_tensor(t) and t.requires_grad]
            if not outputs:
                return 0
            gradients = [torch.ones_like(t) for t in outputs]
            with _Fresh() as fresh:
                torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
        return int(fresh.peak_bytes)


class _Fresh(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
            if _is_tensor(leaf) and storage_key(leaf) not in self.seen:
                self._old.add(storage_key(leaf))
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_tensor(leaf):
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


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _signature(value: Any) -> Any:
    """Hashable: tensors by shape, strides and type, all else as it is."""
    described = tree_map(lambda t: (tuple(t.shape), t.stride(), t.dtype) if isinstance(t, Tensor) else t, value)
    return repr(described)


def _roles(node: fx.Node, sources: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(n.name in sources for n in node.all_input_nodes)
