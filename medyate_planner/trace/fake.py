"""Small facts about tensors and FX nodes: identity of storages, fake twins, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map


def fake_twin(tensor: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    """A fake tensor of the same shape, strides and type on `device`; reads no memory of the original."""
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def storage_key(tensor: Tensor) -> int:
    """Identity of the storage a tensor lives in, valid while the storage lives."""
    return int(tensor.untyped_storage()._cdata)


def lookup(module: nn.Module, target: str) -> Tensor:
    """The parameter, buffer or constant that a get_attr node names."""
    *path, leaf = target.split(".")
    owner: Any = module
    for name in path:
        owner = getattr(owner, name)
    found: Tensor = getattr(owner, leaf)
    return found


def operator_name(target: Any) -> str:
    """`conv2d` for aten.conv2d.default, `getitem` for operator.getitem."""
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__) if packet is not None else str(getattr(target, "__name__", target))


def dtype_name(tensor: Tensor) -> str:
    """`float32` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def is_inplace(node: fx.Node) -> bool:
    """Whether the operator writes into its first operand."""
    name = operator_name(node.target)
    return name.endswith("_") and not name.startswith("_")


def signature_of(node: fx.Node, env: Mapping[fx.Node, Any], sources: Sequence[str]) -> Any:
    """What decides how a call behaves on fake tensors: operator, shapes, strides, types, literals, and which of its
    inputs need a gradient."""

    def describe(value: Any) -> Any:
        return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value

    described = fx.node.map_arg((node.args, node.kwargs), lambda n: tree_map(describe, env[n]))
    return node.target, repr(described), tuple(n.name in sources for n in node.all_input_nodes)
