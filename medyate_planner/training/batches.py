"""Batches: where they come from, and how a model is called on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Pairs = Iterable[tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Where batches come from: `train(epoch)` and `test()` give (input, target) pairs; `steps_per_epoch` is how many
    of an epoch are trained on.

    `train_from(epoch, n)`, if given, is `train(epoch)` without its first n batches, and does not load them.
    """

    train: Callable[[int], Pairs]
    test: Callable[[], Pairs]
    steps_per_epoch: int
    train_from: Callable[[int, int], Pairs] | None = None

    def begin(self, epoch: int, done: int) -> Iterator[tuple[Any, Any]]:
        """An epoch's batches but for the first `done`; these are loaded and dropped without `train_from`."""
        if done and self.train_from is not None:
            return iter(self.train_from(epoch, done))
        batches = iter(self.train(epoch))
        for _ in range(done):
            next(batches, None)
        return batches


def invoke(callee: Callable[..., Any], x: Any) -> Any:
    """Call a model on one batch: a tensor, a tuple of inputs, or a dict of keyword inputs."""
    if isinstance(x, Mapping):
        return callee(**x)
    if isinstance(x, (tuple, list)):
        return callee(*x)
    return callee(x)


def to_model(model: nn.Module, value: Any, *, cast: bool = True) -> Any:
    """Tensors on the model's device and, if floating and `cast`, of its type."""
    first = next(iter(model.parameters()))

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if cast and leaf.is_floating_point():
            return leaf.to(device=first.device, dtype=first.dtype)
        return leaf.to(first.device)

    return tree_map(move, value)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a nest of containers."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
