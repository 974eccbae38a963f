"""Autocast made explicit: casts that torch.export leaves out become operators of the graph like any other.

A graph captured under autocast has the types of its results, but not the casts of operands. Each operator is run under
autocast on fake tensors, and the casts seen are put before it; what it then computes needs no autocast any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError
from medyate_planner.trace.fake import fake_twin, lookup

PLANNED_AUTOCASTS = ("bfloat16",)
REGIME = "medyate_autocast"  # in a node's meta: type name that its region is cast to, None for no autocast there
INSERTED = "medyate_inserted"  # in the meta of the casts made here
_Calls = list[tuple[Any, ...]]


def check_autocast(autocast: str | None) -> None:
    """Raise `InputError` for a type that training can not be planned in under autocast."""
    if autocast == "float16":
        raise InputError(
            "autocast 'float16' needs its loss scaled, which planned training does not do; choose bfloat16"
        )
    if autocast is not None and autocast not in PLANNED_AUTOCASTS:
        raise InputError(f"autocast {autocast!r} is unknown; choose {' or '.join(PLANNED_AUTOCASTS)}, or leave it out")


def autocasting(autocast: str | None, device: str) -> AbstractContextManager[Any]:
    """What runs a model as `explicit_casts` writes it down, whatever autocast surrounds it; None switches that off."""
    kind = torch.device(device).type
    if autocast is None:
        return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    return torch.autocast(kind, dtype=getattr(torch, autocast), cache_enabled=False)


def call_under_autocast(target: Callable[..., Any], autocast: str, device: str, *args: Any, **kwargs: Any) -> Any:
    """An operator whose casts can not be put before it, because it casts what it makes itself."""
    with autocasting(autocast, device):
        return target(*args, **kwargs)


def explicit_casts(module: fx.GraphModule, inputs: Sequence[Tensor], device: str, autocast: str | None) -> None:
    """Put the casts of autocast into the graph, in place; nodes of a region with an autocast of its own follow that.

    `inputs` are examples of the placeholders, in order.
    """
    regimes = {node.meta.get(REGIME, autocast) for node in module.graph.nodes}
    if regimes == {None}:
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = iter(fake_twin(batch, mode, device) for batch in inputs)
    env: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "get_attr":
            value = lookup(module, str(node.target))
            env[node] = fake_twin(value, mode, device) if isinstance(value, Tensor) else value
        elif node.op == "call_function":
            with mode, torch.no_grad(), autocasting(None, device):
                env[node] = _call(module.graph, node, env, device, node.meta.get(REGIME, autocast))
    module.recompile()


def _call(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any], device: str, autocast: str | None) -> Any:
    """Run the operator as its region does, and put its casts before it."""
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    if autocast is None:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: env[n])
        return target(*args, **kwargs)
    operands = [n for n in node.all_input_nodes if isinstance(env[n], Tensor)]
    with autocasting(autocast, device):
        result, seen, casts = _watched(node, env, operands)
    if _same_without(node, env, operands, seen):
        return result
    for operand, dtype in casts.items():
        with graph.inserting_before(node):
            cast = graph.call_function(torch.ops.aten.to.dtype, (operand, dtype))
        cast.meta = {key: value for key, value in node.meta.items() if key in ("stack_trace", "nn_module_stack")}
        cast.meta[INSERTED] = True
        if isinstance(operand.meta.get("val"), Tensor):
            cast.meta["val"] = operand.meta["val"].to(dtype)
        env[cast] = env[operand].to(dtype)
        node.replace_input_with(operand, cast)
    rest = [call for call in seen if call[0] is not None]
    if not _same_without(node, env, [n for n in node.all_input_nodes if isinstance(env[n], Tensor)], rest):
        for cast in [n for n in node.all_input_nodes if is_cast(n) and n.args[0] in casts and len(n.users) == 1]:
            node.replace_input_with(cast, cast.args[0])  # type: ignore[arg-type]
            graph.erase_node(cast)
        node.args = (target, autocast, device, *node.args)  # type: ignore[arg-type]
        node.target = call_under_autocast
    return result


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that make tensors, each with their shapes and types; None as name for the cast of an operand."""

    def __init__(self, operands: Mapping[int, fx.Node]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operands, self.calls = operands, _Calls()
        self.casts: dict[fx.Node, torch.dtype] = {}

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        described = [(tuple(t.shape), t.dtype) for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not described:  # autocast asks for devices
            return result
        operand = self.operands.get(id(args[0])) if args else None
        if func is torch.ops.aten._to_copy.default and operand is not None and result.dtype != args[0].dtype:
            self.casts[operand] = result.dtype
            self.calls.append((None, func, described))
        else:
            self.calls.append((func, func, described))
        return result


def _watched(
    node: fx.Node, env: Mapping[fx.Node, Any], operands: Sequence[fx.Node]
) -> tuple[Any, _Calls, dict[fx.Node, torch.dtype]]:
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    copies = {n: _copy(env[n]) if n in operands else env[n] for n in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: copies[n])
    with _Watch({id(copies[n]): n for n in operands}) as watch:
        result = target(*args, **kwargs)
    return result, watch.calls, watch.casts


def _copy(tensor: Tensor) -> Tensor:
    """A tensor of its own, so that an operator in place changes nothing that is read again."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _same_without(node: fx.Node, env: Mapping[fx.Node, Any], operands: Sequence[fx.Node], seen: _Calls) -> bool:
    """Whether the operator calls just this without autocast."""
    try:
        _, calls, _ = _watched(node, env, operands)
    except (RuntimeError, TypeError):  # operands of types that do not go together
        return False
    return [call[1:] for call in calls] == [call[1:] for call in seen]


def is_cast(node: Any) -> bool:
    """Whether a node converts one tensor to another type, and does nothing else."""
    return isinstance(node, fx.Node) and node.target is torch.ops.aten.to.dtype and len(node.args) == 2


def behind_cast(node: Any) -> Any:
    """The parameter, buffer or constant that a node is the cast of, for one operator alone; else the node itself."""
    if is_cast(node) and len(node.users) == 1 and node.args[0].op == "get_attr":
        return node.args[0]
    return node


def cast_of(node: Any) -> torch.dtype | None:
    """The type that `behind_cast` looks through."""
    return None if behind_cast(node) is node else node.args[1]
