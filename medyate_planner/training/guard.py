"""The guard of a budget: training stops when a step is seen to hold more than was planned."""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner.errors import BudgetExceededError
from medyate_planner.planning.plan import Plan
from medyate_planner.training.measure import StepMeasurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The budget of a plan, and the figure that it limits. `forward_updates`: so does a forward, statistics of norms.

    Scope `peak` follows every live storage, which takes time; the other scopes only what is kept.
    """

    budget_bytes: int
    scope: str
    weights_in_flash_bytes: int = 0
    forward_updates: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Guard:
        """The guard of a plan's budget."""
        return cls(
            budget_bytes=plan.budget_bytes,
            scope=plan.scope,
            weights_in_flash_bytes=plan.predicted.weights_in_flash_bytes,
            forward_updates=plan.norm == "train",
        )

    @property
    def live(self) -> bool:
        """Whether it must see all live storages."""
        return self.scope == "peak"

    def used_bytes(self, seen: StepMeasurement) -> int:
        """The figure that the budget limits, of a step or of what has run of it."""
        if self.scope == "peak":
            return (seen.live_peak_bytes or 0) - self.weights_in_flash_bytes
        return seen.update_bytes if self.scope == "update" else seen.training_bytes

    def check(self, seen: StepMeasurement, where: tuple[int, int], *, undone: bool) -> None:
        """Raise `BudgetExceededError` if a step, or what has run of it, holds more than the budget.

        `undone`: it was only the forward of its first batch.
        """
        used = self.used_bytes(seen)
        if used > self.budget_bytes:
            raise BudgetExceededError(
                budget_bytes=self.budget_bytes,
                measured_bytes=used,
                scope=self.scope,
                epoch=where[0],
                step=where[1],
                undone=undone and not self.forward_updates,
            )
