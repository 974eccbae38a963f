"""The planning problem as an integer linear program: one function per constraint, named in the .lp file.

    n_l  integer  quota                     z_l  binary  layer is updated         b_l  binary  its bias is updated
    v_l  value of layer l                   x_u  0..1    output of u needs a gradient
    k_s  0..1     storage s is kept by one of the first operators that may hold it
    kept_m        bytes kept up to and including operator m

Source: DESIGN section 5, derived here. Memory is in kB and value relative to the largest possible, so that the
coefficients suit the solver; nothing that is shown is read back from it but n, z and b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medyate_planner.memory.channels import INDEX_BYTES
from medyate_planner.planning.request import PlanRequest

if TYPE_CHECKING:
    from medyate_planner.graph import Layer
    from medyate_planner.memory.model import Step
    from medyate_planner.memory.rules import Keep

_KILO = 1000.0
Expression = Any


class Formulation:
    """Variables and constraints of one request. `problem` is handed to the solver."""

    def __init__(self, request: PlanRequest, *, budget_bytes: int, pulp: Any) -> None:
        self.pulp = pulp  # the module, handed in by solve.py, which alone knows where it comes from
        self.request = request
        self.memory = request.memory
        self.budget_bytes = budget_bytes
        self.problem = pulp.LpProblem("medyate_plan", pulp.LpMaximize)
        self.quota: dict[str, Any] = {}
        self.updated: dict[str, Any] = {}
        self.bias: dict[str, Any] = {}
        self.reached: dict[str, Expression] = {}
        self._number = {layer.name: f"{i}" for i, layer in enumerate(request.memory.graph.layers)}
        self.value_scale = self._largest_value() or 1.0

    def formulate(self) -> Formulation:
        """Build the whole program."""
        self.choose_channels()
        self.choose_biases()
        self.buy_something()
        self.limit_layers()
        if self.request.scope == "update":
            self.limit_update_bytes()
        else:
            self.propagate_reach()
            self.limit_training_bytes()
        self.maximise_value()
        return self

    def choose_channels(self) -> None:
        """n_l <= C_l z_l, n_l >= g z_l, n_l a multiple of g (g the granularity); forced layers have z_l = 1."""
        granularity = self.request.granularity
        for layer in self.request.layers:
            key = self._number[layer.name]
            low = 1 if layer.name in self.request.forced else 0
            z = self._variable(f"z_{key}", low, 1, "Binary" if not low else "Integer")
            units = self._variable(f"units_{key}", 0, layer.channels // granularity, "Integer")
            self.quota[layer.name], self.updated[layer.name] = granularity * units, z
            self._require(units <= (layer.channels // granularity) * z, f"quota_needs_update_{key}")
            self._require(units >= z, f"update_needs_quota_{key}")

    def choose_biases(self) -> None:
        """b_l for every bias that may be bought."""
        for layer in self.request.biases:
            self.bias[layer.name] = self._variable(f"b_{self._number[layer.name]}", 0, 1, "Binary")

    def buy_something(self) -> None:
        """A plan buys at least one unit beyond the head."""
        self._require(self._sum([*self.updated.values(), *self.bias.values()]) >= 1, "buy_something")

    def limit_layers(self) -> None:
        """sum z_l <= K."""
        if self.request.max_layers is not None:
            self._require(self._sum(list(self.updated.values())) <= self.request.max_layers, "max_layers")

    def limit_update_bytes(self) -> None:
        """Plain sum of gradients and selected activations, the head included."""
        costs = self.memory.costs
        layers = self.memory.graph.layer_by_name
        fixed = sum(
            costs[name].update_bytes * layers[name].channels + costs[name].bias_gradient_bytes
            for name in self.request.head
        )
        terms = [costs[name].update_bytes / _KILO * n for name, n in self.quota.items()]
        terms += [costs[name].bias_gradient_bytes / _KILO * b for name, b in self.bias.items()]
        self._require(self._sum(terms) <= (self.budget_bytes - fixed) / _KILO, "update_budget")

    def propagate_reach(self) -> None:
        """x_v >= z_l, b_l at every call site of l, and x_v >= x_u for every source u of v."""
        for step in self.memory.steps:
            causes = [self.reached[s] for s in step.op.sources if self._may_be_reached(s)]
            causes += self._updated_at(step)
            self.reached[step.op.name] = self._at_least(causes, f"x_{step.op.name}")

    def limit_training_bytes(self) -> None:
        """At the end of forward, and at the backward of each updated operator: kept + gradients + indices <= budget."""
        budget = self.budget_bytes / _KILO
        index = self._sum([INDEX_BYTES / _KILO * n for n in self.quota.values()])
        holders: dict[str, list[Expression]] = {}
        chain: dict[str, Expression] = {}
        kept: Expression = 0.0
        pending: list[Expression] = []
        for step in self.memory.steps:
            pending += self._passthrough_terms(step, holders, chain)
            pending += self._selected_terms(step)
            gradient = self._gradient_terms(step)
            if gradient:
                kept = self._kept_up_to(kept, pending, step.op.name)
                pending = []
                self._require(kept + index + self._sum(gradient) <= budget, f"budget_at_{step.op.name}")
        kept = self._kept_up_to(kept, pending, "end_of_forward")
        loss = self._sum(self._loss_terms(holders, chain))
        self._require(kept + index + loss <= budget, "budget_at_loss")

    def maximise_value(self) -> None:
        """maximise sum v_l + sum beta_l b_l, v_l below every piece of its curve."""
        terms = []
        for name, n in self.quota.items():
            key = self._number[name]
            value = self._variable(f"v_{key}", 0, None, "Continuous")
            for i, (slope, intercept) in enumerate(self.request.curves[name].segments):
                piece = slope / self.value_scale * n + intercept / self.value_scale * self.updated[name]
                self._require(value <= piece, f"value_{key}_{i}")
            terms.append(value)
        terms += [self.request.bias_values[name] / self.value_scale * b for name, b in self.bias.items()]
        self.problem.setObjective(self._sum(terms))

    def _passthrough_terms(
        self, step: Step, holders: dict[str, list[Expression]], chain: dict[str, Expression]
    ) -> list[Expression]:
        """Bytes that this operator newly keeps: the growth of k_s when one more holder may be active."""
        added: dict[str, tuple[Keep, list[Expression]]] = {}
        for source, keeps in step.edges:
            if self._may_be_reached(source):
                for keep in keeps:
                    added.setdefault(keep.key, (keep, []))[1].append(self.reached[source])
        for keep in step.own:
            if cause := self._weight_updated_at(step):
                added.setdefault(keep.key, (keep, []))[1].append(cause[0])
        return [self._hold(keep, causes, step.op.name, holders, chain) for keep, causes in added.values()]

    def _hold(
        self,
        keep: Keep,
        causes: list[Expression],
        where: str,
        holders: dict[str, list[Expression]],
        chain: dict[str, Expression],
    ) -> Expression:
        known = holders.setdefault(keep.key, [])
        fresh = [c for c in causes if not any(c is k for k in known)]
        known += fresh
        before = chain.get(keep.key)
        causes = fresh if before is None else [before, *fresh]
        now = self._at_least(causes, f"k_{_plain(keep.key)}_by_{where}")
        chain[keep.key] = now
        return keep.nbytes / _KILO * (now if before is None else now - before)

    def _selected_terms(self, step: Step) -> list[Expression]:
        if step.layer is None:
            return []
        saved = self.memory.costs[step.layer.name].site_saved_bytes[step.layer.sites.index(step.op.name)]
        if step.layer.name in self.request.head:
            return [saved * step.layer.channels / _KILO]
        n = self.quota.get(step.layer.name)
        return [saved / _KILO * n] if n is not None else []

    def _gradient_terms(self, step: Step) -> list[Expression]:
        terms: list[Expression] = []
        for name, copies in self.memory.gradient_copies(step.position).items():
            cost = self.memory.costs[name]
            if name in self.request.head:
                channels = self.memory.graph.layer_by_name[name].channels
                terms.append(copies * (cost.gradient_bytes * channels + cost.bias_gradient_bytes) / _KILO)
            if name in self.quota:
                terms.append(copies * cost.gradient_bytes / _KILO * self.quota[name])
            if name in self.bias:
                terms.append(copies * cost.bias_gradient_bytes / _KILO * self.bias[name])
        return terms

    def _loss_terms(self, holders: dict[str, list[Expression]], chain: dict[str, Expression]) -> list[Expression]:
        """The loss always runs; a storage that the model keeps already is not counted twice."""
        return [
            keep.nbytes / _KILO * (1 - chain[keep.key] if keep.key in holders else 1.0) for keep in self.memory.loss
        ]

    def _kept_up_to(self, before: Expression, added: Sequence[Expression], where: str) -> Expression:
        if not added:
            return before
        kept = self._variable(f"kept_{where}", None, None, "Continuous")
        self._require(kept == before + self._sum(list(added)), f"kept_at_{where}")
        return kept

    def _updated_at(self, step: Step) -> list[Expression]:
        layer: Layer | None = step.layer
        if layer is None:
            return []
        if layer.name in self.request.head:
            return [1.0]
        tables = (self.updated, self.bias)
        return [table[layer.name] for table in tables if layer.name in table]

    def _weight_updated_at(self, step: Step) -> list[Expression]:
        if step.layer is None:
            return []
        if step.layer.name in self.request.head:
            return [1.0]
        return [self.updated[step.layer.name]] if step.layer.name in self.updated else []

    def _may_be_reached(self, name: str) -> bool:
        reached = self.reached.get(name, 0.0)
        return not (isinstance(reached, float) and reached == 0.0)

    def _at_least(self, causes: list[Expression], name: str) -> Expression:
        """The maximum of binaries: a constant or the one cause where that suffices, else a variable above each."""
        if any(isinstance(c, float) and c >= 1.0 for c in causes):
            return 1.0
        distinct = [c for i, c in enumerate(causes) if not any(c is d for d in causes[:i])]
        if not distinct:
            return 0.0
        if len(distinct) == 1:
            return distinct[0]
        variable = self._variable(name, 0, 1, "Continuous")
        for i, cause in enumerate(distinct):
            self._require(variable >= cause, f"{name}_because_{i}")
        return variable

    def _largest_value(self) -> float:
        return max(
            [c.values[-1] for c in self.request.curves.values()] + list(self.request.bias_values.values()), default=0.0
        )

    def _variable(self, name: str, low: float | None, high: float | None, kind: str) -> Any:
        return self.problem.add_variable(_plain(name), low, high, kind)

    def _require(self, constraint: Any, name: str) -> None:
        if isinstance(constraint, bool):  # no variable in it
            if constraint:
                return
            constraint = self.pulp.lpSum([]) >= 1
        self.problem += (constraint, _plain(name))

    def _sum(self, terms: list[Expression]) -> Expression:
        return self.pulp.lpSum(terms)


def _plain(name: str) -> str:
    """A name that the .lp format accepts."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)
