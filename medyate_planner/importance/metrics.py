"""Importance of channels and layers: sized, raw, RGN, LaRa (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from medyate_planner.errors import unknown_name
from medyate_planner.graph import Layer
from medyate_planner.importance.energy import Importance, Vector
from medyate_planner.memory.model import MemoryModel

METRICS = ("sized", "raw", "rgn", "lara")
_NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """One layer's place in a ranking."""

    name: str
    score: float
    share: float


def channel_scores(
    importance: Importance, layer: str, metric: str, cost_per_channel: int, weights_per_channel: int = 1
) -> Vector:
    """Score of each channel.

    raw: sqrt(E_c), the root mean square of its gradient's norm. sized: m * sqrt(E_c), where m weights are the channel's
    (derived here; reports/bench/mobile). RGN: mean ||g_c|| / cost. LaRa: E_c / cost, whose mean is the layer's score.
    """
    if metric == "sized":
        return weights_per_channel * np.sqrt(importance.energy[layer])
    if metric == "raw":
        return np.sqrt(importance.energy[layer])
    if metric == "rgn":
        return importance.norms[layer] / cost_per_channel
    if metric == "lara":
        return importance.energy[layer] / cost_per_channel
    raise unknown_name("metric", metric, METRICS)


def rank_layers(
    importance: Importance, metric: str, costs: Mapping[str, int], weights: Mapping[str, int] = _NONE
) -> tuple[LayerScore, ...]:
    """Layers by falling score. For each layer to be ranked `costs` has the bytes (or elements) of one channel, and
    `weights` how many weights a channel has, which sized alone needs: 1 where it does not say.

    Sized, raw and RGN sum over channels (RGN: TraDy, arXiv 2510.19675). LaRa is the mean energy of a channel over its
    cost: derived here, because the formula of arXiv 2510.20979 was not available. If n of C channels are drawn
    uniformly the expected energy captured is n * mean(E) for n * cost bytes, so mean(E) / cost is the value of a byte.
    """
    scores = {}
    for name, cost in costs.items():
        channels = channel_scores(importance, name, metric, cost, weights.get(name, 1))
        scores[name] = float(channels.mean() if metric == "lara" else channels.sum())
    total = sum(scores.values()) or 1.0
    ordered = sorted(scores, key=lambda name: (-scores[name], list(costs).index(name)))
    return tuple(LayerScore(name=name, score=scores[name], share=scores[name] / total) for name in ordered)


def weighed(importance: Importance, metric: str, memory: MemoryModel) -> Importance:
    """The importance as `metric` sees it: energies whose sums are what a value curve values. Derived here.

    The squares of the channels' scores: raw E_c as measured, sized m² E_c, RGN (mean ||g_c|| / cost)²; but LaRa E_c /
    cost, energy per byte. Biases likewise, by their own number of elements and their own cost.
    """
    if metric == "raw":
        return importance
    energy: dict[str, Vector] = {}
    biases: dict[str, float] = {}
    for unit in memory.graph.units:
        cost = memory.costs[unit.name]
        if unit.name in importance.energy:
            scores = channel_scores(importance, unit.name, metric, cost.update_bytes, unit.elements_per_channel)
            energy[unit.name] = scores if metric == "lara" else np.square(scores)
        if unit.bias is not None and unit.name in importance.bias_energy:
            biases[unit.name] = importance.bias_energy[unit.name] * _of_bias(metric, unit, cost.bias_gradient_bytes)
    return replace(importance, energy=energy, bias_energy=biases)


def _of_bias(metric: str, unit: Layer, cost: int) -> float:
    """Factor on the energy of a bias' gradient."""
    if metric == "sized":
        return unit.out_channels**2
    return 1 / cost**2 if metric == "rgn" else 1 / cost


def top_layers(ranking: tuple[LayerScore, ...], share: float = 0.97) -> tuple[str, ...]:
    """The first layers that together carry `share` of the total (TraDy's choice of K)."""
    chosen: list[str] = []
    carried = 0.0
    for entry in ranking:
        if carried >= share:
            break
        chosen.append(entry.name)
        carried += entry.share
    return tuple(chosen)
