"""What one selected channel of a layer costs, in bytes (DESIGN section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from medyate_planner.families import EMBEDDING
from medyate_planner.graph import Layer, ModelGraph

INDEX_BYTES = 4
STATE_SLOTS = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelCost:
    """Bytes per selected input channel of one layer; saved bytes are listed per call site, in forward order."""

    gradient_bytes: int
    site_saved_bytes: tuple[int, ...]
    bias_gradient_bytes: int
    elements: int

    @property
    def saved_bytes(self) -> int:
        return sum(self.site_saved_bytes)

    @property
    def update_bytes(self) -> int:
        """Gradient and saved activation: the currency of scope `update`."""
        return self.gradient_bytes + self.saved_bytes


def channel_cost(graph: ModelGraph, layer: Layer) -> ChannelCost:
    """Cost of one channel of `layer`: gradient (C_out/G)*kh*kw*s, saved B*H*W*s (conv) or B*T*s (linear); of an
    embedding V*s for V rows, saved nothing (its indices are kept whole, see `Step.own`); of a norm s, and as much
    saved of the normalised input as a convolution saves of its own.

    `elements` is the accounting of TraDy (arXiv 2510.19675): weight and activation elements of one sample.
    """
    saved = []
    for site in layer.sites:
        spec = graph.values[graph.op_by_name[site].operands[0]]
        saves = site in graph.feeds_output and graph.op_by_name[site].family != EMBEDDING
        saved.append(spec.nbytes // layer.channels if saves else 0)
    first = graph.op_by_name[layer.sites[0]]
    positions = prod(graph.values[first.operands[0]].shape) // layer.channels // graph.batch_size
    per_sample = 0 if first.family == EMBEDDING else positions
    return ChannelCost(
        gradient_bytes=layer.elements_per_channel * layer.element_bytes,
        site_saved_bytes=tuple(saved),
        bias_gradient_bytes=layer.out_channels * layer.element_bytes if layer.bias else 0,
        elements=layer.elements_per_channel + per_sample,
    )
