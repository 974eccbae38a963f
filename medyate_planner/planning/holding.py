"""What a step keeps, as expressions of the decision variables: the reach, kept storages, selected channels, gradients.

    x_v  output of v needs a gradient       k_s  storage s is kept by one of the first operators that may hold it

One walk over the operators in execution order; each scope turns what it yields into its own constraints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from medyate_planner.memory.model import MemoryModel, Step
from medyate_planner.memory.rules import Keep
from medyate_planner.planning.program import Expression, Program, is_zero

KILO = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The decision variables by layer: quota n, updated z, bias b; and the layers trained in full."""

    quota: Mapping[str, Expression]
    updated: Mapping[str, Expression]
    bias: Mapping[str, Expression]
    full: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one operator adds, in kB: for each storage it may hold how much more of it is now kept, its selected
    channels, the weight gradients being made during its backward, and those of them that are then complete."""

    step: Step
    grown: tuple[tuple[Keep, Expression], ...] = ()
    selected: tuple[Expression, ...] = ()
    gradients: tuple[Expression, ...] = ()
    completed: tuple[Expression, ...] = ()


@dataclass(kw_only=True)
class Holding:
    """The walk. `reached` and `kept` are complete when it has ended."""

    program: Program
    memory: MemoryModel
    choices: Choices
    reached: dict[str, Expression] = field(default_factory=dict)
    kept: dict[str, Expression] = field(default_factory=dict)
    _holders: dict[str, list[Expression]] = field(default_factory=dict)

    def walk(self) -> Iterator[Held]:
        """One `Held` per operator upstream of an output."""
        for step in self.memory.steps:
            self._reach(step)
            yield Held(
                step=step,
                grown=tuple(self._grown(step)),
                selected=tuple(self._selected(step)),
                gradients=tuple(self._being_made(step)),
                completed=tuple(self._completed(step)),
            )

    def upkeep(self) -> Expression:
        """kB that are there all the time: indices, optimizer state, working copies."""
        choices, terms = self.choices, []
        for name, n in choices.quota.items():
            unit = self.memory.upkeeps[name]
            terms.append(unit.per_channel.total_bytes / KILO * n)
            if unit.per_weight.total_bytes:
                terms.append(unit.per_weight.total_bytes / KILO * choices.updated[name])
        for name, b in choices.bias.items():
            if self.memory.upkeeps[name].per_bias.total_bytes:
                terms.append(self.memory.upkeeps[name].per_bias.total_bytes / KILO * b)
        terms += [self.memory.upkeep_in_full(name).total_bytes / KILO for name in choices.full]
        return self.program.named_sum(0.0, terms, "upkeep")

    def all_gradients(self) -> Expression:
        """kB of the gradients of all layers together; nothing in mode `fused`, where they never are."""
        if self.memory.mode.is_fused:
            return 0.0
        terms = [term for name in self.layers() for term in self.gradient_of(name)]
        return self.program.named_sum(0.0, terms, "all_gradients")

    def layers(self) -> list[str]:
        """Everything of which anything may be trained."""
        choices = self.choices
        return list(dict.fromkeys([*choices.quota, *choices.bias, *sorted(choices.full)]))

    def may_be_reached(self, name: str) -> bool:
        return not is_zero(self.reached.get(name, 0.0))

    def _reach(self, step: Step) -> None:
        """x_v >= z_l, b_l at every call site v of l, and x_v >= x_u for every source u of v.

        Integer, because "is anything updated up to here?" is the question to branch on: with continuous ones a zoo
        network took 17 s where this takes 0.3 s.
        """
        causes = [self.reached[s] for s in step.op.sources if self.may_be_reached(s)]
        causes += self._updated_at(step)
        self.reached[step.op.name] = self.program.any_of(causes, f"x_{step.op.name}", kind="Integer")

    def _grown(self, step: Step) -> Iterator[tuple[Keep, Expression]]:
        """Bytes that this operator newly keeps: the growth of k_s when one more holder may be active."""
        added: dict[str, tuple[Keep, list[Expression]]] = {}
        for source, keeps in step.edges:
            if self.may_be_reached(source):
                for keep in keeps:
                    added.setdefault(keep.key, (keep, []))[1].append(self.reached[source])
        for keep in step.own:
            if cause := self.weight_updated_at(step):
                added.setdefault(keep.key, (keep, []))[1].append(cause[0])
        for keep, causes in added.values():
            growth = self._hold(keep, causes, step.op.name)
            if not is_zero(growth):
                yield keep, growth

    def _hold(self, keep: Keep, causes: list[Expression], where: str) -> Expression:
        known = self._holders.setdefault(keep.key, [])
        fresh = [c for c in causes if not any(c is k for k in known)]
        known += fresh
        before = self.kept.get(keep.key)
        if before is not None and not fresh:
            return 0.0
        now = self.program.any_of(fresh if before is None else [before, *fresh], f"k_{keep.key}_by_{where}")
        self.kept[keep.key] = now
        return keep.nbytes / KILO * (now if before is None else now - before)

    def _selected(self, step: Step) -> Iterator[Expression]:
        layer = step.layer
        if layer is None:
            return
        saved = self.memory.costs[layer.name].site_saved_bytes[layer.sites.index(step.op.name)]
        if layer.name in self.choices.full:
            yield saved * layer.channels / KILO
        elif layer.name in self.choices.quota:
            yield saved / KILO * self.choices.quota[layer.name]

    def _being_made(self, step: Step) -> Iterator[Expression]:
        for name, copies in self.memory.gradient_copies(step.position).items():
            yield from self.gradient_of(name, copies)

    def _completed(self, step: Step) -> Iterator[Expression]:
        if not self.memory.mode.is_fused:
            for name in self.memory.first_sites.get(step.position, ()):
                yield from self.gradient_of(name)

    def gradient_of(self, name: str, copies: int = 1) -> Iterator[Expression]:
        """kB of a layer's gradient, so many times."""
        choices, cost = self.choices, self.memory.costs[name]
        if name in choices.full:
            channels = self.memory.graph.layer_by_name[name].channels
            yield copies * (cost.gradient_bytes * channels + cost.bias_gradient_bytes) / KILO
        if name in choices.quota:
            yield copies * cost.gradient_bytes / KILO * choices.quota[name]
        if name in choices.bias:
            yield copies * cost.bias_gradient_bytes / KILO * choices.bias[name]

    def _updated_at(self, step: Step) -> list[Expression]:
        if step.layer is None:
            return []
        if step.layer.name in self.choices.full:
            return [1.0]
        tables = (self.choices.updated, self.choices.bias)
        return [table[step.layer.name] for table in tables if step.layer.name in table]

    def weight_updated_at(self, step: Step) -> list[Expression]:
        """z of the operator's layer, if it may be updated."""
        if step.layer is None:
            return []
        if step.layer.name in self.choices.full:
            return [1.0]
        return [self.choices.updated[step.layer.name]] if step.layer.name in self.choices.updated else []
