"""Scope `peak` as constraints: at every moment of forward, loss and backward, what is live fits the budget.

The moments are those of memory.peak, term for term, so that the program's bound and the closed form's are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from medyate_planner.memory.peak import STEP_NORM_BYTES, ForwardMoment, PeakModel, Term
from medyate_planner.planning.holding import KILO, Held, Holding
from medyate_planner.planning.program import Expression, is_zero
from medyate_planner.planning.request import PlanRequest


def limit_peak_bytes(request: PlanRequest, holding: Holding, limit_bytes: int) -> None:
    """resident + upkeep + live at every moment <= budget."""
    resident = request.peak.resident_bytes
    if request.weights_in == "flash":
        resident -= request.peak.weight_bytes
    room = (limit_bytes - resident) / KILO
    upkeep, total = holding.upkeep(), holding.all_gradients()
    outliving = total if request.memory.gradients_outlive_backward else 0.0
    moments = _Moments(holding=holding, peak=request.peak)
    walked = list(holding.walk())
    moments.keep(walked)
    for name, live in [*moments.forward(), *moments.loss(), *moments.backward(walked, total)]:
        holding.program.require(live + upkeep + outliving <= room, f"peak_{name}")
    for name, live in moments.step():
        holding.program.require(live + upkeep + total <= room, f"peak_{name}")


@dataclass(kw_only=True)
class _Moments:
    """Live kB at each moment, as expressions. `fresh` and `stored`: kept up to a position, as in memory.peak."""

    holding: Holding
    peak: PeakModel
    fresh: dict[int, Expression] = field(default_factory=dict)
    stored: dict[int, Expression] = field(default_factory=dict)

    def keep(self, walked: list[Held]) -> None:
        """Running sums of what is kept: of its own, and as an activation's storage."""
        program = self.holding.program
        fresh: Expression = 0.0
        stored: Expression = 0.0
        by_position = {held.step.position: held for held in walked}
        for position, op in enumerate(self.peak.graph.ops):
            held = by_position.get(position)
            if held is not None:
                own, shared = list(held.selected), []
                for keep, growth in held.grown:
                    number = self.peak.kept_storage(keep)
                    if number is None:
                        own.append(growth)
                    elif self.peak.is_activation(number):
                        shared.append(growth)
                fresh = program.named_sum(fresh, own, f"fresh_{op.name}")
                stored = program.named_sum(stored, shared, f"stored_{op.name}")
            self.fresh[position], self.stored[position] = fresh, stored

    def forward(self) -> Iterator[tuple[str, Expression]]:
        """One moment for every group of operators between which nothing variable changes, the largest of it; and one
        for each operator that needs more room when it is reached."""
        retired: Expression = 0.0
        group: tuple[ForwardMoment, Expression] | None = None
        for moment in self.peak.forward:
            dead = [self._kept_storage(n) for n in moment.retired if self._kept_storage(n) is not None]
            grown = bool(dead) or (
                group is not None and self.fresh[moment.position] is not self.fresh[group[0].position]
            )
            if grown and group is not None:
                yield self._forward_row(*group)
                group = None
            retired = self.holding.program.named_sum(retired, dead, f"retired_{moment.op}") if dead else retired
            if group is None or moment.live_bytes > group[0].live_bytes:
                group = (moment, retired)
            reached = self.holding.reached.get(moment.op, 0.0)
            if moment.reached_bytes > 0 and not is_zero(reached):
                name, live = self._forward_row(moment, retired)
                yield f"{name}_reached", live + moment.reached_bytes / KILO * reached
        if group is not None:
            yield self._forward_row(*group)

    def _forward_row(self, moment: ForwardMoment, retired: Expression) -> tuple[str, Expression]:
        return f"forward_{moment.op}", moment.live_bytes / KILO + retired + self.fresh[moment.position]

    def _kept_storage(self, number: int) -> Expression | None:
        kept = self.holding.kept.get(f"storage/{number}")
        return None if kept is None else self.peak.graph.storages[number].nbytes / KILO * kept

    def loss(self) -> Iterator[tuple[str, Expression]]:
        """The loss with the outputs it reads, and its backward before anything is released."""
        if not self.fresh:
            return
        last, loss, storages = len(self.fresh) - 1, self.peak.loss, self.peak.graph.storages
        outputs = sum(storages[n].nbytes for n in self.peak.output_storages)
        others = [
            self._kept_storage(n)
            for n in storages
            if n not in self.peak.output_storages and self.peak.is_activation(n) and self._kept_storage(n) is not None
        ]
        held = self.holding.program.sum(others)
        yield "loss_forward", held + self.fresh[last] + (outputs + loss.forward_bytes) / KILO
        yield (
            "loss_backward",
            self.fresh[last] + self.stored[last] + (loss.forward_bytes + loss.backward_bytes) / KILO,
        )

    def backward(self, walked: list[Held], total: Expression) -> Iterator[tuple[str, Expression]]:
        """Two moments for every operator that may be active: with the gradients it makes, and with its workspace.

        `total`: the gradients of all layers; those of layers behind an operator are complete and wait.
        """
        by_position = {held.step.position: held for held in walked}
        before: Expression = 0.0
        for moment in self.peak.backward:
            reached = self.holding.reached[moment.op]
            held = by_position[moment.position]
            if self.peak.gradients_wait:
                before = self.holding.program.named_sum(before, held.completed, f"before_{moment.op}")
            if is_zero(reached):
                continue
            common = self._live(moment.waiting) + self.holding.program.sum(held.gradients)
            common += self._laid_out(held)
            if self.peak.gradients_wait:
                common += total - before
            common += self.fresh[moment.position] + self.stored[moment.position]
            common += self.peak.loss.backward_bytes / KILO
            own = moment.own_bytes / KILO * reached
            if moment.updated_bytes and (z := self.holding.weight_updated_at(held.step)):
                own = own + moment.updated_bytes / KILO * z[0]
            yield f"backward_{moment.op}", common + own
            if moment.results:
                yield f"backward_{moment.op}_results", common + self._live(moment.results)

    def _laid_out(self, held: Held) -> Expression:
        """One more copy of the gradients that are put into another memory order (PeakModel.gradient_copies)."""
        own = self.peak.gradient_copies(held.step.position)
        made = self.peak.memory.gradient_copies(held.step.position)
        return self.holding.program.sum(
            [
                g
                for name in own
                for g in self.holding.gradient_of(name, own[name] - made[name])
                if own[name] > made[name]
            ]
        )

    def step(self) -> Iterator[tuple[str, Expression]]:
        """The optimizer's step, one moment for every layer: what stepping it needs beside all gradients and state."""
        if self.peak.memory.mode.is_fused:
            return
        choices, loss = self.holding.choices, self.peak.loss.forward_bytes
        norms = STEP_NORM_BYTES / KILO * self._parameters()
        for name in self.holding.layers():
            channels: Expression = choices.quota.get(name, 0.0)
            bias: Expression = choices.bias.get(name, 0.0)
            if name in choices.full:
                channels, bias = float(self.peak.graph.layer_by_name[name].channels), 1.0
            own = self.peak.step_bytes_per_channel(name) / KILO * channels
            own += self.peak.step_bias_bytes(name) / KILO * bias
            yield f"step_{name}", own + norms + loss / KILO

    def _parameters(self) -> Expression:
        """How many parameters the optimizer steps."""
        choices, layers = self.holding.choices, self.peak.graph.layer_by_name
        fixed = sum(2 if layers[name].bias else 1 for name in choices.full)
        return self.holding.program.sum([fixed, *choices.updated.values(), *choices.bias.values()])

    def _live(self, terms: tuple[Term, ...]) -> Expression:
        program, reached = self.holding.program, self.holding.reached
        return program.sum(
            [
                term.nbytes
                / KILO
                * program.any_of(
                    [reached[name] for name in sorted(term.if_active) if not is_zero(reached[name])],
                    f"alive_{min(term.if_active)}",
                )
                for term in terms
            ]
        )
