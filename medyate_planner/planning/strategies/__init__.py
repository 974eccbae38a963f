"""Strategies: planners with one signature, `PlanRequest -> Decision`. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from medyate_planner.planning.decision import Strategy
from medyate_planner.planning.strategies.full import full
from medyate_planner.planning.strategies.head_only import head_only
from medyate_planner.planning.strategies.optimal import optimal

STRATEGIES: Mapping[str, Strategy] = {"optimal": optimal, "head-only": head_only, "full": full}

__all__ = ["STRATEGIES", "Strategy", "full", "head_only", "optimal"]
