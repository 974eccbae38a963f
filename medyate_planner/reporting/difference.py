"""What differs between two of our files of one kind: settings, figures, layers. Plain data; drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.frontier_view import FrontierReport
from medyate_planner.reporting.view import MemoryReport

Comparable = Plan | FrontierReport | MemoryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingDifference:
    """Something that was asked for differently."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureDifference:
    """A figure in both files; None where a file lacks it. `change` is b - a."""

    name: str
    unit: str
    a: float | None
    b: float | None
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """A layer updated otherwise: channels in a and in b, 0 where it is not updated, None where they are drawn anew."""

    name: str
    a: int | None
    b: int | None
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two files beside each other. `notes` are what a reader must know, such as that the models are not the same."""

    kind: str
    same_model: bool
    notes: tuple[str, ...] = ()
    settings: tuple[SettingDifference, ...] = ()
    figures: tuple[FigureDifference, ...] = ()
    layers: tuple[LayerDifference, ...] = ()
    biases_entering: tuple[str, ...] = ()
    biases_leaving: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = ("settings", "figures", "layers")
        listed = {name: [asdict(row) for row in data[name]] for name in rows}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
        return {**plain, **listed, "kind": "difference", "of": self.kind}


def difference_of(a: Comparable, b: Comparable) -> Difference:
    """What is otherwise in b than in a.

    Raises:
        InputError: they are of different kinds.
    """
    if isinstance(a, Plan) and isinstance(b, Plan):
        return _plans(a, b)
    if isinstance(a, FrontierReport) and isinstance(b, FrontierReport):
        return _frontiers(a, b)
    if isinstance(a, MemoryReport) and isinstance(b, MemoryReport):
        return _reports(a, b)
    raise InputError(f"--diff compares files of one kind, got a {a.kind} and a {b.kind}")


_PLAN_SETTINGS = (
    "batch_size", "dtype", "device", "loss", "dropout", "norm", "autocast", "budget_bytes", "scope", "margin_ratio",
    "weights_in", "strategy", "objective_name", "curve", "metric", "max_flops", "update", "optimizer",
)  # fmt: skip
_FRONTIER_SETTINGS = (
    "batch_size", "dtype", "device", "loss", "scope", "margin_ratio", "weights_in", "strategy", "objective_name",
    "curve", "metric", "max_layers", "max_flops", "granularity",
)  # fmt: skip


def _plans(a: Plan, b: Plan) -> Difference:
    same = a.model.fingerprint == b.model.fingerprint
    pairs = [("model", a.model.spec, b.model.spec), *_attributes(_PLAN_SETTINGS, a, b)]
    settings = ("method", "seed", "interval", "alpha", "metric", "boost")
    pairs += [(f"sampling.{name}", *pair) for name, *pair in _attributes(settings, a.sampling, b.sampling)]
    pairs += [("importance", a.importance.source, b.importance.source)]
    pairs += [("importance file (SHA-256)", a.importance.sha256, b.importance.sha256)]
    figures = [("objective", "", a.objective, b.objective), ("used (scope)", "B", a.used_bytes, b.used_bytes)]
    figures += [
        (name, "" if name in ("elements", "flops", "full_flops") else "B", *pair)
        for name, *pair in _attributes(type(a.predicted).model_fields, a.predicted, b.predicted)
    ]
    return Difference(
        kind="plan",
        same_model=same,
        notes=() if same else ("the plans are of different models: their layers are compared by name",),
        settings=_settings(pairs),
        figures=_figures(figures),
        layers=tuple(_layers(_quotas(a), _quotas(b))),
        biases_entering=tuple(name for name in b.biases if name not in a.biases),
        biases_leaving=tuple(name for name in a.biases if name not in b.biases),
    )


def _frontiers(a: FrontierReport, b: FrontierReport) -> Difference:
    same = a.model.fingerprint == b.model.fingerprint
    pairs = [("model", a.model.spec, b.model.spec), *_attributes(_FRONTIER_SETTINGS, a, b)]
    pairs += [("importance", a.importance.source, b.importance.source)]
    figures: list[tuple[str, str, float | None, float | None]] = [
        ("smallest budget", "B", a.minimum_bytes, b.minimum_bytes),
        ("knee", "B", a.knee_bytes, b.knee_bytes),
    ]
    values = [{point.budget_bytes: point.objective for point in frontier.points} for frontier in (a, b)]
    for budget in sorted({*values[0], *values[1]}):
        figures.append((f"value at {budget:,} B", "", values[0].get(budget), values[1].get(budget)))
    alike = a.objective_name == b.objective_name and a.importance == b.importance and same
    notes = ["the frontiers are of different models"] if not same else []
    notes += [] if alike else ["values can be compared only for one model, one objective and one importance"]
    return Difference(
        kind="frontier", same_model=same, notes=tuple(notes), settings=_settings(pairs), figures=_figures(figures)
    )


def _reports(a: MemoryReport, b: MemoryReport) -> Difference:
    same = a.model.fingerprint == b.model.fingerprint and a.model.fingerprint is not None
    pairs = [("model", a.model.spec, b.model.spec), *_attributes(("batch_size", "dtype"), a, b)]
    pairs += [*_attributes(type(a.regime).model_fields, a.regime, b.regime)]
    figures = [
        (f"full: {name}", "B", *pair)
        for name, *pair in _attributes(type(a.full).model_fields, a.full, b.full)
        if name != "optimizer"
    ]
    steps = [{step.name: step for step in report.steps} for report in (a, b)]
    for step in dict.fromkeys([*steps[0], *steps[1]]):
        for name in ("saved_bytes", "training_bytes", "live_peak_bytes"):
            pair = [getattr(found.get(step), name, None) for found in steps]
            figures.append((f"{step}: {name}", "B", *pair))
    return Difference(
        kind="report",
        same_model=same,
        notes=() if same else ("the reports are of different models, or of one that can not be captured",),
        settings=_settings(pairs),
        figures=_figures(dict.fromkeys(figures)),
    )


def _attributes(names: Iterable[str], a: object, b: object) -> list[tuple[str, Any, Any]]:
    return [(name, getattr(a, name), getattr(b, name)) for name in names]


def _settings(pairs: Iterable[tuple[str, Any, Any]]) -> tuple[SettingDifference, ...]:
    return tuple(SettingDifference(name=name, a=_text(a), b=_text(b)) for name, a, b in pairs if a != b)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _figures(rows: Iterable[tuple[str, str, float | None, float | None]]) -> tuple[FigureDifference, ...]:
    return tuple(
        FigureDifference(name=name, unit=unit, a=a, b=b, change=None if a is None or b is None else b - a)
        for name, unit, a, b in rows
        if a is not None or b is not None
    )


def _quotas(plan: Plan) -> Mapping[str, int | None]:
    return {layer.name: layer.quota for layer in plan.layers}


def _layers(a: Mapping[str, int | None], b: Mapping[str, int | None]) -> Sequence[LayerDifference]:
    """Layers that are not the same in both, in a's order, then those that b alone has."""
    found = []
    for name in dict.fromkeys([*a, *b]):
        before, after = a.get(name, 0), b.get(name, 0)
        if before == after:
            continue
        change = "enters" if name not in a else "leaves" if name not in b else "quota"
        found.append(LayerDifference(name=name, a=before, b=after, change=change))
    return found
