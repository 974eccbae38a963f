"""Batches: a torch DataLoader whose order is a function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from medyate_planner.data.datasets import Gathered
from medyate_planner.errors import InputError


class EpochSampler(Sampler[int]):
    """All places of a data set but the first `skip`, in order or permuted by (seed, epoch); the same every time it is
    iterated."""

    def __init__(self, count: int, *, shuffle: bool, seed: int, epoch: int, skip: int = 0) -> None:
        self.count = count
        self.shuffle = shuffle
        self.key = (seed, epoch)
        self.skip = skip

    def __len__(self) -> int:
        return max(0, self.count - self.skip)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.skip, self.count))
        order: list[int] = torch.randperm(self.count, generator=seeded_generator(*self.key)).tolist()
        return iter(order[self.skip :])


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    epoch: int,
    drop_last: bool,
    channels_last: bool = True,
    workers: int = 0,
    skip: int = 0,
) -> DataLoader[Any]:
    """Make the loader of one epoch; call it anew for each. No global random state is used or changed.

    A data set with `set_epoch` is told the epoch. Four-dimensional inputs come in channels_last format. An
    incomplete last batch is dropped only if there is a full one. The first `skip` batches are not loaded.

    Raises:
        InputError: a batch size below 1, or a data set without samples.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if batch_size < 1 or count < 1:
        raise InputError(f"expected a batch size of at least 1 and some samples, got {batch_size} and {count}")
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(count, shuffle=shuffle, seed=seed, epoch=epoch, skip=skip * batch_size),
        drop_last=drop_last and count >= batch_size,
        collate_fn=partial(collate, channels_last=channels_last),
        num_workers=workers,
        generator=seeded_generator(seed, epoch),
    )


def collate(samples: list[Any], *, channels_last: bool) -> Any:
    """Make one batch of samples; those of our own data sets are one already."""
    batch = (samples.inputs, samples.targets) if isinstance(samples, Gathered) else default_collate(samples)
    if isinstance(batch, Tensor):
        return _in_format(batch, channels_last)
    inputs, *rest = batch
    return (_in_format(inputs, channels_last) if isinstance(inputs, Tensor) else inputs, *rest)


def seeded_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator whose numbers depend on (seed, epoch) alone."""
    state = np.random.SeedSequence([seed % 2**64, epoch % 2**64]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def _in_format(inputs: Tensor, channels_last: bool) -> Tensor:
    if inputs.dim() == 4 and channels_last:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs.contiguous()
