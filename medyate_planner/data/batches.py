"""A data set as the batches of a training."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from medyate_planner.data.datasets import ArrayDataset, ImageDataset
from medyate_planner.data.load import DataBundle
from medyate_planner.data.loader import make_loader
from medyate_planner.errors import InputError
from medyate_planner.training.batches import Batches


def batches_of(bundle: DataBundle, batch_size: int, *, seed: int, workers: int = 0) -> Batches:
    """Seeded loaders over a data set, one per epoch.

    Samples of our own data sets are functions of (seed, epoch, index): a run that goes on within an epoch need not load
    those before. Others may draw random numbers in the order in which they are loaded.
    """
    count = len(bundle.train)  # type: ignore[arg-type]
    if count < batch_size:
        raise InputError(
            f"the training set has {count} samples, fewer than one batch of {batch_size}; add data, or plan again "
            "with a smaller --batch-size"
        )

    def train_from(epoch: int, done: int) -> DataLoader[Any]:
        return make_loader(
            bundle.train, batch_size, shuffle=True, seed=seed, epoch=epoch, drop_last=True, workers=workers, skip=done
        )

    return Batches(
        train=lambda epoch: train_from(epoch, 0),
        test=lambda: make_loader(
            bundle.test, max(batch_size, 32), shuffle=False, seed=seed, epoch=0, drop_last=False, workers=workers
        ),
        steps_per_epoch=count // batch_size,
        train_from=train_from if isinstance(bundle.train, (ArrayDataset, ImageDataset)) else None,
    )
