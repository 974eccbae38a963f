"""Which channels are trained in an interval: without replacement, exactly the quota, a pure function of its arguments.

Random numbers depend on (seed, interval, layer) only, so a run can be replayed, resumed, and drawn on every rank alike.
With boosting (training/boosting.py) the importance given here is the sampler's state: it depends on the gradients seen.
Source: TraDy (arXiv 2510.19675) for `uniform`; MeDyate (arXiv 2510.20979) for `weighted`, whose exact formula was not
available: here probabilities are proportional to importance ** alpha.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from medyate_planner.errors import InputError, unknown_name
from medyate_planner.planning.plan import Plan

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
    importance: Sequence[float] | np.ndarray | None = None,
    alpha: float = 1.0,
) -> list[int]:
    """Indices of `quota` of `channels` input channels, ascending.

    `weighted` and `top` need the importance of every channel; `static` draws as interval 0 does, once and for all.

    Raises:
        InputError: unknown method, missing or unusable importance, quota out of range.
    """
    if method not in METHODS:
        raise unknown_name("sampling method", method, METHODS)
    if not 0 <= quota <= channels:
        raise InputError(f"layer {layer}: expected a quota of 0 to {channels}, got {quota}")
    if seed < 0 or interval < 0:
        raise InputError(f"sampling: expected a seed and an interval of 0 or more, got {seed} and {interval}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"sampling: expected a finite alpha of 0 or more, got {alpha}")
    if quota == channels:
        return list(range(channels))
    keys = draw_keys(
        method, layer=layer, channels=channels, seed=seed, interval=interval, importance=importance, alpha=alpha
    )
    return sorted(int(c) for c in keys.order[:quota])


def draw_planned(
    plan: Plan, interval: int, importance: Mapping[str, Sequence[float] | np.ndarray] | None
) -> dict[str, list[int]]:
    """The channels of an interval by layer, as a plan's sampling says; `importance` of each layer's channels.

    Raises:
        InputError: the sampling goes by importance, and there is none.
    """
    sampling = plan.sampling
    if sampling.channels is not None:
        return {name: list(chosen) for name, chosen in sampling.channels.items()}
    channels = {layer.name: layer.channels for layer in plan.layers}
    return {
        name: draw(
            sampling.method,
            layer=name,
            channels=channels[name],
            quota=quota,
            seed=sampling.seed,
            interval=interval,
            importance=None if importance is None else importance[name],
            alpha=sampling.alpha,
        )
        for name, quota in plan.quotas(interval).items()
    }


@dataclass(frozen=True, slots=True)
class DrawKeys:
    """All channels of a layer in the order in which they are drawn, and a key for each place: over several layers,
    channels are drawn in the order of falling keys."""

    order: np.ndarray
    keys: np.ndarray


def draw_keys(
    method: str,
    *,
    layer: str,
    channels: int,
    seed: int,
    interval: int,
    importance: Sequence[float] | np.ndarray | None = None,
    alpha: float = 1.0,
) -> DrawKeys:
    """The whole order of a draw. A layer's first n places are what `draw` gives for a quota of n, as a set.

    Over several layers, falling keys are a uniform order of all channels (`uniform`, `static`), successive draws with
    probabilities proportional to importance ** alpha (`weighted`: Gumbel keys; Efraimidis and Spirakis 2006), or
    falling importance (`top`).
    """
    generator = np.random.default_rng([seed, 0 if method == "static" else interval, zlib.crc32(layer.encode())])
    if method in ("uniform", "static"):
        order = generator.permutation(channels)
        return DrawKeys(order, -np.sort(generator.random(channels)))
    weights = _weights(importance, layer, channels)
    if method == "top":
        order = np.argsort(-weights, kind="stable")
        return DrawKeys(order, weights[order])
    with np.errstate(divide="ignore"):
        keys = alpha * np.log(weights) if alpha else np.zeros(len(weights))
    keys += generator.gumbel(size=len(weights))
    order = np.lexsort((generator.random(len(weights)), -keys))
    return DrawKeys(order, keys[order])


def _weights(importance: Sequence[float] | np.ndarray | None, layer: str, channels: int) -> np.ndarray:
    if importance is None:
        raise InputError(f"layer {layer}: this sampling needs the importance of its channels; pass --importance FILE")
    weights = np.asarray(importance, dtype=np.float64)
    if weights.shape != (channels,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError(f"layer {layer}: expected {channels} finite importances >= 0, got shape {weights.shape}")
    return weights
