"""The memory report as one HTML page that needs no network. Sums are made here, never in the template or its script.

Two steps, as in memray: `Page` is plain data, the templates draw it. Names of modules come from strangers' models: they
are escaped, stripped of what can not be printed, and the page's own content security policy forbids every script and
style but the two that were hashed here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.view import (
    MemoryReport,
    ReportedModule,
    ReportedRegime,
    ReportedStep,
    ReportedTimeline,
)
from medyate_planner.units import format_bytes, format_count

LARGEST_MODULES = 25
_MODULE_PARTS = (
    ("weights_bytes", Category.WEIGHTS, "weights"),
    ("gradients_bytes", Category.WEIGHT_GRADIENTS, "gradients"),
    ("optimizer_bytes", Category.OPTIMIZER_STATE, "optimizer state"),
    ("saved_bytes", Category.KEPT, "saved for backward"),
)
_IN_JSON = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: what is shown, what it is sorted by, a smaller second line, and a bar of 0 to 100 percent."""

    text: str
    value: int | None = None
    note: str = ""
    bar_percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; the first column names the row. With `search`, rows can be sorted and filtered by that name."""

    id: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...] = ()
    search: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of one category at the peak of a step, or of one kind in a module's bar (`start`, `width`: percent)."""

    css: str
    meaning: str
    cell: Cell
    start: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What stands beside the drawing of one step: its peak, and the categories from the top of the stack down."""

    title: str
    description: str
    operator: str
    module: str
    source: str
    phase: str
    position: str
    parts: tuple[Part, ...]
    total: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One module's bytes, or those of all the smaller ones together."""

    name: str
    kind: str
    total: Cell
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything the page shows. `drawing` is the data of its script."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    capture_error: str | None
    steps: Table
    panels: tuple[Panel, ...]
    bars: tuple[Bar, ...]
    legend: tuple[Part, ...]
    figures: tuple[Table, ...]
    verdict: str
    modules: Table
    layers: Table
    drawing: dict[str, Any]


def render_html(report: MemoryReport) -> str:
    """Draw a memory report as one self-contained page; the same report gives the same bytes."""
    style, script = _asset("page.css"), _asset("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("report.html")).render(
        page=page_of(report),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(embedded_json(page_of(report).drawing)),
    )


def page_of(report: MemoryReport) -> Page:
    """Everything the page shows, as plain data."""
    parts = tuple(Part(css=category.value, meaning=name, cell=_bytes(0)) for _, category, name in _MODULE_PARTS)
    return Page(
        title=printable(report.model.spec),
        lead=_lead(report.steps),
        facts=_facts(report),
        capture_error=None if report.capture_error is None else printable(report.capture_error),
        steps=_steps_table(report.steps),
        panels=tuple(_panel(step) for step in report.steps),
        bars=_bars(report.modules),
        legend=parts,
        figures=_figures(report),
        verdict=_verdict(report),
        modules=_modules_table(report.modules),
        layers=_layers_table(report),
        drawing=_drawing(report.steps),
    )


