"""What is asked of a planner: the memory model, what channels are worth, the budget, and side constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from medyate_planner.errors import ContradictionError, InputError, did_you_mean, unknown_name
from medyate_planner.graph import Layer
from medyate_planner.importance.curves import ValueCurve, bias_value, value_curve
from medyate_planner.importance.energy import Importance
from medyate_planner.importance.metrics import METRICS, weighed
from medyate_planner.memory.accounting import SparseUpdateScheme
from medyate_planner.memory.flops import FlopModel
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.peak import PeakModel

SCOPES = ("update", "training", "peak")
HEADS = ("full", "channels", "optional")
WEIGHTS_IN = ("ram", "flash")
_MOST_INTERVALS = 1000  # each draw is filled exactly and certified by a dry run of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """What single strategies can be told; each reads its own.

    `top_share` or `top_layers` choose the K layers of TraDy and MeDyate; `intervals` is how many draws a strategy that
    draws across layers is planned for; the rest is the evolutionary search's.
    """

    scheme: SparseUpdateScheme | None = None
    last_layers: int | None = None
    top_share: float = 0.97
    top_layers: int | None = None
    intervals: int = 20
    alpha: float = 1.0
    boost: float = 0.0
    population: int = 48
    generations: int = 60
    mutation: float = 0.1

    def __post_init__(self) -> None:
        for name in ("last_layers", "top_layers", "intervals", "population", "generations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")
        if self.intervals > _MOST_INTERVALS:
            raise InputError(f"--intervals: expected {_MOST_INTERVALS} or fewer, got {self.intervals}")
        for name, low, high in (("top_share", 0.0, 1.0), ("mutation", 0.0, 1.0), ("boost", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"--{name.replace('_', '-')}: expected 0 to 1, got {getattr(self, name)}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"--alpha: expected a finite number of 0 or more, got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A planning problem. Every strategy answers it with a `Decision`.

    `margin_ratio` is kept free of the budget, for what an allocator adds; `weights_in` "flash" leaves parameters and
    buffers out of scope `peak`; `max_flops` limits one training step (memory.flops). `head` "channels" sells the head
    by channels like any other layer instead of training it in full. `magnitudes` are mean squares of the pre-trained
    weights by channel, by which strategy sparse-update chooses.
    """

    memory: MemoryModel
    importance: Importance
    budget_bytes: int
    scope: str = "training"
    margin_ratio: float = 0.0
    weights_in: str = "ram"
    objective: str = "projection"
    curve: str = "uniform"
    metric: str = "sized"
    head_mode: str = "full"
    buy_biases: bool = True
    buy_norm_scales: bool = False
    max_layers: int | None = None
    granularity: int = 1
    min_quota: int = 1
    max_quota: int | None = None
    max_flops: int | None = None
    force_layers: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()
    forbid_layers: tuple[str, ...] = ()
    gap_ratio: float = 1e-3
    time_limit_seconds: float | None = None
    lp_file: Path | None = None
    seed: int = 0
    settings: StrategySettings = field(default_factory=StrategySettings)
    magnitudes: Importance | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--scope", self.scope, SCOPES),
            ("--metric", self.metric, METRICS),
            ("--weights-in", self.weights_in, WEIGHTS_IN),
            ("head", self.head_mode, HEADS),
        ):
            if value not in known:
                offered = [choice for choice in known if choice != "optional"]  # that one is for demands.py
                raise unknown_name(name, value, offered)
        for option in ("granularity", "min_quota", "max_quota", "max_layers", "max_flops"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InputError(f"--{option.replace('_', '-')}: expected 1 or more, got {value}")
        if self.max_quota is not None and self.max_quota < max(self.min_quota, self.granularity):
            raise InputError(
                f"--max-quota {self.max_quota} is below --min-quota {self.min_quota} or --granularity "
                f"{self.granularity}: no layer could be bought"
            )
        if not (math.isfinite(self.gap_ratio) and self.gap_ratio >= 0):
            raise InputError(f"--gap: expected 0 or more, got {self.gap_ratio}")
        if not (math.isfinite(self.margin_ratio) and self.margin_ratio >= 0):
            raise InputError(f"--margin: expected 0 or more, got {self.margin_ratio}")
        if self.time_limit_seconds is not None and not self.time_limit_seconds > 0:
            raise InputError(f"--time-limit: expected more than 0 seconds, got {self.time_limit_seconds}")
        for pattern in (*self.force_layers, *self.forbid_layers):
            if not any(fnmatchcase(unit.name, pattern) for unit in self.memory.graph.units):
                raise _no_such_layer(pattern, [unit.name for unit in self.memory.graph.units])
        self._check_forced()

    def _check_forced(self) -> None:
        wanted = {layer.name for layer in self.memory.graph.units if self._is_forced(layer)}
        for name in sorted(wanted - self.head - {layer.name for layer in self.layers}):
            self._refuse_forced(name)

    def _refuse_forced(self, name: str) -> None:
        """Say why a forced layer can not be updated."""
        force = next(p for p in self.force_layers if fnmatchcase(name, p) and p not in self.waived)
        forbid = next((p for p in self.forbid_layers if fnmatchcase(name, p)), None)
        if forbid is not None:
            raise ContradictionError((f"--force-layer {force}", f"--forbid-layer {forbid}"))
        if not self.memory.site_positions[name]:
            raise InputError(
                f"layer {name} is forced, but the loss does not depend on it; correct --force-layer {force}"
            )
        raise ContradictionError((f"--force-layer {force}", f"--granularity {self.granularity}"))

    def check_head(self) -> None:
        """Raise `InputError` if the user forbids the head, and it alone: a wider pattern means what is for sale."""
        for pattern in self.forbid_layers:
            matched = {unit.name for unit in self.memory.graph.units if fnmatchcase(unit.name, pattern)}
            if matched <= self.head:
                raise InputError(
                    f"--forbid-layer {pattern} forbids the head, which is trained in full; pass --head none or "
                    "--head-by-channels"
                )

    @cached_property
    def limit_bytes(self) -> int:
        """What the scope's figure may be: the budget less its margin."""
        return int(Fraction(self.budget_bytes) / (1 + Fraction(str(self.margin_ratio))))

    def budget_for(self, scope_bytes: int) -> int:
        """The smallest budget whose limit is `scope_bytes`: the inverse of `limit_bytes`."""
        return math.ceil(scope_bytes * (1 + Fraction(str(self.margin_ratio))))

    @cached_property
    def peak(self) -> PeakModel:
        """Moments of scope `peak`."""
        return PeakModel(self.memory)

    @cached_property
    def flops(self) -> FlopModel:
        """Floating-point operations of a step."""
        return FlopModel(self.memory)

    @cached_property
    def head(self) -> frozenset[str]:
        """Layers trained in full."""
        return frozenset(self.memory.graph.head) if self.head_mode == "full" else frozenset()

    @cached_property
    def forced(self) -> frozenset[str]:
        """Layers that must be updated."""
        return frozenset(layer.name for layer in self.layers if self._is_forced(layer))

    def _is_forced(self, layer: Layer) -> bool:
        if self.head_mode == "optional" and layer.name in self.memory.graph.head:
            return False
        return _matches(layer.name, tuple(p for p in self.force_layers if p not in self.waived))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that may be bought by channels, in forward order."""
        norms = {norm.name for norm in self.memory.graph.norms}
        return tuple(
            unit
            for unit in self._for_sale
            if self.most(unit) >= 1
            and (unit.name not in norms or self.buy_norm_scales or _matches(unit.name, self.force_layers))
        )

    @cached_property
    def biases(self) -> tuple[Layer, ...]:
        """Layers whose bias may be bought, norms among them, in forward order."""
        if not self.buy_biases:
            return ()
        return tuple(unit for unit in self._for_sale if unit.bias is not None and unit.channels >= self.granularity)

    @cached_property
    def _for_sale(self) -> tuple[Layer, ...]:
        reachable = self.memory.site_positions
        return tuple(
            unit
            for unit in self.memory.graph.units
            if unit.name not in self.head
            and not _matches(unit.name, self.forbid_layers)
            and reachable[unit.name]
            and (unit.trainable or _matches(unit.name, self.force_layers))
        )

    def most(self, layer: Layer) -> int:
        """The largest quota a layer may have: a multiple of the granularity, 0 if there is none."""
        return min(layer.channels, self.max_quota or layer.channels) // self.granularity * self.granularity

    def least(self, layer: Layer) -> int:
        """The smallest quota of an updated layer; a layer too small for `min_quota` is bought whole or not at all."""
        wanted = -(-self.min_quota // self.granularity) * self.granularity
        return min(max(wanted, self.granularity), self.most(layer))

    @cached_property
    def valued(self) -> Importance:
        """The importance as `metric` sees it."""
        return weighed(self.importance, self.metric, self.memory)

    @cached_property
    def curves(self) -> Mapping[str, ValueCurve]:
        """Value of n channels, by layer."""
        return {
            layer.name: value_curve(self.valued, layer.name, objective=self.objective, curve=self.curve, seed=self.seed)
            for layer in self.layers
        }

    @cached_property
    def bias_values(self) -> Mapping[str, float]:
        """Value of a bias, by layer."""
        return {layer.name: bias_value(self.valued, layer.name, self.objective) for layer in self.biases}

    def updates(self, quotas: Mapping[str, int], biases: frozenset[str] = frozenset()) -> Updates:
        """These quotas and biases, together with the head in full."""
        return Updates(quotas={k: n for k, n in quotas.items() if n}, biases=biases, full=self.head)

    def value(self, updates: Updates) -> float:
        """Exact objective: sum of V_l(n_l) and of the biases' values."""
        curves = self.curves
        channels = [curves[name].values[n] for name, n in updates.quotas.items() if name in curves]
        return self._sum(channels, updates)

    def interpolated_value(self, updates: Updates) -> float:
        """The objective as the ILP sees it, through the breakpoints."""
        curves = self.curves
        channels = [curves[name].interpolated(n) for name, n in updates.quotas.items() if name in curves]
        return self._sum(channels, updates)

    def _sum(self, channels: list[float], updates: Updates) -> float:
        """Exactly rounded, so that it does not depend on the order, which a set of biases does not have."""
        return math.fsum([*channels, *(self.bias_values.get(name, 0.0) for name in updates.biases)])


def _no_such_layer(pattern: str, names: list[str]) -> InputError:
    """The error for a pattern that fits nothing, with patterns near it that do: a layer's name, or all in a module."""
    parts = [name.split(".") for name in names]
    modules = [".".join([*path[:depth], "*"]) for path in parts for depth in range(1, len(path))]
    near = did_you_mean(pattern, dict.fromkeys([*modules, *names]))
    return InputError(f"layer pattern {pattern!r} matches no layer; {near}see `medyate report` for the names")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
