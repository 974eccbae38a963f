"""Closed form of the live peak of a planned step: an upper bound (DESIGN sections 4 and 8; derived here).

Forward: at each operator live what came before and is still to be read, what is kept, and the operator's workspace.
Backward: at each operator what is still kept, the gradients that wait for their operators, its own results and
workspace, and the weight gradients. A gradient may be a view of the one it was computed from, which it then keeps
alive: whoever only passes views on is charged for both. Exact where nothing is shared, above the truth elsewhere.

`PeakModel` lists these moments once, as terms that hold if an operator is active or a layer updated; `bound` evaluates
them in integers, the planner's formulation turns the same list into constraints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from medyate_planner import families as f
from medyate_planner.graph import ModelGraph, Op
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.rules import Keep
from medyate_planner.memory.timeline import gradient_bytes, held_at
from medyate_planner.memory.workspace import backward_workspace, forward_workspace

_SMALL_BYTES = 256  # norms, clipping factors, the anchor: scalars
_STEP_INDEX_BYTES = 8  # per channel: its index in the type that writing the weights back wants
_STEP_ROW_BYTES = 8 * 4  # per weight row of a grouped layer: the same
STEP_NORM_BYTES = 16  # per parameter: its gradient's norm while gradients are clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardMoment:
    """One operator's forward: `live_bytes` are alive whatever is trained, `reached_bytes` more if it is active.

    `retired` are the storages read for the last time before it: alive only if they are kept.
    """

    position: int
    op: str
    live_bytes: int
    reached_bytes: int
    retired: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Bytes that are alive if any of these operators is active."""

    nbytes: int
    if_active: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardMoment:
    """One active operator's backward, beside what is kept and the weight gradients.

    All of `waiting` (gradients made and not yet used up), and the larger of `results` (the gradients it makes) and
    its own workspace, `own_bytes`, with `updated_bytes` more if channels of its layer are trained.
    """

    position: int
    op: str
    waiting: tuple[Term, ...]
    results: tuple[Term, ...]
    own_bytes: int
    updated_bytes: int


def peak_bound(model: MemoryModel, updates: Updates) -> int:
    """A number of bytes that the live peak of a step does not exceed, weights and inputs included."""
    return PeakModel(model).bound(updates)


