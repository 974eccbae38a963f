"""What every strategy answers: updates, how sure it is of them, and how channels are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medyate_planner.memory.model import Updates
from medyate_planner.planning.request import PlanRequest


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a strategy decided. `status` is "optimal" (within `gap_ratio`) or "feasible".

    `sampling` holds what the strategy settles of the plan's sampling (method, metric, pool, draws, channels, boost,
    oracle); the rest is the user's choice. A strategy that draws across layers gives the quotas of each interval in
    `draws`; `updates` is then the first.
    """

    updates: Updates
    strategy: str
    status: str = "feasible"
    gap_ratio: float = 0.0
    bound: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    draws: tuple[Updates, ...] = ()

    @property
    def all_updates(self) -> tuple[Updates, ...]:
        """Everything that is trained at one time or another, interval by interval."""
        return self.draws or (self.updates,)


Strategy = Callable[[PlanRequest], Decision]
