"""Nodes of a graph before it is cut: what they give on fake inputs, and what leads to what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medyate_planner.trace.fake import fake_twin, lookup


def fake_values(lean: fx.GraphModule, nodes: Iterable[fx.Node], batch: int, device: torch.device) -> dict[fx.Node, Any]:
    """Results of these nodes on fake inputs of a batch size."""
    mode, env = FakeTensorMode(allow_non_fake_inputs=True), {}
    with mode, torch.no_grad():
        for node in nodes:
            if node.op == "placeholder":
                seen = node.meta["val"]
                shape, strides = (batch, *map(int, seen.shape[1:])), tuple(map(int, seen.stride()))
                env[node] = torch.empty_strided(shape, strides, dtype=seen.dtype, device=device)
            elif node.op == "get_attr":
                found = lookup(lean, str(node.target))
                env[node] = fake_twin(found, mode, str(found.device)) if isinstance(found, Tensor) else found
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                callee = lean.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                env[node] = callee(*args, **kwargs)  # type: ignore[operator]
    return env


def reached_from(starts: Iterable[fx.Node], nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The starts, and all that is made from them; `nodes` in execution order."""
    found = set(starts)
    for node in nodes:
        if any(value in found for value in node.all_input_nodes):
            found.add(node)
    return found


def upstream(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """These nodes, and all that they are made from."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def holder(lean: fx.GraphModule) -> nn.Module:
    """A module with everything that `lean` holds, under the same names, to which more can be added."""
    made = nn.Module()
    for name, module in lean.named_children():
        made.add_module(name, module)
    for name, parameter in lean.named_parameters(recurse=False):
        made.register_parameter(name, parameter)
    for name, buffer in lean.named_buffers(recurse=False):
        made.register_buffer(name, buffer, persistent=False)
    for name, value in vars(lean).items():
        if isinstance(value, Tensor):
            setattr(made, name, value)
    return made
