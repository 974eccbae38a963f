"""Predicted against measured, by category: the result of `medyate verify` as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medyate_planner.memory.timeline import Footprint
from medyate_planner.planning.plan import Plan
from medyate_planner.training.measure import StepMeasurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One kind of bytes: the closed form (or the plan), the dry run on fake tensors, the real step."""

    name: str
    predicted_bytes: int
    dry_run_bytes: int
    measured_bytes: int

    @property
    def agrees(self) -> bool:
        return self.predicted_bytes == self.dry_run_bytes == self.measured_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether a real step held exactly what the plan predicts, and no more than its budget."""

    categories: tuple[Category, ...]
    budget_bytes: int
    scope: str
    weight_bytes: int = 0

    @property
    def within_budget(self) -> bool:
        return self.scope_bytes <= self.budget_bytes

    @property
    def scope_bytes(self) -> int:
        """The measured figure that the budget limits (scope `update` is a sum and is predicted only)."""
        name = {"update": "update", "training": "training", "peak": "live peak"}[self.scope]
        measured = next(c.measured_bytes for c in self.categories if c.name == name)
        return measured - (self.weight_bytes if self.scope == "peak" else 0)

    @property
    def ok(self) -> bool:
        return self.within_budget and all(category.agrees for category in self.categories)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `medyate verify --json`."""
        return {
            "ok": self.ok,
            "categories": [{**asdict(c), "agrees": c.agrees} for c in self.categories],
            "budget_bytes": self.budget_bytes,
            "scope": self.scope,
        }


def compare(
    plan: Plan,
    figures: Footprint,
    dry: StepMeasurement,
    real: StepMeasurement,
    *,
    weight_bytes: int = 0,
    largest_bytes: int | None = None,
) -> Verification:
    """Set the three ways of knowing beside each other. `figures` are recomputed, the plan's own must equal them.

    Of a plan whose quotas are drawn anew, `figures` are those of the draw that was measured: the plan gives the
    largest over all draws, which must be `largest_bytes` of training memory, that of the draw that was measured.
    `weight_bytes`: what scope `peak` leaves out, because it is in flash.
    """
    said = plan.predicted if plan.sampling.draws is None else figures
    peak_bytes = plan.predicted.live_peak_bytes if plan.sampling.draws is None else dry.live_peak_bytes or 0
    rows = [
        ("training", said.training_bytes, dry.training_bytes, real.training_bytes),
        ("saved", said.saved_bytes, dry.saved_bytes, real.saved_bytes),
        ("saved, counted as storages alive", figures.saved_bytes, dry.alive_saved_bytes, real.alive_saved_bytes),
        ("selected activations", said.selected_bytes, dry.selected_bytes, real.selected_bytes),
        ("pass-through", said.passthrough_bytes, _through(dry), _through(real)),
        ("loss", said.loss_bytes, dry.loss_bytes, real.loss_bytes),
        ("gradients", said.gradients_bytes, dry.gradients_bytes, real.gradients_bytes),
        ("indices", said.index_bytes, dry.index_bytes, real.index_bytes),
        ("optimizer state", said.optimizer_bytes, dry.optimizer_bytes, real.optimizer_bytes),
        ("working copies", said.copy_bytes, dry.copy_bytes, real.copy_bytes),
        ("update", said.update_bytes, dry.update_bytes, real.update_bytes),
        ("live peak", peak_bytes, dry.live_peak_bytes, real.live_peak_bytes),
    ]
    if largest_bytes is not None:
        count = len(plan.sampling.draws or ())
        name = f"training, largest of {count} draws"
        rows.insert(1, (name, plan.predicted.training_bytes, largest_bytes, real.training_bytes))
    categories = tuple(
        Category(name=name, predicted_bytes=predicted, dry_run_bytes=fake or 0, measured_bytes=measured or 0)
        for name, predicted, fake, measured in rows
    )
    return Verification(
        categories=categories, budget_bytes=plan.budget_bytes, scope=plan.scope, weight_bytes=weight_bytes
    )


def _through(step: StepMeasurement) -> int:
    return step.saved_bytes - step.selected_bytes