class PeakModel:
    """The moments of a step that can be its live peak."""

    def __init__(self, memory: MemoryModel) -> None:
        self.memory = memory
        self.graph: ModelGraph = memory.graph
        self.loss = memory.loss_cost

    def bound(self, updates: Updates) -> int:
        """Live peak of a step, in bytes: never below the true one."""
        return _Evaluation(self, updates).peak_bytes()

    @property
    def weight_bytes(self) -> int:
        """Parameters and buffers, which need no RAM where they are executed from flash."""
        return self.graph.parameter_bytes + self.graph.buffer_bytes

    @cached_property
    def resident_bytes(self) -> int:
        """What is there all the time, selection indices excepted: weights, inputs, targets."""
        inputs = {self.graph.values[name].storage for name in self.graph.inputs}
        held = sum(self.graph.storages[number].nbytes for number in inputs)
        return self.weight_bytes + held + self.loss.target_bytes + _SMALL_BYTES

    @property
    def gradients_wait(self) -> bool:
        """Whether a gradient that is complete stays alive until the pass ends."""
        return not self.memory.mode.is_fused and not self.memory.gradients_outlive_backward

    def gradient_copies(self, position: int) -> Mapping[str, int]:
        """Copies of gradients alive while they are made: one more than is kept where a convolution's is put into the
        memory order of the parameter that the optimizer steps, or one is cast to the type of the parameter."""
        copies = dict(self.memory.gradient_copies(position))
        op = self.graph.ops[position]
        owner = self.memory.site_layer.get(op.name)
        arranged = owner is not None and not self.memory.mode.is_fused and len(owner.weight_shape) > 2
        if owner is not None and (arranged or op.cast_bytes):
            own_bytes = (owner.weight_elements + owner.out_channels) * owner.element_bytes
            copies[owner.name] += 2 if op.cast_bytes > own_bytes else 1  # cast to a wider type: so is the gradient
        return copies

    def step_bytes_per_channel(self, name: str) -> int:
        """What the optimizer's step needs beside gradients and state, of a layer's parameter, per channel."""
        layer, copies = self.graph.layer_by_name[name], self.memory.mode.workspace_copies
        rows = layer.out_channels // layer.groups if layer.groups > 1 else 0
        return copies * self.memory.costs[name].gradient_bytes + _STEP_INDEX_BYTES + _STEP_ROW_BYTES * rows

    def step_bias_bytes(self, name: str) -> int:
        """The same of a bias."""
        return self.memory.mode.workspace_copies * self.memory.costs[name].bias_gradient_bytes

    def kept_storage(self, keep: Keep) -> int | None:
        """Number of the activation that a keep is, None where it is something of its own (or resident: an input)."""
        return int(keep.key.removeprefix("storage/")) if keep.key.startswith("storage/") else None

    def is_activation(self, number: int) -> bool:
        return self.graph.storages[number].kind == "activation"

    @cached_property
    def output_storages(self) -> frozenset[int]:
        """Storages of the outputs, which the loss reads."""
        outputs = [op for op in self.graph.ops if op.name in self.graph.outputs]
        return frozenset(spec.storage for op in outputs for spec in op.outputs)

    @cached_property
    def forward(self) -> tuple[ForwardMoment, ...]:
        """One moment for every operator, in execution order."""
        graph, last_read = self.graph, _last_reads(self.graph)
        live: dict[int, int] = {}
        retired: list[int] = []
        moments = []
        for position, op in enumerate(graph.ops):
            for spec in op.outputs:
                if self.is_activation(spec.storage):
                    live[spec.storage] = graph.storages[spec.storage].nbytes
                    if spec.storage in retired:
                        retired.remove(spec.storage)
            space = forward_workspace(graph, op, reached=False)
            moments.append(
                ForwardMoment(
                    position=position,
                    op=op.name,
                    live_bytes=sum(live.values()) + space,
                    reached_bytes=forward_workspace(graph, op, reached=True) - space,
                    retired=tuple(retired),
                )
            )
            retired = [n for n in live if last_read.get(n, -1) <= position]
            for number in retired:
                del live[number]
        return tuple(moments)

    @cached_property
    def backward(self) -> tuple[BackwardMoment, ...]:
        """One moment for every operator upstream of an output, in execution order (backward runs through them from
        the end)."""
        alive = self._alive_gradients()
        moments = []
        for step in self.memory.steps:
            op, position = step.op, step.position
            waiting = [Term(nbytes=_nbytes(self.graph, name), if_active=who) for name, who in alive[position]]
            sources = [s for s in op.sources if s in self._consumers]
            # a sum that waits for this operator's part is replaced by a new one
            summed = [s for s in sources if self._starts[s] > position]
            own = backward_workspace(self.graph, op, step.layer, updated=False)
            moments.append(
                BackwardMoment(
                    position=position,
                    op=op.name,
                    waiting=tuple(t for t in [*waiting, *map(self._result, summed)] if t.nbytes),
                    results=tuple(t for t in map(self._result, sources) if t.nbytes),
                    own_bytes=own,
                    updated_bytes=backward_workspace(self.graph, op, step.layer, updated=True) - own,
                )
            )
        return tuple(moments)

    def _result(self, source: str) -> Term:
        return Term(nbytes=_nbytes(self.graph, source), if_active=frozenset({source}))

    @cached_property
    def _consumers(self) -> Mapping[str, list[int]]:
        """Positions of the operators that a gradient can come back from, by the operator it comes to."""
        found: dict[str, list[int]] = {step.op.name: [] for step in self.memory.steps}
        for step in self.memory.steps:
            for source in step.op.sources:
                if source in found:
                    found[source].append(step.position)
        return found

    @cached_property
    def _starts(self) -> Mapping[str, int]:
        """From which position (backward: from high to low) the gradient of an operator's output is alive."""
        end = len(self.graph.ops)
        return {
            name: max([*positions, *([end] if name in self.graph.outputs else [])], default=self.graph.position[name])
            for name, positions in self._consumers.items()
        }

    def _alive_gradients(self) -> Mapping[int, list[tuple[str, frozenset[str]]]]:
        """At each position the operators whose output's gradient was made before and is alive, each with whose activity
        keeps it so."""
        alive: dict[int, list[tuple[str, frozenset[str]]]] = {step.position: [] for step in self.memory.steps}
        for name, start in self._starts.items():
            for position in range(start - 1, -1, -1):  # at `start` it is a result, counted there
                who = self._held_by(name, position)
                if not who:
                    break
                if position in alive:
                    alive[position].append((name, who))
        return alive

    def _held_by(self, name: str, position: int) -> frozenset[str]:
        """The operators of which one must be active for the gradient of `name` to be alive at `position`.

        Its own backward ends its life, unless it may have passed it on as a view.
        """
        op = self.graph.op_by_name[name]
        if position >= self.graph.position[name]:
            return frozenset({name})
        if op.family != f.KEEPS_NOTHING:
            return frozenset()
        found: frozenset[str] = frozenset()
        for source in op.sources:
            positions = self._consumers.get(source)
            if positions and len(positions) == 1:
                found |= self._held_by(source, position)
            elif positions and position >= min(positions):
                found |= {source}
        return found


