"""Batches of given samples: which samples an epoch's batches hold, and a loader of some of those batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from medyate_planner.data.loader import EpochSampler, collate, seeded_generator


def places_by_batch(count: int, batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The samples of each full batch of an epoch, as `make_loader(shuffle=True, drop_last=True)` loads them."""
    order = list(EpochSampler(count, shuffle=True, seed=seed, epoch=epoch))
    return [order[start : start + batch_size] for start in range(0, count - batch_size + 1, batch_size)]


def load_places(
    dataset: Dataset[Any], chosen: Sequence[Sequence[int]], *, seed: int, epoch: int, workers: int = 0
) -> Iterable[Any]:
    """Load these batches, each as `make_loader` would: images in channels_last format."""
    if not chosen:
        return ()
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    return DataLoader(
        dataset,
        batch_sampler=chosen,  # type: ignore[arg-type]
        collate_fn=partial(collate, channels_last=True),
        num_workers=workers,
        generator=seeded_generator(seed, epoch),
    )
