"""How many channels of a layer could fit if nothing else were bought: bounds that make the integer program tight.

Updating anything in layer l keeps the pass-through of its whole reach, P_l bytes. What is left of the budget at the
end of forward, divided by what a channel keeps, bounds its quota; so does the moment of its own backward. Each bound
follows from constraints of the program (derived here), but not from their linear relaxation: there, a twentieth of a
layer pays a twentieth of its reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medyate_planner.graph import Layer
from medyate_planner.memory.model import MemoryModel, Step
from medyate_planner.memory.rules import Keep
from medyate_planner.planning.request import PlanRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The largest quota of each layer, and the layers of which nothing, not even a bias, fits."""

    quotas: Mapping[str, int]
    beyond_reach: frozenset[str]


def capacity(request: PlanRequest, limit_bytes: int) -> Capacity:
    """Bounds from single layers under `limit_bytes`; the request's own largest quotas where these are smaller."""
    if request.scope == "update":
        return _of_sums(request, limit_bytes)
    room = limit_bytes - _fixed_bytes(request)
    through = passthrough_of_reach(request)
    quotas = {}
    for layer in request.layers:
        cost = request.memory.costs[layer.name]
        upkeep = request.memory.upkeeps[layer.name].per_channel.total_bytes
        fits = max(0, room - through[layer.name]) // (cost.saved_bytes + upkeep)
        if len(request.memory.site_positions[layer.name]) == 1:  # kept, gradient and upkeep, at its own backward
            fits = min(fits, max(0, limit_bytes) // (cost.update_bytes + upkeep))
        quotas[layer.name] = _whole(request, layer, fits)
    return Capacity(quotas=quotas, beyond_reach=frozenset(name for name, n in through.items() if n > room))


def passthrough_of_reach(request: PlanRequest) -> Mapping[str, int]:
    """P_l: bytes kept at the end of forward because l is updated, beside its selected channels and what the head keeps
    anyway; for everything that may be bought, by name."""
    names = list(dict.fromkeys(unit.name for unit in (*request.layers, *request.biases)))
    bit = {name: 1 << place for place, name in enumerate(names)}
    for name in request.head:
        bit[name] = 1 << len(names)
    causes = _causes(request.memory, bit, head=1 << len(names))
    width = len(names) // 8 + 1
    total = np.zeros(len(names), dtype=np.int64)
    for keep, mask in causes.values():
        if mask >> len(names) or not _counts(request, keep):
            continue
        bits = np.frombuffer(mask.to_bytes(width, "little"), dtype=np.uint8)
        total += keep.nbytes * np.unpackbits(bits, bitorder="little")[: len(names)].astype(np.int64)
    return {name: int(total[place]) for place, name in enumerate(names)}


def _causes(memory: MemoryModel, bit: Mapping[str, int], *, head: int) -> Mapping[str, tuple[Keep, int]]:
    """For each storage that may be kept the layers, as bits, of which any makes it so."""
    upstream: dict[str, int] = {}
    found: dict[str, tuple[Keep, int]] = {}
    for step in memory.steps:
        own = bit.get(step.layer.name, 0) if step.layer is not None else 0
        for keep, mask in _holders(step, upstream, own if own != head or step.own else 0):
            if mask:
                found[keep.key] = (keep, found.get(keep.key, (keep, 0))[1] | mask)
        for source in step.op.sources:
            own |= upstream.get(source, 0)
        upstream[step.op.name] = own
    return found


def _holders(step: Step, upstream: Mapping[str, int], own: int) -> list[tuple[Keep, int]]:
    held = [(keep, upstream.get(source, 0)) for source, keeps in step.edges for keep in keeps]
    return held + [(keep, own) for keep in step.own if own]


def _counts(request: PlanRequest, keep: Keep) -> bool:
    """In scope `peak` inputs are resident, and outputs alive while the loss is computed."""
    if request.scope != "peak":
        return True
    number = request.peak.kept_storage(keep)
    return number is None or (request.peak.is_activation(number) and number not in request.peak.output_storages)


def _fixed_bytes(request: PlanRequest) -> int:
    """Bytes of the end of forward that are there whatever is bought; never more than the program's."""
    graph, costs = request.memory.graph, request.memory.costs
    head = sum(costs[name].saved_bytes * graph.layer_by_name[name].channels for name in request.head)
    if request.scope == "training":
        return head
    peak = request.peak
    outputs = sum(graph.storages[number].nbytes for number in peak.output_storages)
    weights = peak.weight_bytes if request.weights_in == "flash" else 0
    return head + peak.resident_bytes - weights + outputs + peak.loss.forward_bytes


def _of_sums(request: PlanRequest, limit_bytes: int) -> Capacity:
    memory = request.memory
    quotas = {
        layer.name: _whole(
            request,
            layer,
            max(0, limit_bytes)
            // (memory.costs[layer.name].update_bytes + memory.upkeeps[layer.name].per_channel.beside_index_bytes),
        )
        for layer in request.layers
    }
    return Capacity(quotas=quotas, beyond_reach=frozenset())


def _whole(request: PlanRequest, layer: Layer, fits: int) -> int:
    """A multiple of the granularity; 0 where the least quota does not fit."""
    most = min(fits // request.granularity * request.granularity, request.most(layer))
    return most if most >= request.least(layer) else 0
