"""Batches of given samples are those of the loader of an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medyate_planner.data import make_loader
from medyate_planner.data.chosen import load_places, places_by_batch
from medyate_planner.data.datasets import ArrayDataset

COUNT, BATCH = 11, 4


class Plain(Dataset[Any]):
    """Somebody else's data set: one sample at a time, and told the epoch."""

    epoch = -1

    def __init__(self) -> None:
        self.x = torch.randn(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + self.epoch, index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def ours() -> Dataset[Any]:
    return ArrayDataset(Plain().x, list(range(COUNT)))


@pytest.mark.parametrize("make", [Plain, ours])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("epoch", [0, 3])
def test_chosen_batches_are_the_loaders(make: Any, workers: int, epoch: int) -> None:
    facts: dict[str, Any] = {"seed": 5, "epoch": epoch}
    expected = list(make_loader(make(), BATCH, shuffle=True, drop_last=True, **facts))
    places = places_by_batch(COUNT, BATCH, **facts)
    found = list(load_places(make(), places, workers=workers, **facts))
    assert len(found) == len(expected) == COUNT // BATCH
    for (x, target), (other, other_target), chosen in zip(found, expected, places, strict=True):
        assert target.tolist() == other_target.tolist() == chosen
        assert torch.equal(x, other)
        assert x.stride() == other.stride()
    (last,) = load_places(make(), places[1:], workers=workers, **facts)
    assert torch.equal(last[0], expected[1][0])


def test_no_chosen_batch_loads_nothing() -> None:
    assert list(load_places(Plain(), [], seed=0, epoch=0)) == []