class _Evaluation:
    """The moments for given updates."""

    def __init__(self, model: PeakModel, updates: Updates) -> None:
        self.model, self.memory, self.updates = model, model.memory, updates
        self.graph = model.graph
        self.active = self.memory.active(updates)
        self.channels = self.memory.channels(updates)
        self.fresh: list[int] = []
        self.stored: list[int] = []
        self.storages: set[int] = set()
        self.weights = {
            name: gradient_bytes(self.memory, name, self.channels.get(name, 0), updates) for name in updates.layers
        }
        self._keep()

    def peak_bytes(self) -> int:
        outliving = sum(self.weights.values()) if self.memory.gradients_outlive_backward else 0
        largest = max((*self._forward(), *self._loss(), *self._backward()), default=0) + outliving
        upkeep = self.memory.upkeep(self.updates).total_bytes
        return self.model.resident_bytes + upkeep + max(largest, self._step())

    def _keep(self) -> None:
        """Bytes kept up to each position: activations' storages, and whatever else is not resident."""
        fresh, stored = [0] * len(self.graph.ops), [0] * len(self.graph.ops)
        seen: set[str] = set()
        for step in self.memory.steps:
            for keep in held_at(step, self.active, self.channels):
                if keep.key in seen:
                    continue
                seen.add(keep.key)
                number = self.model.kept_storage(keep)
                if number is None:
                    fresh[step.position] += keep.nbytes
                elif self.model.is_activation(number):
                    self.storages.add(number)
                    stored[step.position] += keep.nbytes
            if step.layer is not None and self.channels.get(step.layer.name):
                site = step.layer.sites.index(step.op.name)
                cost = self.memory.costs[step.layer.name].site_saved_bytes[site]
                fresh[step.position] += cost * self.channels[step.layer.name]
        self.fresh, self.stored = _running_sum(fresh), _running_sum(stored)

    def _forward(self) -> Iterator[int]:
        retired = 0
        for moment in self.model.forward:
            retired += sum(self.graph.storages[n].nbytes for n in moment.retired if n in self.storages)
            extra = moment.reached_bytes if moment.op in self.active else 0
            yield moment.live_bytes + extra + retired + self.fresh[moment.position]

    def _loss(self) -> Iterator[int]:
        """The loss, with the outputs it reads; and its own backward, when nothing of the model's has been released."""
        if not self.fresh:
            return
        loss = self.model.loss
        held = sum(self.graph.storages[n].nbytes for n in self.model.output_storages | self.storages)
        yield held + self.fresh[-1] + loss.forward_bytes
        yield self.fresh[-1] + self.stored[-1] + loss.forward_bytes + loss.backward_bytes

    def _backward(self) -> Iterator[int]:
        waiting = 0  # gradients that are complete and wait for the optimizer
        for moment in reversed(self.model.backward):
            if moment.op not in self.active:
                continue
            layer = self.memory.site_layer.get(moment.op)
            updated = layer is not None and bool(self.channels.get(layer.name))
            own = moment.own_bytes + (moment.updated_bytes if updated else 0)
            copies = self.model.gradient_copies(moment.position)
            yield (
                self.fresh[moment.position]
                + self.stored[moment.position]
                + self._sum(moment.waiting)
                + max(self._sum(moment.results), own)
                + sum(self.weights[name] * count for name, count in copies.items() if name in self.weights)
                + waiting
                + self.model.loss.backward_bytes
            )
            if self.model.gradients_wait:
                waiting += sum(self.weights.get(name, 0) for name in self.memory.first_sites.get(moment.position, ()))

    def _step(self) -> int:
        """The optimizer's step: all gradients, and the most that it needs for one parameter."""
        if self.memory.mode.is_fused:
            return 0
        largest = max(
            (
                self.model.step_bytes_per_channel(name) * self.channels.get(name, 0)
                + self.model.step_bias_bytes(name) * (name in self.updates.biases or name in self.updates.full)
                for name in self.updates.layers
            ),
            default=0,
        )
        in_full = [self.graph.layer_by_name[name] for name in self.updates.full]
        parameters = sum(1 for n in self.updates.quotas.values() if n) + len(self.updates.biases)
        parameters += sum(2 if layer.bias else 1 for layer in in_full)
        stepping = largest + STEP_NORM_BYTES * parameters + self.model.loss.forward_bytes
        return sum(self.weights.values()) + max(stepping, self.model.loss.backward_bytes)

    def _sum(self, terms: tuple[Term, ...]) -> int:
        return sum(term.nbytes for term in terms if not term.if_active.isdisjoint(self.active))


def _running_sum(amounts: list[int]) -> list[int]:
    total, sums = 0, []
    for amount in amounts:
        total += amount
        sums.append(total)
    return sums


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
    op: Op = graph.op_by_name[name]
    return sum(spec.nbytes for spec in op.outputs if spec.is_floating)
