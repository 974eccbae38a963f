"""The planning problem as an integer linear program: one function per constraint, named in the .lp file.

    n_l  integer  quota (in units of the granularity)      z_l  binary  layer is updated
    v_l  value of layer l                                  b_l  binary  its bias is updated
    x_v, k_s  reach and kept storages (holding.py)         kept_m  kB kept up to and including operator m

Source: DESIGN section 5, derived here. Memory is in kB and value relative to the largest possible, so that the
coefficients suit the solver; nothing that is shown is read back from it but n, z and b.
"""

from __future__ import annotations

from typing import Any

from medyate_planner.planning.capacity import capacity
from medyate_planner.planning.holding import KILO, Choices, Holding
from medyate_planner.planning.peak_budget import limit_peak_bytes
from medyate_planner.planning.program import Expression, Program
from medyate_planner.planning.request import PlanRequest

_ROUNDING = 1e-12  # of the largest value: less is rounding of a straight curve
_FLOPS_SCALE = 1e-5  # of the limit: the solver's tolerance is then far below one operation


class Formulation:
    """Variables and constraints of one request. `program.problem` is handed to the solver."""

    def __init__(self, request: PlanRequest, *, limit_bytes: int, limit_flops: int | None, pulp: Any) -> None:
        self.request = request
        self.memory = request.memory
        self.limit_bytes, self.flops_limit = limit_bytes, limit_flops
        self.program = Program(pulp)
        self.quota: dict[str, Expression] = {}
        self.updated: dict[str, Expression] = {}
        self.bias: dict[str, Expression] = {}
        self.value_scale = self._largest_value() or 1.0
        self.capacity = capacity(request, limit_bytes)

    @property
    def choices(self) -> Choices:
        return Choices(quota=self.quota, updated=self.updated, bias=self.bias, full=self.request.head)

    def formulate(self) -> Formulation:
        """Build the whole program."""
        self.choose_channels()
        self.choose_biases()
        self.buy_something()
        self.limit_layers()
        holding = Holding(program=self.program, memory=self.memory, choices=self.choices)
        if self.request.scope == "update":
            self.limit_update_bytes()
        elif self.request.scope == "training":
            self.limit_training_bytes(holding)
        else:
            limit_peak_bytes(self.request, holding, self.limit_bytes)
        self.limit_flops(holding)
        self.maximise_value()
        return self

    def choose_channels(self) -> None:
        """least z_l <= n_l <= most z_l, n_l a multiple of g (the granularity); forced layers have z_l = 1.

        `most` is what fits if nothing else is bought (capacity.py); a layer of which nothing fits gets no variable.
        """
        granularity = self.request.granularity
        for layer in self.request.layers:
            most = self.capacity.quotas[layer.name] // granularity
            low = 1 if layer.name in self.request.forced else 0
            if not most:
                self.program.require(not low, f"forced_{layer.name}")
                continue
            least = self.request.least(layer) // granularity
            z = self.program.variable(f"z_{layer.name}", low, 1, "Integer" if low else "Binary")
            units = self.program.variable(f"n_{layer.name}", 0, most, "Integer")
            self.quota[layer.name], self.updated[layer.name] = granularity * units, z
            self.program.require(units <= most * z, f"quota_needs_update_{layer.name}")
            self.program.require(units >= least * z, f"update_needs_quota_{layer.name}")

    def choose_biases(self) -> None:
        """b_l for every bias that may be bought."""
        for layer in self.request.biases:
            if layer.name not in self.capacity.beyond_reach:
                self.bias[layer.name] = self.program.variable(f"b_{layer.name}", 0, 1, "Binary")

    def buy_something(self) -> None:
        """A plan buys at least one unit beyond the head."""
        bought = self.program.sum([*self.updated.values(), *self.bias.values()])
        self.program.require(bought >= 1, "buy_something")

    def limit_layers(self) -> None:
        """sum z_l <= K."""
        if self.request.max_layers is not None:
            count = self.program.sum(list(self.updated.values()))
            self.program.require(count <= self.request.max_layers, "max_layers")

    def limit_update_bytes(self) -> None:
        """Plain sum of gradients, selected activations, optimizer state and working copies, the head included."""
        costs, upkeeps = self.memory.costs, self.memory.upkeeps
        layers = self.memory.graph.layer_by_name
        fixed = sum(
            costs[name].update_bytes * layers[name].channels
            + costs[name].bias_gradient_bytes
            + self.memory.upkeep_in_full(name).beside_index_bytes
            for name in self.request.head
        )
        terms = []
        for name, n in self.quota.items():
            terms.append((costs[name].update_bytes + upkeeps[name].per_channel.beside_index_bytes) / KILO * n)
            if upkeeps[name].per_weight.beside_index_bytes:
                terms.append(upkeeps[name].per_weight.beside_index_bytes / KILO * self.updated[name])
        for name, b in self.bias.items():
            nbytes = costs[name].bias_gradient_bytes + upkeeps[name].per_bias.beside_index_bytes
            terms.append(nbytes / KILO * b)
        self.program.require(self.program.sum(terms) <= (self.limit_bytes - fixed) / KILO, "budget_update")

    def limit_training_bytes(self, holding: Holding) -> None:
        """At the end of forward, and at the backward of each updated operator: kept + gradients + upkeep <= budget.

        Gradients that are complete wait for the optimizer: those of the layers behind an operator, or, where they are
        summed over several passes, all.
        """
        program, budget = self.program, self.limit_bytes / KILO
        upkeep, total = holding.upkeep(), holding.all_gradients()
        outlive = self.memory.gradients_outlive_backward
        kept: Expression = 0.0
        before: Expression = 0.0  # gradients of the layers before an operator, which come after it in backward
        pending: list[Expression] = []
        for held in holding.walk():
            pending += [growth for _, growth in held.grown]
            pending += held.selected
            name = held.step.op.name
            if not outlive:
                before = program.named_sum(before, held.completed, f"before_{name}")
            if held.gradients:
                kept = program.named_sum(kept, pending, f"kept_{name}")
                pending = []
                waiting = total if outlive else total - before
                program.require(kept + upkeep + waiting + program.sum(held.gradients) <= budget, f"budget_at_{name}")
        kept = program.named_sum(kept, pending, "kept_end_of_forward")
        loss = program.sum(
            [keep.nbytes / KILO * (1.0 - holding.kept.get(keep.key, 0.0)) for keep in self.memory.loss]
        )  # the loss always runs; a storage that the model keeps already is not counted twice
        program.require(kept + upkeep + loss + (total if outlive else 0.0) <= budget, "budget_at_loss")

    def limit_flops(self, holding: Holding) -> None:
        """Forward, input gradients of the reach and weight gradients of the selected channels."""
        if self.flops_limit is None:
            return
        if not holding.reached:
            for _ in holding.walk():
                pass
        flops, unit = self.request.flops, max(1.0, self.flops_limit * _FLOPS_SCALE)
        terms: list[Expression] = [flops.inference_flops / unit]
        for op in flops.ops:
            for gradient in op.input_gradients:
                causes = [holding.reached[s] for s in gradient.sources if holding.may_be_reached(s)]
                terms.append(gradient.flops / unit * self.program.any_of(causes, f"x_below_{op.name}"))
        for name, cost in flops.channel_flops.items():
            if name in self.quota:
                terms.append(cost / unit * self.quota[name])
            elif name in self.request.head:
                terms.append(cost / unit * self.memory.graph.layer_by_name[name].channels)
        self.program.require(self.program.sum(terms) <= self.flops_limit / unit, "max_flops")

    def maximise_value(self) -> None:
        """maximise sum v_l + sum beta_l b_l, v_l below every piece of its curve."""
        terms = []
        for name, n in self.quota.items():
            value = self.program.variable(f"v_{name}", 0, None)
            for i, (slope, intercept) in enumerate(self.request.curves[name].segments):
                piece = slope / self.value_scale * n
                if abs(intercept) > _ROUNDING * self.value_scale:
                    piece = piece + intercept / self.value_scale * self.updated[name]
                self.program.require(value <= piece, f"value_{name}_piece_{i}")
            terms.append(value)
        terms += [self.request.bias_values[name] / self.value_scale * b for name, b in self.bias.items()]
        self.program.maximise(terms)

    def _largest_value(self) -> float:
        return max(
            [c.values[-1] for c in self.request.curves.values()] + list(self.request.bias_values.values()), default=0.0
        )
