"""Activations taken into the convolution that reads them: one node of autograd less, and no further tensor.

The activation runs in place, and backward clears its gradient in place: nobody else has the one or the other. At no
moment is more alive than without; the activation's bits are kept from the same moment on, and freed earlier.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from medyate_planner.training.passing import BatchNormSite, ClampSite, MaskedSite, ReluSite
from medyate_planner.training.straight import called_directly
from medyate_planner.training.weighted import ConvSite

_MAKE_NEW = (ConvSite, BatchNormSite)  # sites whose result is a new tensor, no view, which they do not keep


def merge_activations(lean: fx.GraphModule) -> None:
    """Take each relu and clamp that one convolution alone reads into it, where that is as good in place."""
    for node in list(lean.graph.nodes):
        site = _site(lean, node)
        if not isinstance(site, (ReluSite, ClampSite)) or len(node.users) != 1:
            continue
        reader, source = next(iter(node.users)), node.args[0]
        convolution = _site(lean, reader)
        if not isinstance(convolution, ConvSite) or reader.args[0] is not node or len(source.users) != 1:
            continue
        if not isinstance(_site(lean, source), _MAKE_NEW):
            continue
        _run_in_place(site)
        convolution.activation = site
        node.replace_all_uses_with(source)
        lean.graph.erase_node(node)
        delattr(lean, str(node.target))


def _site(lean: fx.GraphModule, node: Any) -> Any:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return lean.get_submodule(str(node.target)) if is_call else None


def _run_in_place(site: MaskedSite) -> None:
    if not site.inplace:
        name = site.operator.overloadpacket.__name__
        site.target, site.inplace = called_directly(getattr(torch.ops.aten, f"{name}_").default), True
