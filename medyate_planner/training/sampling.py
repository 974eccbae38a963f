"""Which channels are trained in an interval: without replacement, exactly the quota, a pure function of its arguments.

Random numbers depend on (seed, interval, layer) only, so a run can be replayed, resumed, and drawn on every rank alike.
Source: TraDy (arXiv 2510.19675) for `uniform`; MeDyate (arXiv 2510.20979) for `weighted`, whose exact formula was not
available: here probabilities are proportional to importance ** alpha.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from medyate_planner.errors import InputError

Method = Literal["uniform", "weighted", "top", "static"]
METHODS: tuple[str, ...] = get_args(Method)


def draw(
    method: str,
    *,
    layer: str,
    channels: int,
    quota: int,
    seed: int,
    interval: int,
    importance: Sequence[float] | None = None,
    alpha: float = 1.0,
) -> list[int]:
    """Indices of `quota` of `channels` input channels, ascending.

    `weighted` and `top` need the importance of every channel; `static` draws as interval 0 does, once and for all.

    Raises:
        InputError: unknown method, missing or unusable importance, quota out of range.
    """
    if method not in METHODS:
        raise InputError(f"sampling method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if not 0 <= quota <= channels:
        raise InputError(f"layer {layer}: expected a quota of 0 to {channels}, got {quota}")
    if seed < 0 or interval < 0:
        raise InputError(f"sampling: expected a seed and an interval of 0 or more, got {seed} and {interval}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"sampling: expected a finite alpha of 0 or more, got {alpha}")
    if quota == channels:
        return list(range(channels))
    generator = np.random.default_rng([seed, 0 if method == "static" else interval, zlib.crc32(layer.encode())])
    if method in ("uniform", "static"):
        return sorted(int(c) for c in generator.permutation(channels)[:quota])
    weights = _weights(importance, layer, channels)
    if method == "top":
        return sorted(int(c) for c in np.argsort(-weights, kind="stable")[:quota])
    return sorted(int(c) for c in _weighted_order(weights, alpha, generator)[:quota])


def _weighted_order(weights: np.ndarray, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """All channels in the order of successive weighted draws (Gumbel keys; Efraimidis and Spirakis 2006)."""
    with np.errstate(divide="ignore"):
        keys = alpha * np.log(weights) if alpha else np.zeros(len(weights))
    keys += generator.gumbel(size=len(weights))
    tie_break = generator.random(len(weights))
    return np.lexsort((tie_break, -keys))


def _weights(importance: Sequence[float] | None, layer: str, channels: int) -> np.ndarray:
    if importance is None:
        raise InputError(f"layer {layer}: this sampling needs the importance of its channels; pass --importance FILE")
    weights = np.asarray(importance, dtype=np.float64)
    if weights.shape != (channels,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError(f"layer {layer}: expected {channels} finite importances >= 0, got shape {weights.shape}")
    return weights
