"""The global random generators that a model, a loss or a data set may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medyate_planner.errors import InputError


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all of them, and put them back as they were in the end."""
    before = random_state(device)
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        restore_random_state(before, device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Their states, as tensors on the host; on a CUDA device that of its generator too."""
    numbers: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]
    _, keys, position, has_gauss, gauss = numbers
    _, words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.append(keys.astype(np.int64), (position, has_gauss, _bits(gauss)))),
        "python": torch.from_numpy(np.array((*words, next_gauss is not None, _bits(next_gauss or 0.0)), np.int64)),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`.

    Raises:
        InputError: a state is missing, or is none.
    """
    try:
        *keys, position, has_gauss, gauss = state["numpy"].tolist()
        *words, has_next, next_gauss = state["python"].tolist()
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, _number(gauss)))
        random.setstate((3, tuple(words), _number(next_gauss) if has_next else None))
        torch.set_rng_state(state["torch"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"random state: can not be taken over ({error}); start over") from error


def _bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))


def _number(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
