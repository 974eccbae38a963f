"""Strategies: planners with one signature, `PlanRequest -> Decision`. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from medyate_planner.planning.decision import Strategy
from medyate_planner.planning.strategies.bias_only import bias_only
from medyate_planner.planning.strategies.evolutionary import evolutionary
from medyate_planner.planning.strategies.full import full
from medyate_planner.planning.strategies.greedy import greedy
from medyate_planner.planning.strategies.head_only import head_only
from medyate_planner.planning.strategies.lara_medyate import lara_medyate
from medyate_planner.planning.strategies.lara_trady import lara_trady
from medyate_planner.planning.strategies.last_k import last_k
from medyate_planner.planning.strategies.medyate import medyate
from medyate_planner.planning.strategies.optimal import optimal
from medyate_planner.planning.strategies.paca import paca
from medyate_planner.planning.strategies.random_net import random_net
from medyate_planner.planning.strategies.rgn import rgn
from medyate_planner.planning.strategies.sparse_update import sparse_update
from medyate_planner.planning.strategies.trady import trady
from medyate_planner.planning.strategies.trady_static import trady_static

STRATEGIES: Mapping[str, Strategy] = {
    "optimal": optimal,
    "greedy": greedy,
    "evolutionary": evolutionary,
    "full": full,
    "head-only": head_only,
    "last-k": last_k,
    "bias-only": bias_only,
    "sparse-update": sparse_update,
    "paca": paca,
    "random": random_net,
    "trady-static": trady_static,
    "trady": trady,
    "rgn": rgn,
    "medyate": medyate,
    "lara-trady": lara_trady,
    "lara-medyate": lara_medyate,
}

DRAWS_BY_IMPORTANCE = frozenset({"rgn", "medyate", "lara-medyate"})  # weights alone can not stand in for it

DRAWS = DRAWS_BY_IMPORTANCE | {"paca", "random", "trady-static", "trady", "lara-trady", "sparse-update"}

CHANGES_QUOTAS = frozenset({"random", "trady", "medyate", "lara-trady", "lara-medyate"})  # from interval to interval

__all__ = ["CHANGES_QUOTAS", "DRAWS", "DRAWS_BY_IMPORTANCE", "STRATEGIES", "Strategy", "full", "head_only", "optimal"]