def printable(text: str) -> str:
    """The text with a visible placeholder for what can not be printed: control, bidi and separator characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def embedded_json(data: Any) -> str:
    """JSON that can stand inside a `script` element: no character that could end it."""
    return json.dumps(data, separators=(",", ":")).translate(_IN_JSON)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _bytes(amount: int, *, of: int | None = None, note: str | None = None) -> Cell:
    """Exact bytes, with the human form as the second line; `of` is what a full bar would be."""
    human = format_bytes(amount) if abs(amount) >= 1000 else ""
    percent = None if of is None else round(100 * amount / max(of, 1), 2)
    return Cell(text=f"{amount:,} B", value=amount, note=human if note is None else note, bar_percent=percent)


def _count(amount: int) -> Cell:
    return Cell(text=f"{amount:,}", value=amount)


def _text(text: str, note: str = "") -> Cell:
    return Cell(text=printable(text), note=printable(note))


def _place(module: str) -> str:
    return printable(module) if module else "-"


def _lead(steps: Sequence[ReportedStep]) -> str:
    """The first thing to know: where the largest peak is."""
    full = next((step for step in steps if step.name == "full"), None)
    if full is None:
        return ""
    line, peak = full.timeline, full.timeline.peak_index
    where = f" of {printable(line.module[peak])}" if line.module[peak] else ""
    return (
        f"{_capital(full.title)} holds at most {format_bytes(full.live_peak_bytes)} at one moment, "
        f"in the {line.phase[peak]} phase, after {printable(line.operator[peak])}{where}."
    )


def _capital(text: str) -> str:
    return printable(text[:1].upper() + text[1:])


def _facts(report: MemoryReport) -> tuple[tuple[str, str], ...]:
    regime: ReportedRegime = report.regime
    facts = [
        ("parameters", f"{report.model.num_parameters:,} ({format_count(report.model.num_parameters)})"),
        ("batch", f"{report.batch_size:,}"),
        ("dtype", report.dtype if regime.autocast is None else f"{report.dtype}, autocast {regime.autocast}"),
        ("optimizer", regime.optimizer),
        ("norms", regime.norm),
    ]
    if regime.accumulation > 1:
        facts.append(("accumulation", f"{regime.accumulation:,} passes"))
    facts.append(("trained", "every parameter" if regime.train == ("*",) else ", ".join(regime.train)))
    if report.model.fingerprint is not None:
        facts.append(("fingerprint", report.model.fingerprint[:12]))
    return tuple((name, printable(value)) for name, value in facts)


def _steps_table(steps: Sequence[ReportedStep]) -> Table:
    """Steps by the three numbers; all bars on one scale, the columns nobody filled left out."""
    columns = [
        ("saved", [step.saved_bytes for step in steps]),
        ("training", [step.training_bytes for step in steps]),
        ("live peak", [step.live_peak_bytes for step in steps]),
        ("closed-form bound", [step.live_peak_bound_bytes for step in steps]),
        ("allocator's peak", [step.allocator_peak_bytes for step in steps]),
    ]
    shown = [(name, amounts) for name, amounts in columns if any(amount is not None for amount in amounts)]
    largest = max((amount for _, amounts in shown for amount in amounts if amount is not None), default=1)
    full = next((step.live_peak_bytes for step in steps if step.name == "full"), None)
    rows = []
    for index, step in enumerate(steps):
        less = "" if full is None or step.name not in ("lean_full", "plan") else _times_less(step.live_peak_bytes, full)
        amounts = [amounts[index] for _, amounts in shown]
        cells = [Cell(text="-") if amount is None else _bytes(amount, of=largest) for amount in amounts]
        rows.append((_text(_capital(step.title), less), *cells))
    return Table(
        id="steps", caption="Bytes of one step", columns=("step", *(name for name, _ in shown)), rows=tuple(rows)
    )


def _times_less(amount: int, full: int) -> str:
    ratio = full / max(amount, 1)
    return f"live peak {ratio:.1f} times lower than full fine-tuning" if ratio >= 1.05 else ""


def _panel(step: ReportedStep) -> Panel:
    line, peak = step.timeline, step.timeline.peak_index
    amounts = line.live_bytes[peak]
    parts = [
        Part(
            css=_css(name),
            meaning=_meaning(name),
            cell=_bytes(amount, note=f"{format_bytes(amount)} · {amount / max(line.peak_bytes, 1):.1%}"),
        )
        for name, amount in zip(line.categories, amounts, strict=True)
    ]
    return Panel(
        title=_capital(step.title),
        description=_description(step),
        operator=printable(line.operator[peak]),
        module=_place(line.module[peak]),
        source=_place(line.source[peak]),
        phase=printable(line.phase[peak]),
        position=f"{peak + 1:,} of {len(line.operator):,}",
        parts=tuple(reversed(parts)),
        total=_bytes(line.peak_bytes),
    )


def _description(step: ReportedStep) -> str:
    """What a person who does not see the drawing needs to know of it."""
    line, peak = step.timeline, step.timeline.peak_index
    phases = ", ".join(dict.fromkeys(line.phase))
    return printable(
        f"Memory over the {len(line.operator):,} operators of {step.title} ({phases}), stacked by category. "
        f"Peak {format_bytes(line.peak_bytes)} ({line.peak_bytes:,} bytes) at operator {peak + 1:,}, "
        f"{line.operator[peak]} {line.module[peak]}."
    )


def _css(category: str) -> str:
    """A known category's own class of colour."""
    return category if category in Category._value2member_map_ else "other"


