"""Put what torch.export wraps back into the graph: regions without gradients, or with an autocast of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from medyate_planner.trace.casts import REGIME
from medyate_planner.trace.fake import operator_name

_NO_GRAD, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def inline_regions(module: fx.GraphModule, device: str) -> None:
    """Replace the calls of wrapped regions by the operators inside; results of a region without gradients are detached.

    Operators of a region in which autocast is switched on, or off, for `device` say so in their meta (`REGIME`).
    """
    found = True
    while found:  # regions may hold regions
        found = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and operator_name(node.target) in (_NO_GRAD, _AUTOCAST):
                _inline(module, node, torch.device(device).type)
                found = True
    module.graph.eliminate_dead_code()


def _regime(node: fx.Node, device: str) -> dict[str, str | None]:
    """What a region of autocast, `(device, type, whether it is on, …)`, says of the operators inside."""
    if operator_name(node.target) != _AUTOCAST or node.args[0] != device:
        return {}
    dtype = node.args[1] or torch.get_autocast_dtype(device)
    return {REGIME: str(dtype).removeprefix("torch.") if node.args[2] else None}


def _inline(module: fx.GraphModule, node: fx.Node, device: str) -> None:
    regime = _regime(node, device)
    first = 1 if operator_name(node.target) == _NO_GRAD else 4
    without_gradient = first == 1 and not node.args[0]
    region: Any = node.args[first]
    inner = module.get_submodule(str(region.target))
    operands = iter(node.args[first + 1 :])
    values: dict[fx.Node, Any] = {}
    results: Any = ()
    with module.graph.inserting_before(node):
        for part in inner.graph.nodes:  # type: ignore[union-attr]
            if part.op == "placeholder":
                values[part] = next(operands)
            elif part.op == "get_attr":
                values[part] = module.graph.get_attr(f"{region.target}.{part.target}")
                values[part].meta = dict(part.meta)
            elif part.op == "output":
                results = fx.node.map_arg(part.args[0], lambda n: values[n])
            else:
                values[part] = module.graph.node_copy(part, lambda n: values[n])
                values[part].meta = {**node.meta, **regime, **part.meta}
        if without_gradient:
            results = fx.node.map_arg(results, lambda n: _detached(module, n))
    for user in list(node.users):  # a region returns a tuple
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _detached(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    detached = module.graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached
