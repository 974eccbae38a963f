"""Value curves: what n channels of a layer are worth (DESIGN section 6). Concave, so a linear program can use them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from medyate_planner.errors import InputError
from medyate_planner.importance.energy import Importance, Vector

OBJECTIVES = ("projection", "norm", "energy")
CURVES = ("uniform", "weighted", "top")
MAX_BREAKPOINTS = 8
_DRAWS = 64


@dataclass(frozen=True, kw_only=True)
class ValueCurve:
    """V(n) for n = 0..C, and its interpolation through at most 8 breakpoints, which the ILP maximises."""

    layer: str
    values: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.values) - 1

    @cached_property
    def breakpoints(self) -> tuple[int, ...]:
        """1, C and quadratically spaced numbers between them."""
        count = min(MAX_BREAKPOINTS, self.channels)
        if count < 2:
            return (self.channels,)
        steps = ((i / (count - 1)) ** 2 for i in range(count))
        return tuple(sorted({1 + round(step * (self.channels - 1)) for step in steps}))

    def interpolated(self, n: float) -> float:
        """The piecewise linear lower estimate of V through 0 and the breakpoints."""
        points = (0, *self.breakpoints)
        return float(np.interp(n, points, [self.values[p] for p in points]))

    @cached_property
    def segments(self) -> tuple[tuple[float, float], ...]:
        """(slope, intercept) of each piece; the interpolation is their minimum, because V is concave."""
        points = (0, *self.breakpoints)
        pieces = []
        for left, right in pairwise(points):
            slope = (self.values[right] - self.values[left]) / (right - left)
            pieces.append((slope, self.values[left] - slope * left))
        return tuple(pieces)


def value_curve(
    importance: Importance, layer: str, *, objective: str = "projection", curve: str = "uniform", seed: int = 0
) -> ValueCurve:
    """V(n) of a layer, from the energy C(n) that n of its channels are expected to capture. Derived here.

    C(n) by curve: `uniform` n * mean(E); `weighted` the mean over seeded draws without replacement, probabilities
    proportional to E, made concave; `top` the n largest. V(n) by objective: `energy` C(n); `norm` its root, the
    captured gradient's length; `projection` C(n) / sqrt(C(all)), its length along the whole layer's gradient. Layers
    are weighed as by `norm`, so that no dense one takes all; within a layer each channel is worth as much as the last,
    so that a layer is bought for good or not at all, where `norm` buys a few channels of every one.
    """
    if objective not in OBJECTIVES or curve not in CURVES:
        raise InputError(
            f"objective {objective!r} on curve {curve!r} is unknown; objectives: {', '.join(OBJECTIVES)}; "
            f"curves: {', '.join(CURVES)}"
        )
    energy = importance.energy[layer]
    captured = _captured(energy, curve, seed)
    values = _by_objective(captured, objective)
    return ValueCurve(layer=layer, values=tuple(float(v) for v in values))


def _by_objective(captured: Vector, objective: str) -> Vector:
    if objective == "energy" or not captured[-1] > 0:
        return captured
    if objective == "projection":
        shares: Vector = captured / np.sqrt(captured[-1])
        return shares
    roots: Vector = np.sqrt(captured)
    return roots


def bias_value(importance: Importance, layer: str, objective: str) -> float:
    """What updating a layer's bias is worth: its energy, or the root."""
    energy = importance.bias_energy.get(layer, 0.0)
    return energy if objective == "energy" else math.sqrt(energy)


def _captured(energy: Vector, curve: str, seed: int) -> Vector:
    count = len(energy)
    if curve == "uniform":
        uniform: Vector = np.arange(count + 1, dtype=np.float64) * np.float64(energy.mean())
        return uniform
    if curve == "top":
        return np.concatenate([[0.0], np.cumsum(np.sort(energy)[::-1])])
    generator = np.random.default_rng([seed, count])
    with np.errstate(divide="ignore"):
        logs = np.log(energy)
    total = np.zeros(count)
    for _ in range(_DRAWS):
        order = np.argsort(-(logs + generator.gumbel(size=count)), kind="stable")
        total += np.cumsum(energy[order])
    return _concave(np.concatenate([[0.0], total / _DRAWS]))


def _concave(values: Vector) -> Vector:
    """The least concave function above `values` (upper hull), so that noise of the estimate does no harm."""
    hull: list[int] = []
    for i in range(len(values)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (values[b] - values[a]) * (i - a) >= (values[i] - values[a]) * (b - a):
                break
            hull.pop()
        hull.append(i)
    envelope: Vector = np.interp(np.arange(len(values)), hull, values[hull])
    return envelope
