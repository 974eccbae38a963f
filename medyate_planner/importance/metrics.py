"""Importance of channels and layers: raw, RGN, LaRa (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from medyate_planner.errors import unknown_name
from medyate_planner.importance.energy import Importance, Vector

METRICS = ("raw", "rgn", "lara")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """One layer's place in a ranking."""

    name: str
    score: float
    share: float


def channel_scores(importance: Importance, layer: str, metric: str, cost_per_channel: int) -> Vector:
    """Score of each channel: raw sqrt(E_c); RGN mean ||g_c|| / cost; LaRa E_c / cost (its mean is the layer's)."""
    if metric == "raw":
        return np.sqrt(importance.energy[layer])
    if metric == "rgn":
        return importance.norms[layer] / cost_per_channel
    if metric == "lara":
        return importance.energy[layer] / cost_per_channel
    raise unknown_name("metric", metric, METRICS)


def rank_layers(importance: Importance, metric: str, costs: Mapping[str, int]) -> tuple[LayerScore, ...]:
    """Layers by falling score; `costs` are bytes (or elements) of one channel of each layer to be ranked.

    raw and RGN sum over channels (RGN: TraDy, arXiv 2510.19675). LaRa is the mean energy of a channel over its cost:
    derived here, because the formula of arXiv 2510.20979 was not available. If n of C channels are drawn uniformly the
    expected energy captured is n * mean(E) for n * cost bytes, so mean(E) / cost is the value of a byte.
    """
    scores = {}
    for name, cost in costs.items():
        channels = channel_scores(importance, name, metric, cost)
        scores[name] = float(channels.mean() if metric == "lara" else channels.sum())
    total = sum(scores.values()) or 1.0
    ordered = sorted(scores, key=lambda name: (-scores[name], list(costs).index(name)))
    return tuple(LayerScore(name=name, score=scores[name], share=scores[name] / total) for name in ordered)


def weighed(importance: Importance, metric: str, costs: Mapping[str, int], bias_costs: Mapping[str, int]) -> Importance:
    """The importance as `metric` sees it: energies whose sums are what a value curve values. Derived here.

    raw: E_c as measured. RGN: (mean ||g_c|| / cost)², the square of TraDy's channel score. LaRa: E_c / cost, energy
    per byte. Biases likewise, by their own cost.
    """
    if metric == "raw":
        return importance
    power = 2 if metric == "rgn" else 1
    energy = {
        name: np.square(channel_scores(importance, name, metric, costs[name]))
        if metric == "rgn"
        else channel_scores(importance, name, metric, costs[name])
        for name in importance.energy
        if name in costs
    }
    biases = {
        name: value / bias_costs[name] ** power
        for name, value in importance.bias_energy.items()
        if bias_costs.get(name)
    }
    return replace(importance, energy=energy, bias_energy=biases)


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
