"""The memory model of a graph: which operators hold what, at which position, for which gradient.

Everything that costs bytes is listed here once. `footprint` evaluates it for given updates (exactly, in integers);
the planner's formulation turns the same list into constraints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer, ModelGraph, Op
from medyate_planner.memory.channels import INDEX_BYTES, ChannelCost, channel_cost
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.rules import Keep, kept_by_update, passthrough


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """What is trained: channels per layer, biases by layer name, and the head layers (in full, without an index)."""

    quotas: Mapping[str, int]
    biases: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()

    @property
    def layers(self) -> frozenset[str]:
        """Layers of which anything is updated."""
        return frozenset(name for name, n in self.quotas.items() if n > 0) | self.biases | self.full


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCost:
    """What the loss needs beside outputs and targets: the target's bytes, the most it has alive in forward (what it
    keeps included) and in backward (the gradients of the outputs included)."""

    target_bytes: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator that may lie in the reach: what it keeps for the gradient to each of its sources, and what its
    layer keeps when its weight is updated (`own`), beside the selected channels."""

    position: int
    op: Op
    edges: tuple[tuple[str, tuple[Keep, ...]], ...]
    layer: Layer | None
    own: tuple[Keep, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """Bytes that are there all the time because channels are trained: indices, optimizer state, working copies."""

    index_bytes: int = 0
    state_bytes: int = 0
    copy_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.index_bytes + self.state_bytes + self.copy_bytes

    @property
    def beside_index_bytes(self) -> int:
        """Optimizer state and working copies: what scope `update` counts."""
        return self.state_bytes + self.copy_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitUpkeep:
    """Upkeep of one layer: of each selected channel, once if there are any, and of its bias if that is updated."""

    per_channel: Upkeep
    per_weight: Upkeep
    per_bias: Upkeep


class MemoryModel:
    """Costs of a `ModelGraph` under an update mode, worked out once."""

    def __init__(
        self,
        graph: ModelGraph,
        *,
        loss: tuple[Keep, ...] = (),
        loss_cost: LossCost = LossCost(),
        mode: UpdateMode = FUSED,
    ) -> None:
        self.graph = graph
        self.loss = loss
        self.loss_cost = loss_cost
        self.mode = mode

    def under(self, mode: UpdateMode) -> MemoryModel:
        """The same model in another update mode."""
        return (
            self if mode == self.mode else MemoryModel(self.graph, loss=self.loss, loss_cost=self.loss_cost, mode=mode)
        )

    @cached_property
    def site_layer(self) -> Mapping[str, Layer]:
        """Layer or norm updated at each operator that has a weight or a scale."""
        return {site: layer for layer in self.graph.units for site in layer.sites}

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Operators upstream of an output, in execution order."""
        graph = self.graph
        return tuple(
            Step(
                position=index,
                op=op,
                edges=tuple((source, passthrough(graph, op, source)) for source in op.sources),
                layer=self.site_layer.get(op.name),
                own=kept_by_update(graph, op) if op.name in self.site_layer else (),
            )
            for index, op in enumerate(graph.ops)
            if op.name in graph.feeds_output
        )

    @cached_property
    def costs(self) -> Mapping[str, ChannelCost]:
        """Bytes of one channel, by layer."""
        return {layer.name: channel_cost(self.graph, layer) for layer in self.graph.units}

    @cached_property
    def site_positions(self) -> Mapping[str, tuple[int, ...]]:
        """Positions of each layer's operators that lie upstream of an output, in execution order."""
        graph = self.graph
        return {
            layer.name: tuple(graph.position[site] for site in layer.sites if site in graph.feeds_output)
            for layer in graph.units
        }

    @cached_property
    def upkeeps(self) -> Mapping[str, UnitUpkeep]:
        """What training a channel or the bias of a layer has in memory all the time, by layer."""
        mode, found = self.mode, {}
        for name, cost in self.costs.items():
            found[name] = UnitUpkeep(
                per_channel=Upkeep(
                    index_bytes=INDEX_BYTES,
                    state_bytes=mode.state_bytes(cost.gradient_bytes, 0),
                    copy_bytes=mode.copy_bytes(cost.gradient_bytes),
                ),
                per_weight=Upkeep(state_bytes=mode.state_bytes(0, 1)),
                per_bias=Upkeep(state_bytes=mode.state_bytes(cost.bias_gradient_bytes, 1)),
            )
        return found

    def upkeep_in_full(self, name: str) -> Upkeep:
        """Of a layer in full: it has no index, and its own weight is what the optimizer steps."""
        layer, cost = self.graph.layer_by_name[name], self.costs[name]
        nbytes = cost.gradient_bytes * layer.channels + cost.bias_gradient_bytes
        return Upkeep(state_bytes=self.mode.state_bytes(nbytes, 2 if layer.bias else 1))

    def upkeep(self, updates: Updates) -> Upkeep:
        """What these updates have in memory all the time."""
        index_bytes = state_bytes = copy_bytes = 0
        for name, channels in updates.quotas.items():
            if channels and name not in updates.full:
                unit = self.upkeeps[name]
                index_bytes += unit.per_channel.index_bytes * channels
                state_bytes += unit.per_channel.state_bytes * channels + unit.per_weight.state_bytes
                copy_bytes += unit.per_channel.copy_bytes * channels
        for name in updates.biases - updates.full:
            state_bytes += self.upkeeps[name].per_bias.state_bytes
        for name in updates.full:
            state_bytes += self.upkeep_in_full(name).state_bytes
        return Upkeep(index_bytes=index_bytes, state_bytes=state_bytes, copy_bytes=copy_bytes)

    @property
    def gradients_outlive_backward(self) -> bool:
        """Whether gradients of earlier passes are alive during a pass."""
        return self.mode.accumulation > 1

    @cached_property
    def first_sites(self) -> Mapping[int, tuple[str, ...]]:
        """The layers whose gradient is complete after the backward of the operator at a position."""
        found: dict[int, tuple[str, ...]] = {}
        for name, sites in self.site_positions.items():
            if sites:
                found[sites[0]] = (*found.get(sites[0], ()), name)
        return found

    def gradient_copies(self, position: int) -> Mapping[str, int]:
        """How many copies of which layers' gradients are being made during the backward of the operator at `position`.

        One at a layer's only site. With several sites the sum is alive from the last site to the first, and beside
        it the part of each further site until it is added.
        """
        copies: dict[str, int] = {}
        owner = self.site_layer.get(self.graph.ops[position].name)
        if owner is not None:
            copies[owner.name] = 1 if position == self.site_positions[owner.name][-1] else 2
        for name in self._reused:
            sites = self.site_positions[name]
            if name not in copies and sites[0] <= position <= sites[-1]:
                copies[name] = 1
        return copies

    @cached_property
    def _reused(self) -> tuple[str, ...]:
        return tuple(name for name, sites in self.site_positions.items() if len(sites) > 1)

    def check(self, updates: Updates) -> None:
        """Raise `InputError` unless every layer exists and every quota lies in 0..C."""
        for name in (*updates.quotas, *updates.biases, *updates.full):
            if name not in self.graph.layer_by_name:
                raise InputError(f"updates name the layer {name!r}, which the model does not have")
        for name, quota in updates.quotas.items():
            channels = self.graph.layer_by_name[name].channels
            if not 0 <= quota <= channels:
                raise InputError(f"layer {name}: expected a quota of 0 to {channels} channels, got {quota}")
        for name in updates.biases:
            if self.graph.layer_by_name[name].bias is None:
                raise InputError(f"layer {name}: has no bias of its own to update")

    def channels(self, updates: Updates) -> Mapping[str, int]:
        """Number of updated channels, by layer; a layer in full updates all it has."""
        selected = {name: n for name, n in updates.quotas.items() if n > 0}
        return {**selected, **{name: self.graph.layer_by_name[name].channels for name in updates.full}}

    def active(self, updates: Updates) -> frozenset[str]:
        """Operators whose output needs a gradient: updated sites and all that lies downstream of one."""
        trained = updates.layers
        active: set[str] = set()
        for step in self.steps:
            is_site = step.layer is not None and step.layer.name in trained
            if is_site or any(source in active for source in step.op.sources):
                active.add(step.op.name)
        return frozenset(active)
