"""Live bytes of a training step, added up moment by moment as the docstring of memory/peak.py defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

from builders import FLOAT_BYTES, channels_of
from simulation import bias_bytes, compact_bytes, held_for, slice_of_a_channel, upstream_of_outputs

from medyate_planner.graph import Layer, ModelGraph, Op
from medyate_planner.memory.model import LossCost


@dataclass(frozen=True)
class _Moment:
    """What is alive at one moment whatever the quotas; the compact copies made up to `until`, and weight gradients."""

    fixed: int
    until: int
    gradients: tuple[tuple[str, int], ...] = ()


class LivePeak:
    """The most bytes that are live in a step in mode fused; everything between that has not been proven short-lived."""

    def __init__(self, graph: ModelGraph, loss: LossCost, full: Iterable[str] = ()) -> None:
        self.graph, self.loss, self.full = graph, loss, frozenset(full)
        self.units = {unit.name: unit for unit in graph.units}
        self.owner = {site: unit for unit in graph.units for site in unit.sites}
        self.upstream = upstream_of_outputs(graph)
        self._moments: dict[tuple[frozenset[str], frozenset[str]], list[_Moment]] = {}

    @cached_property
    def weights(self) -> int:
        """Parameters and buffers."""
        return sum(FLOAT_BYTES * prod(shape) for shape, _ in self.graph.parameters.values()) + self.graph.buffer_bytes

    @cached_property
    def resident(self) -> int:
        """Weights, inputs, targets, and some scalars."""
        inputs = {self.graph.values[name].storage for name in self.graph.inputs}
        return self.weights + sum(self.graph.storages[n].nbytes for n in inputs) + self.loss.target_bytes + 256

    def bytes(self, quotas: Mapping[str, int], biases: Iterable[str] = ()) -> int:
        """Live bytes at the largest moment."""
        chosen = {name: n for name, n in quotas.items() if n and name not in self.full}
        indices = 4 * sum(chosen.values())
        chosen |= {name: channels_of(self.units[name]) for name in self.full}
        biases = frozenset(biases)
        pattern = (frozenset(chosen), biases)
        if pattern not in self._moments:
            self._moments[pattern] = list(self._walk(*pattern))
        copies = [0] * (len(self.graph.ops) + 1)
        slices = {name: bias_bytes(self.units[name]) for name in biases | self.full}
        for name, n in chosen.items():
            unit = self.units[name]
            slices[name] = slices.get(name, 0) + n * slice_of_a_channel(unit)
            for site in unit.sites:
                if site in self.upstream:
                    place = self.graph.position[site]
                    copies[place] = n * compact_bytes(self.graph, unit, self.graph.ops[place])
        compact = list(accumulate(copies))
        largest = max(
            moment.fixed + compact[moment.until] + sum(slices[name] * count for name, count in moment.gradients)
            for moment in self._moments[pattern]
        )
        return self.resident + indices + largest

    def _walk(self, chosen: frozenset[str], biases: frozenset[str]) -> Iterator[_Moment]:
        graph, storages, end = self.graph, self.graph.storages, len(self.graph.ops)
        trained = chosen | biases
        active: set[str] = set()
        kept: dict[str, tuple[int, int]] = {}  # from where, bytes
        for place, op in enumerate(graph.ops):
            if op.name not in self.upstream:
                continue
            for source in op.sources:
                if source in active:
                    active.add(op.name)
                    for key, nbytes in held_for(graph, op, source).items():
                        kept.setdefault(key, (place, nbytes))
            if op.name in self.owner and self.owner[op.name].name in trained:
                active.add(op.name)
        kept_storages = {
            int(key.removeprefix("storage/")): since for key, (since, _) in kept.items() if "storage/" in key
        }
        kept_storages = {n: since for n, since in kept_storages.items() if storages[n].kind == "activation"}
        own_things = [entry for key, entry in kept.items() if not key.startswith("storage/")]

        def held(until: int) -> int:
            shared = sum(storages[n].nbytes for n, since in kept_storages.items() if since <= until)
            return shared + sum(nbytes for since, nbytes in own_things if since <= until)

        for place, op in enumerate(graph.ops):
            alive = {n for n in self._born if self._born[n] <= place and (self._last[n] >= place or n in kept_storages)}
            things = sum(nbytes for since, nbytes in own_things if since <= place)
            space = _forward_space(graph, op, op.name in active)
            yield _Moment(sum(storages[n].nbytes for n in alive) + things + space, place)
        things = sum(nbytes for _, nbytes in own_things)
        outputs = {spec.storage for op in graph.ops if op.name in graph.outputs for spec in op.outputs}
        alive = outputs | set(kept_storages)
        yield _Moment(sum(storages[n].nbytes for n in alive) + things + self.loss.forward_bytes, end)
        yield _Moment(held(end) + self.loss.forward_bytes + self.loss.backward_bytes, end)
        yield from self._walk_back(active, chosen, trained, held)

    def _walk_back(
        self, active: set[str], chosen: frozenset[str], trained: frozenset[str], held: Callable[[int], int]
    ) -> Iterator[_Moment]:
        graph, end = self.graph, len(self.graph.ops)
        readers = {name: [graph.position[op.name] for op in graph.ops if name in op.sources and op.name in active]
                   for name in active}  # fmt: skip
        start = {name: end if name in graph.outputs else max(places) for name, places in readers.items()}

        def waits(name: str, now: int) -> bool:
            """Whether the gradient of what `name` made is alive: made, and not used up or handed on as a view."""
            op = graph.op_by_name[name]
            if graph.position[name] <= now:
                return now < start[name]
            return op.family == "keeps_nothing" and any(
                waits(s, now) if len(readers[s]) == 1 else now >= min(readers[s]) for s in op.sources if s in active
            )

        sizes = {name: sum(prod(x.shape) * FLOAT_BYTES for x in graph.op_by_name[name].outputs) for name in active}
        arrived = dict.fromkeys(trained, 0)
        visits = {name: sum(site in self.upstream for site in self.units[name].sites) for name in trained}
        for now in range(end - 1, -1, -1):
            op = graph.ops[now]
            if op.name not in active:
                continue
            owner = self.owner.get(op.name)
            alive = {name: 1 for name in trained if 0 < arrived[name] < visits[name]}
            if owner is not None and owner.name in trained:
                alive[owner.name] = alive.get(owner.name, 0) + 1
                arrived[owner.name] += 1
            below = [s for s in op.sources if s in active]
            fixed = held(now) + sum(sizes[name] for name in active if waits(name, now))
            fixed += sum(sizes[s] for s in below if start[s] > now)  # a sum is replaced by a new one
            updated = owner is not None and owner.name in chosen
            fixed += max(sum(sizes[s] for s in below), _backward_space(graph, op, owner, updated))
            yield _Moment(fixed + self.loss.backward_bytes, now, tuple(alive.items()))

    @cached_property
    def _born(self) -> Mapping[int, int]:
        places = [(spec.storage, i) for i, op in enumerate(self.graph.ops) for spec in op.outputs]
        return {n: i for n, i in reversed(places) if self.graph.storages[n].kind == "activation"}

    @cached_property
    def _last(self) -> Mapping[int, int]:
        """Where a storage is read for the last time; one that nobody reads is dropped where it was made."""
        graph = self.graph
        last = dict(self._born)
        for place, op in enumerate(graph.ops):
            for x in op.operands:
                last[graph.values[x].storage] = place
        last |= {spec.storage: len(graph.ops) for op in graph.ops if op.name in graph.outputs for spec in op.outputs}
        return last


def _forward_space(graph: ModelGraph, op: Op, reached: bool) -> int:
    """Beside operands and results; the numbers are those of the lean operators, derived once more."""
    own = op.workspace.forward_bytes
    if not reached:
        return own
    batch, channels = op.outputs[0].shape[:2]
    if op.family in ("batch_norm", "group_norm"):
        return own + 32 * channels * (batch if op.family == "group_norm" else 1)
    lean = {
        "max_pool": (8 + 8 + 1) * prod(op.outputs[0].shape)
        + 2
        * prod(graph.values[op.operands[0]].shape[2:])  # what turns a distance into a place: a byte, padding allowed
        + 16 * 256,  # the places of the largest window
        "linear": prod(graph.values[op.operands[0]].shape) * FLOAT_BYTES,
    }
    return max(own, lean.get(op.family, 0))


def _backward_space(graph: ModelGraph, op: Op, owner: Layer | None, updated: bool) -> int:
    """The gradients that an operator makes, and what else it needs to make them."""
    elements = prod(op.outputs[0].shape)
    given, made = FLOAT_BYTES * elements, FLOAT_BYTES * prod(graph.values[op.operands[0]].shape)
    selected = 2 * given if updated else 0
    if op.family in ("relu", "clamp"):
        return made
    if op.family == "batch_norm":
        return given + 32 * op.outputs[0].shape[1] + selected
    if op.family == "max_pool":
        return made + 2 * 8 * elements + given
    if op.family == "linear":
        return made + 2 * given
    if op.family == "conv":
        assert owner is not None
        copies = owner.weight_shape[1] * (given + 32 * owner.weight_shape[0])  # for each channel of a group
        return max(made, copies) + made if updated and owner.groups > 1 else made
    return op.workspace.backward_bytes + given + (selected if op.family == "group_norm" else 0)
