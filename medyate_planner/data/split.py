"""Choose samples: split a test set off, or keep a number of them, evenly over the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medyate_planner.errors import InputError

Places = tuple[int, ...]


def split_stratified(targets: Sequence[int], *, test_fraction: float, seed: int) -> tuple[Places, Places]:
    """Places of the training and of the test samples, in order.

    Every class gives its rounded share to the test set, at least one sample, and keeps at least one; a class
    of one sample keeps it.

    Raises:
        InputError: a fraction that is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"--val-fraction {test_fraction}: expected a number above 0 and below 1")
    train: list[int] = []
    test: list[int] = []
    for places in _shuffled_classes(targets, seed):
        count = min(max(1, round(test_fraction * len(places))), len(places) - 1)
        test += places[:count]
        train += places[count:]
    return tuple(sorted(train)), tuple(sorted(test))


def limit_samples(targets: Sequence[int], *, limit: int | None, seed: int) -> Places:
    """Places of at most `limit` samples, in order, the classes taking turns.

    Raises:
        InputError: a limit below 1.
    """
    if limit is None:
        return tuple(range(len(targets)))
    if limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    turns = [(turn, place) for places in _shuffled_classes(targets, seed) for turn, place in enumerate(places)]
    turns.sort(key=lambda pair: pair[0])  # stable: within a turn the classes keep their order
    return tuple(sorted(place for _, place in turns[:limit]))


def _shuffled_classes(targets: Sequence[int], seed: int) -> list[list[int]]:
    labels = np.asarray(targets)
    return [
        np.random.default_rng([seed % 2**64, int(label)]).permutation(np.flatnonzero(labels == label)).tolist()
        for label in np.unique(labels)
    ]
