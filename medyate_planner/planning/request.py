"""What is asked of a planner, and what it answers: the same two types for every strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer
from medyate_planner.importance.curves import ValueCurve, bias_value, value_curve
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import MemoryModel, Updates

SCOPES = ("update", "training")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A planning problem: the memory model, what channels are worth, the budget, and side constraints."""

    memory: MemoryModel
    importance: Importance
    budget_bytes: int
    scope: str = "training"
    objective: str = "norm"
    curve: str = "uniform"
    buy_biases: bool = True
    max_layers: int | None = None
    granularity: int = 1
    force_layers: tuple[str, ...] = ()
    forbid_layers: tuple[str, ...] = ()
    gap_ratio: float = 1e-3
    time_limit_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise InputError(f"scope {self.scope!r} is unknown; choose one of {', '.join(SCOPES)}")
        if self.granularity < 1:
            raise InputError(f"--granularity: expected 1 or more, got {self.granularity}")
        if self.max_layers is not None and self.max_layers < 1:
            raise InputError(f"--max-layers: expected 1 or more, got {self.max_layers}")
        if not (math.isfinite(self.gap_ratio) and self.gap_ratio >= 0):
            raise InputError(f"--gap: expected 0 or more, got {self.gap_ratio}")
        if self.time_limit_seconds is not None and not self.time_limit_seconds > 0:
            raise InputError(f"--time-limit: expected more than 0 seconds, got {self.time_limit_seconds}")
        for pattern in (*self.force_layers, *self.forbid_layers):
            if not any(fnmatchcase(layer.name, pattern) for layer in self.memory.graph.layers):
                raise InputError(f"layer pattern {pattern!r} matches no layer; see `medyate report` for the names")
        self._check_forced()

    def _check_forced(self) -> None:
        wanted = {layer.name for layer in self.memory.graph.layers if _matches(layer.name, self.force_layers)}
        lost = sorted(wanted - self.head - {layer.name for layer in self.layers})
        if lost:
            raise InputError(
                f"layer {lost[0]} is forced, but can not be updated: it is forbidden, or has fewer channels than the "
                f"granularity {self.granularity}"
            )
        if self.max_layers is not None and len(self.forced) > self.max_layers:
            raise InputError(f"{len(self.forced)} layers are forced, but --max-layers allows {self.max_layers}")

    @cached_property
    def head(self) -> frozenset[str]:
        """Layers trained in full."""
        return frozenset(self.memory.graph.head)

    @cached_property
    def forced(self) -> frozenset[str]:
        """Layers that must be updated."""
        return frozenset(layer.name for layer in self.layers if _matches(layer.name, self.force_layers))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that may be bought by channels, in forward order."""
        reachable = self.memory.site_positions
        return tuple(
            layer
            for layer in self.memory.graph.layers
            if layer.name not in self.head
            and not _matches(layer.name, self.forbid_layers)
            and reachable[layer.name]
            and layer.channels >= self.granularity
            and (layer.trainable or _matches(layer.name, self.force_layers))
        )

    @cached_property
    def biases(self) -> tuple[Layer, ...]:
        """Layers whose bias may be bought."""
        return tuple(layer for layer in self.layers if layer.bias is not None) if self.buy_biases else ()

    @cached_property
    def curves(self) -> Mapping[str, ValueCurve]:
        """Value of n channels, by layer."""
        return {
            layer.name: value_curve(
                self.importance, layer.name, objective=self.objective, curve=self.curve, seed=self.seed
            )
            for layer in self.layers
        }

    @cached_property
    def bias_values(self) -> Mapping[str, float]:
        """Value of a bias, by layer."""
        return {layer.name: bias_value(self.importance, layer.name, self.objective) for layer in self.biases}

    def updates(self, quotas: Mapping[str, int], biases: frozenset[str] = frozenset()) -> Updates:
        """These quotas and biases, together with the head in full."""
        return Updates(quotas={k: n for k, n in quotas.items() if n}, biases=biases, full=self.head)

    def value(self, updates: Updates) -> float:
        """Exact objective: sum of V_l(n_l) and of the biases' values."""
        channels = sum(self.curves[name].values[n] for name, n in updates.quotas.items())
        return channels + sum(self.bias_values.get(name, 0.0) for name in updates.biases)

    def interpolated_value(self, updates: Updates) -> float:
        """The objective as the ILP sees it, through the breakpoints."""
        channels = sum(self.curves[name].interpolated(n) for name, n in updates.quotas.items())
        return channels + sum(self.bias_values.get(name, 0.0) for name in updates.biases)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a strategy decided. `status` is "optimal" (within `gap_ratio`) or "feasible"."""

    updates: Updates
    strategy: str
    status: str
    gap_ratio: float
    bound: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
