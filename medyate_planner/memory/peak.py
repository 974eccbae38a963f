"""Closed form of the live peak of a planned step: an upper bound (DESIGN sections 4 and 8; derived here).

Forward: at each operator live what came before and is still to be read, what is kept, and the operator's workspace.
Backward: at each operator what is still kept, the gradients that wait for their operators, its own results and
workspace, and the weight gradients. A gradient may be a view of the one it was computed from, which it then keeps
alive: whoever only passes views on is charged for both. Exact where nothing is shared, above the truth elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner import families as f
from medyate_planner.graph import ModelGraph, Op
from medyate_planner.memory.channels import INDEX_BYTES
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import footprint, gradient_bytes, held_at
from medyate_planner.memory.workspace import backward_workspace, forward_workspace

_SMALL_BYTES = 256  # norms, clipping factors, the anchor: scalars


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCost:
    """What the loss needs beside outputs and targets: the target's bytes, the most it has alive in forward (what it
    keeps included) and in backward (the gradients of the outputs included)."""

    target_bytes: int
    forward_bytes: int
    backward_bytes: int


def peak_bound(model: MemoryModel, updates: Updates, loss: LossCost) -> int:
    """A number of bytes that the live peak of a step in mode `fused` does not exceed, weights and inputs included."""
    bound = _Bound(model, updates, loss)
    return bound.resident_bytes + max(bound.forward_bytes(), bound.loss_bytes(), bound.backward_bytes())


class _Bound:
    def __init__(self, model: MemoryModel, updates: Updates, loss: LossCost) -> None:
        self.model, self.updates, self.loss = model, updates, loss
        self.graph = model.graph
        self.active = model.active(updates)
        self.channels = model.channels(updates)
        self.kept, self.kept_storages = self._kept()

    @property
    def resident_bytes(self) -> int:
        graph = self.graph
        inputs = {graph.values[name].storage for name in graph.inputs}
        indices = INDEX_BYTES * sum(n for name, n in self.channels.items() if name not in self.updates.full)
        held = sum(graph.storages[number].nbytes for number in inputs)
        return graph.parameter_bytes + graph.buffer_bytes + held + self.loss.target_bytes + indices + _SMALL_BYTES

    def _kept(self) -> tuple[list[int], dict[int, int]]:
        """Per position the bytes kept up to there that are not a value's storage, and from where a storage is kept."""
        fresh = [0] * len(self.graph.ops)
        storages: dict[int, int] = {}
        seen: set[str] = set()
        for step in self.model.steps:
            for keep in held_at(step, self.active, self.channels):
                if keep.key in seen:
                    continue
                seen.add(keep.key)
                if keep.key.startswith("storage/"):
                    number = int(keep.key.removeprefix("storage/"))
                    if self.graph.storages[number].kind == "activation":  # inputs are resident
                        storages[number] = step.position
                else:
                    fresh[step.position] += keep.nbytes
            if step.layer is not None and self.channels.get(step.layer.name):
                site = step.layer.sites.index(step.op.name)
                cost = self.model.costs[step.layer.name].site_saved_bytes[site]
                fresh[step.position] += cost * self.channels[step.layer.name]
        total, sums = 0, []
        for amount in fresh:
            total += amount
            sums.append(total)
        return sums, storages

    def forward_bytes(self) -> int:
        """The largest moment of forward, without what is resident."""
        last_read = _last_reads(self.graph)
        live: dict[int, int] = {}
        largest = 0
        for position, op in enumerate(self.graph.ops):
            for spec in op.outputs:
                if self.graph.storages[spec.storage].kind == "activation":
                    live[spec.storage] = self.graph.storages[spec.storage].nbytes
            space = forward_workspace(self.graph, op, reached=op.name in self.active)
            largest = max(largest, sum(live.values()) + self.kept[position] + space)
            for number in [n for n in live if last_read.get(n, -1) <= position and n not in self.kept_storages]:
                del live[number]
        return largest

    def loss_bytes(self) -> int:
        """The loss, with the outputs it reads."""
        outputs = {spec.storage for name in self.graph.outputs for spec in self.graph.op_by_name[name].outputs}
        held = sum(self.graph.storages[number].nbytes for number in outputs | set(self.kept_storages))
        return held + (self.kept[-1] if self.kept else 0) + self.loss.forward_bytes

    def backward_bytes(self) -> int:
        """The largest moment of backward, without what is resident."""
        graph, active = self.graph, self.active
        kept_at = {m.at: m for m in footprint(self.model, self.updates).moments}
        start, end = self._gradient_lives()
        weights = {
            name: gradient_bytes(self.model, name, self.channels.get(name, 0), self.updates)
            for name in self.updates.layers
        }
        # The loss's own backward, when nothing of the model's has been released.
        largest = kept_at["loss"].kept_bytes + self.loss.forward_bytes + self.loss.backward_bytes
        for position, op in enumerate(graph.ops):
            if op.name not in active:
                continue
            kept = self.kept[position] + sum(
                graph.storages[n].nbytes for n, since in self.kept_storages.items() if since <= position
            )
            waiting = sum(_nbytes(graph, name) for name in active if end[name] <= position <= start[name])
            below = sum(_nbytes(graph, source) for source in op.sources if source in active)
            copies = self.model.gradient_copies(position)
            updated = sum(weights[name] * count for name, count in copies.items() if name in weights)
            # a sum that waits for this operator's part is replaced by a new one
            summed = sum(_nbytes(graph, s) for s in op.sources if s in active and start.get(s, position) > position)
            largest = max(
                largest,
                kept + waiting + max(below, self._own_backward(op)) + summed + updated + self.loss.backward_bytes,
            )
        return largest

    def _own_backward(self, op: Op) -> int:
        layer = self.model.site_layer.get(op.name)
        updated = layer is not None and bool(self.channels.get(layer.name))
        return backward_workspace(self.graph, op, layer, updated=updated)

    def _gradient_lives(self) -> tuple[dict[str, int], dict[str, int]]:
        """Positions, from high to low, between which the gradient of an operator's output is alive."""
        graph, active = self.graph, self.active
        consumers: dict[str, list[int]] = {name: [] for name in active}
        for position, op in enumerate(graph.ops):
            if op.name in active:
                for source in op.sources:
                    if source in active:
                        consumers[source].append(position)
        start: dict[str, int] = {}
        end: dict[str, int] = {}
        for position, op in enumerate(graph.ops):  # sources come first
            if op.name not in active:
                continue
            whole = [*consumers[op.name], *([len(graph.ops)] if op.name in graph.outputs else [])]
            start[op.name] = max(whole, default=position)
            end[op.name] = position
            if op.family == f.KEEPS_NOTHING:  # its gradient may be passed on as a view
                for source in op.sources:
                    if source in active:
                        alone = len(consumers[source]) == 1
                        end[op.name] = min(end[op.name], end[source] if alone else min(consumers[source]))
        return start, end


def _last_reads(graph: ModelGraph) -> dict[int, int]:
    last: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for name in op.operands:
            if name in graph.values:
                last[graph.values[name].storage] = position
    for name in graph.outputs:
        if name in graph.op_by_name:
            for spec in graph.op_by_name[name].outputs:
                last[spec.storage] = len(graph.ops)
    return last


def _nbytes(graph: ModelGraph, name: str) -> int:
    return sum(spec.nbytes for spec in graph.op_by_name[name].outputs if spec.is_floating)
