"""A graph module as straight Python: what a step of small operators spends outside of its kernels, done once.

Parameters and sites are looked up once, not through the modules that hold them; operators are called through torch's
own Python functions where they have one, which is 0.5 to 3 us cheaper than through `torch.ops`. Same kernels, same
values.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn

from medyate_planner.trace.fake import lookup

_aten, _nn = torch.ops.aten, torch._C._nn
_FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    _aten.conv1d.default: torch.conv1d,
    _aten.conv2d.default: torch.conv2d,
    _aten.conv3d.default: torch.conv3d,
    _aten.linear.default: _nn.linear,
    _aten.addmm.default: torch.addmm,
    _aten.matmul.default: torch.matmul,
    _aten.relu.default: torch.relu,
    _aten.relu_.default: torch.relu_,
    _aten.hardtanh.default: _nn.hardtanh,
    _aten.hardtanh_.default: _nn.hardtanh_,
    _aten.hardswish.default: _nn.hardswish,
    _aten.hardswish_.default: _nn.hardswish_,
    _aten.gelu.default: _nn.gelu,
    _aten.silu.default: _nn.silu,
    _aten.silu_.default: _nn.silu_,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.softmax.int: torch.softmax,
    _aten.batch_norm.default: torch.batch_norm,
    _aten.layer_norm.default: torch.layer_norm,
    _aten.max_pool2d.default: torch.max_pool2d,
    _aten.adaptive_avg_pool2d.default: _nn.adaptive_avg_pool2d,
    _aten.mean.dim: torch.mean,
    _aten.add.Tensor: torch.add,
    _aten.mul.Tensor: torch.mul,
    _aten.cat.default: torch.cat,
}


def called_directly(target: Any) -> Callable[..., Any]:
    """torch's own function of an operator, which takes the same arguments, if it is known here; else the operator."""
    found: Callable[..., Any] = _FUNCTIONS.get(target, target)
    return found


def straight(module: fx.GraphModule) -> Callable[..., Any]:
    """A function that computes what `module` does, with the parameters and submodules that it has now.

    Node names stand at the beginning of its lines, as in a graph module's own code.
    """
    with warnings.catch_warnings():  # torch's own graph copy warns about a deprecation of its own
        warnings.simplefilter("ignore", FutureWarning)
        twin = fx.GraphModule(module, copy.deepcopy(module.graph))
    held = SimpleNamespace(**{name: value for name, value in vars(module).items() if name.endswith("_spec")})
    for node in twin.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            value = lookup(module, str(node.target))
            node.target = f"held_{node.name}"
            setattr(held, node.target, _entry(value) if isinstance(value, nn.Module) else value)
        elif node.op == "call_function":
            node.target = called_directly(node.target)
    twin.recompile()
    return functools.partial(type(twin).forward, held)


def _entry(site: nn.Module) -> Callable[..., Any]:
    """What to call in a module's stead, past its hooks: it has none."""
    found: Callable[..., Any] = getattr(site, "uncompiled", site.forward)
    return found