def _meaning(category: str) -> str:
    return Category(category).meaning if category in Category._value2member_map_ else printable(category)


def _bars(modules: Sequence[ReportedModule]) -> tuple[Bar, ...]:
    """The largest modules, then the rest as one."""
    ordered = sorted((m for m in modules if m.total_bytes), key=lambda module: -module.total_bytes)
    largest, rest = ordered[:LARGEST_MODULES], ordered[LARGEST_MODULES:]
    rows = [(module.path or "(the model itself)", module.kind, _parts_of([module])) for module in largest]
    if rest:
        rows.append((f"other ({len(rest):,} modules)", "", _parts_of(rest)))
    scale = max((sum(amounts) for _, _, amounts in rows), default=1)
    return tuple(_bar(name, kind, amounts, scale) for name, kind, amounts in rows)


def _bar(name: str, kind: str, amounts: Sequence[int], scale: int) -> Bar:
    parts, before = [], 0
    for (_, category, meaning), amount in zip(_MODULE_PARTS, amounts, strict=True):
        start, width = round(100 * before / scale, 3), round(100 * amount / scale, 3)
        parts.append(Part(css=category.value, meaning=meaning, cell=_bytes(amount), start=start, width=width))
        before += amount
    return Bar(name=printable(name), kind=printable(kind), total=_bytes(before), parts=tuple(parts))


def _parts_of(modules: Iterable[ReportedModule]) -> tuple[int, ...]:
    """Bytes of the four kinds, summed over modules."""
    rows = [tuple(getattr(module, field) for field, _, _ in _MODULE_PARTS) for module in modules]
    return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else (0,) * len(_MODULE_PARTS)


def _modules_table(modules: Sequence[ReportedModule]) -> Table:
    rows = [
        (
            _text(module.path or "(the model itself)"),
            _text(module.kind),
            *(_count(amount) for amount in (module.parameters, *_parts_of([module]), module.total_bytes)),
        )
        for module in modules
    ]
    sums = (sum(m.parameters for m in modules), *_parts_of(modules), sum(m.total_bytes for m in modules))
    return Table(
        id="modules",
        caption="Every module by what it holds itself in full fine-tuning, in bytes",
        columns=("module", "kind", "parameters", "weights", "gradients", "optimizer", "saved", "total"),
        rows=tuple(rows),
        total=(_text(f"all {len(modules):,} modules"), _text(""), *(_count(amount) for amount in sums)),
        search="module",
    )


def _layers_table(report: MemoryReport) -> Table:
    rows = [
        (
            _text(layer.name, "head" if layer.head else ""),
            _text(layer.kind),
            _count(layer.channels),
            _count(layer.weight_bytes),
            _count(layer.gradient_bytes_per_channel),
            _count(layer.saved_bytes_per_channel),
            _count(layer.passthrough_bytes),
        )
        for layer in report.layers
    ]
    return Table(
        id="layers",
        caption="Every layer by what one of its channels costs, and what it costs to reach it, in bytes",
        columns=("layer", "kind", "channels", "weight", "gradient per channel", "saved per channel", "pass-through"),
        rows=tuple(rows),
        search="layer",
    )
