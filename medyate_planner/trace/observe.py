"""What PyTorch keeps for an operator without a rule: run it on fake tensors and look.

Equal calls (same operator, shapes, literals, and the same inputs sharing storages) are looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from medyate_planner.graph import MeasuredKeep
from medyate_planner.trace.fake import is_inplace, signature_of, storage_key
from medyate_planner.trace.kernels import RealKernels

Keeps = tuple[MeasuredKeep, ...]
Observation = tuple[tuple[str, ...], tuple[Keeps, ...]]


class Observer:
    """Observes the operators of one reading; `env` holds the fake values of its nodes.

    `number_of` gives the number of the storage a value lives in. A kept storage that is one of the operator's own
    results is numbered -1, -2, ...
    """

    def __init__(self, mode: FakeTensorMode, env: Mapping[fx.Node, Any], number_of: Callable[[Tensor], int]) -> None:
        self._mode, self._env, self._number_of = mode, env, number_of
        self._known: dict[Any, tuple[tuple[bool, ...], tuple[Keeps, ...]]] = {}

    def observe(self, node: fx.Node, sources: tuple[str, ...]) -> Observation:
        """The sources through which a gradient flows, and what is kept for each of them."""
        numbers = [self._number_of(self._env[n]) for n in node.all_input_nodes if isinstance(self._env[n], Tensor)]
        key = (signature_of(node, self._env, sources), tuple(numbers.index(number) for number in numbers))
        if key not in self._known:
            self._known[key] = self._look(node, sources, numbers)
        flows, kept = self._known[key]
        names = tuple(source for source, flowing in zip(sources, flows, strict=True) if flowing)
        return names, tuple(tuple(_numbered(keep, numbers) for keep in keeps) for keeps in kept)

    def _look(
        self, node: fx.Node, sources: tuple[str, ...], numbers: list[int]
    ) -> tuple[tuple[bool, ...], tuple[Keeps, ...]]:
        """Once per source; then together, to tell what is shared. Storages are given as places in `numbers`."""
        found = [self._kept_for(node, (source,), numbers) for source in sources]
        alone = [kept for kept in found if kept is not None]
        flowing = tuple(source for source, kept in zip(sources, found, strict=True) if kept is not None)
        together = self._kept_for(node, flowing, numbers) if len(flowing) > 1 else None
        return tuple(kept is not None for kept in found), label_fresh(alone, together)

    def _kept_for(self, node: fx.Node, sources: tuple[str, ...], numbers: list[int]) -> Keeps | None:
        """What is kept when these sources need a gradient; None when no gradient can flow."""
        inplace = is_inplace(node)
        places: dict[int, int] = {}
        kept: dict[int, MeasuredKeep] = {}
        held: list[Tensor] = []

        def leaf(n: fx.Node) -> Any:
            value = self._env[n]
            if not isinstance(value, Tensor):
                return value
            plain = value.detach()
            if n.name in sources:
                plain = plain.requires_grad_()
            if inplace:
                plain = plain.clone()
            places[storage_key(plain)] = numbers.index(self._number_of(value))
            held.append(plain)
            return plain

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)
            key = storage_key(tensor)
            kept[key] = MeasuredKeep(storage=places.get(key), nbytes=int(tensor.untyped_storage().nbytes()))
            return tensor

        target: Any = node.target
        with self._mode, torch.enable_grad():
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), leaf)
            with RealKernels(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = target(*args, **kwargs)
        outs = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
        if not any(t.requires_grad for t in outs):
            return None
        own = {storage_key(t): index for index, t in enumerate(outs)}
        return tuple(
            replace(keep, storage=-1 - own[key]) if keep.storage is None and key in own else keep
            for key, keep in kept.items()
        )


def label_fresh(alone: Sequence[Keeps], together: Keeps | None) -> tuple[Keeps, ...]:
    """Tell whether the fresh storages seen for different sources are the same ones (a statistic) or not (copies).

    Seen alone they can not be told apart; seen together their sum decides. In doubt they count separately.
    """
    by_source = [
        tuple(replace(k, label=f"{i}:{k.nbytes}") if k.storage is None else k for i, k in enumerate(keeps))
        for keeps in alone
    ]
    if together is None:
        return tuple(by_source)
    shared = {(k.label, k.nbytes) for keeps in by_source for k in keeps if k.storage is None}
    if sum(nbytes for _, nbytes in shared) == sum(k.nbytes for k in together if k.storage is None):
        return tuple(by_source)
    return tuple(
        tuple(replace(k, label=f"{source}.{k.label}") if k.storage is None else k for k in keeps)
        for source, keeps in enumerate(by_source)
    )


def _numbered(keep: MeasuredKeep, numbers: list[int]) -> MeasuredKeep:
    if keep.storage is None or keep.storage < 0:
        return keep
    return replace(keep, storage=numbers[keep.storage])
