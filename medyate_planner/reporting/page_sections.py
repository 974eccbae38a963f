"""Fill the page of a memory report: every sum, ratio and sentence is made here, none where it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.page import Bar, Cell, Page, Panel, Part, Table, bytes_cell, count_cell
from medyate_planner.reporting.view import MemoryReport, ReportedModule, ReportedStep
from medyate_planner.units import format_bytes, format_count

LARGEST_MODULES = 25
ROOT = "(the model itself)"
_MODULE_PARTS = (
    ("weights_bytes", Category.WEIGHTS, "weights"),
    ("gradients_bytes", Category.WEIGHT_GRADIENTS, "gradients"),
    ("optimizer_bytes", Category.OPTIMIZER_STATE, "optimizer state"),
    ("saved_bytes", Category.KEPT, "saved for backward"),
)


def page_of(report: MemoryReport) -> Page:
    """Everything the page shows, as plain data."""
    parts = tuple(Part(css=category.value, meaning=name, cell=bytes_cell(0)) for _, category, name in _MODULE_PARTS)
    return Page(
        kicker="Memory report",
        title=report.model.spec,
        lead=_lead(report.steps),
        facts=_facts(report),
        capture_error=report.capture_error,
        steps=_steps_table(report.steps),
        panels=tuple(_panel(step) for step in report.steps),
        bars=_bars(report.modules),
        legend=parts,
        figures=_figures(report),
        modules=_modules_table(report.modules),
        layers=_layers_table(report),
    )


def _lead(steps: Sequence[ReportedStep]) -> tuple[str, ...]:
    """The first thing to know: where the largest peak is."""
    full = next((step for step in steps if step.name == "full"), None)
    if full is None:
        return ()
    line, peak = full.timeline, full.timeline.peak_index
    where = f" of {line.module[peak]}" if line.module[peak] else ""
    return (
        f"Full fine-tuning as PyTorch runs it holds at most {format_bytes(full.live_peak_bytes)} at one moment, "
        f"in the {line.phase[peak]} phase, after {line.operator[peak]}{where}.",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts(report: MemoryReport) -> tuple[tuple[str, str], ...]:
    regime = report.regime
    facts = [
        ("parameters", f"{report.model.num_parameters:,} ({format_count(report.model.num_parameters)})"),
        ("batch", f"{report.batch_size:,}"),
        ("dtype", report.dtype if regime.autocast is None else f"{report.dtype}, autocast {regime.autocast}"),
        ("optimizer", regime.optimizer),
        ("norms", regime.norm),
    ]
    if regime.accumulation > 1:
        facts.append(("accumulation", f"{regime.accumulation:,} passes"))
    facts.append(("trained", "every parameter" if not regime.train else ", ".join(regime.train)))
    if report.model.fingerprint is not None:
        facts.append(("fingerprint", report.model.fingerprint[:12]))
    return tuple(facts)


def _steps_table(steps: Sequence[ReportedStep]) -> Table:
    """Steps by the three numbers; all bars on one scale, the columns nobody filled left out."""
    columns: list[tuple[str, list[int] | list[int | None]]] = [
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
        cells = [Cell(text="") if amount is None else _headline(amount, largest) for amount in amounts]
        rows.append((Cell(text=_capital(step.title), note=less), *cells))
    return Table(
        id="steps", caption="Bytes of one step", columns=("step", *(name for name, _ in shown)), rows=tuple(rows)
    )


def _headline(amount: int, largest: int) -> Cell:
    """The human form first."""
    exact = bytes_cell(amount, of=largest)
    return replace(exact, text=exact.note, note=exact.text) if exact.note else exact


def _times_less(amount: int, full: int) -> str:
    ratio = full / max(amount, 1)
    return f"live peak {ratio:.1f} times lower than full fine-tuning" if ratio >= 1.05 else ""


def _panel(step: ReportedStep) -> Panel:
    line, peak = step.timeline, step.timeline.peak_index
    amounts = line.live_bytes[peak]
    parts = [
        Part(
            css=css_class(name),
            meaning=meaning_of(name),
            cell=bytes_cell(amount, note=f"{format_bytes(amount)} · {amount / max(line.peak_bytes, 1):.1%}"),
        )
        for name, amount in zip(line.categories, amounts, strict=True)
    ]
    return Panel(
        title=_capital(step.title),
        description=description_of(step),
        operator=line.operator[peak],
        module=line.module[peak] or "-",
        source=line.source[peak] or "-",
        phase=line.phase[peak],
        position=f"{peak + 1:,} of {len(line.operator):,}",
        parts=tuple(reversed(parts)),
        total=bytes_cell(line.peak_bytes),
    )


def description_of(step: ReportedStep) -> str:
    """What a person who does not see the drawing needs to know of it."""
    line, peak = step.timeline, step.timeline.peak_index
    phases = ", ".join(dict.fromkeys(line.phase))
    return (
        f"Memory over the {len(line.operator):,} operators of {step.title} ({phases}), stacked by category. "
        f"Peak {format_bytes(line.peak_bytes)} ({line.peak_bytes:,} bytes) at operator {peak + 1:,}, "
        f"{line.operator[peak]} {line.module[peak]}."
    )


def css_class(category: str) -> str:
    """A known category's own class of colour."""
    return category if category in Category._value2member_map_ else "other"


def meaning_of(category: str) -> str:
    return Category(category).meaning if category in Category._value2member_map_ else category


def _bars(modules: Sequence[ReportedModule]) -> tuple[Bar, ...]:
    """The largest modules, to the scale of the first, then the rest as one: without a bar where it would not fit."""
    ordered = sorted((m for m in modules if m.total_bytes), key=lambda module: -module.total_bytes)
    largest, rest = ordered[:LARGEST_MODULES], ordered[LARGEST_MODULES:]
    scale = max((module.total_bytes for module in largest), default=1)
    bars = [_bar(module.path or ROOT, module.kind, _parts_of([module]), scale) for module in largest]
    if rest:
        bars.append(_bar(f"other ({len(rest):,} modules)", "", _parts_of(rest), scale))
    return tuple(bars)


def _bar(name: str, kind: str, amounts: Sequence[int], scale: int) -> Bar:
    total = sum(amounts)
    parts, before = [], 0
    for (_, category, meaning), amount in zip(_MODULE_PARTS, amounts, strict=True):
        start, width = round(100 * before / scale, 3), round(100 * amount / scale, 3)
        parts.append(Part(css=category.value, meaning=meaning, cell=bytes_cell(amount), start=start, width=width))
        before += amount
    return Bar(name=name, kind=kind, total=bytes_cell(total), parts=tuple(parts), fits=total <= scale)


def _parts_of(modules: Iterable[ReportedModule]) -> tuple[int, ...]:
    """Bytes of the four kinds, summed over modules."""
    rows = [tuple(getattr(module, field) for field, _, _ in _MODULE_PARTS) for module in modules]
    return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else (0,) * len(_MODULE_PARTS)


def _modules_table(modules: Sequence[ReportedModule]) -> Table:
    rows = [
        (
            Cell(text=module.path or ROOT),
            Cell(text=module.kind),
            *(count_cell(amount) for amount in (module.parameters, *_parts_of([module]), module.total_bytes)),
        )
        for module in modules
    ]
    sums = (sum(m.parameters for m in modules), *_parts_of(modules), sum(m.total_bytes for m in modules))
    return Table(
        id="modules",
        caption="Every module by what it holds itself in full fine-tuning, in bytes",
        columns=("module", "kind", "parameters", "weights", "gradients", "optimizer", "saved", "total"),
        rows=tuple(rows),
        total=(Cell(text=f"all {len(modules):,} modules"), Cell(text=""), *(count_cell(amount) for amount in sums)),
        search="module",
    )


def _layers_table(report: MemoryReport) -> Table:
    rows = [
        (
            Cell(text=layer.name, note="head" if layer.head else ""),
            Cell(text=layer.kind),
            count_cell(layer.channels),
            count_cell(layer.weight_bytes),
            count_cell(layer.gradient_bytes_per_channel),
            count_cell(layer.saved_bytes_per_channel),
            count_cell(layer.passthrough_bytes),
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


def _figures(report: MemoryReport) -> tuple[Table, ...]:
    """The smaller tables; those without rows are left out."""
    tables = (_measured_table(report), _batch_table(report), _full_table(report), _accountings_table(report))
    return tuple(table for table in tables if table.rows)


def _measured_table(report: MemoryReport) -> Table:
    titles = {step.name: step.title for step in report.steps}
    rows = [
        (
            Cell(text=row.name, note=titles.get(row.step, row.step)),
            bytes_cell(row.predicted_bytes),
            bytes_cell(row.measured_bytes),
            _difference(row.measured_bytes - row.predicted_bytes),
        )
        for row in report.measured
    ]
    off = sum(row.predicted_bytes != row.measured_bytes for row in report.measured)
    verdict = "every figure agrees to the byte" if report.agrees else f"{off:,} of {len(rows):,} figures differ"
    return Table(
        id="measured",
        caption=f"Predicted, and measured in a real step on this machine: {verdict}",
        columns=("figure", "predicted", "measured", "difference"),
        rows=tuple(rows),
    )


def _difference(amount: int) -> Cell:
    return Cell(text=f"{amount:+,} B" if amount else "0 B", value=amount, alert=bool(amount))


def _batch_table(report: MemoryReport) -> Table:
    titles = {step.name: step.title for step in report.steps}
    rows = [
        (
            Cell(text=titles.get(row.step, row.step)),
            bytes_cell(row.budget_bytes),
            count_cell(row.batch_size) if row.batch_size else Cell(text="0", value=0, note="not even one sample fits"),
            bytes_cell(row.live_peak_bytes, note=None if row.batch_size else "at one sample"),
        )
        for row in report.largest_batch
    ]
    return Table(
        id="largest-batch",
        caption="The largest batch whose live peak fits",
        columns=("step", "budget", "largest batch", "its live peak"),
        rows=tuple(rows),
    )


def _full_table(report: MemoryReport) -> Table:
    full = report.full
    amounts = (
        ("weights and buffers", full.weights_bytes),
        ("weight gradients", full.gradients_bytes),
        ("saved for backward by the model", full.saved_bytes),
        ("saved for backward by the loss", full.loss_bytes),
        (f"{full.optimizer} state", full.optimizer_bytes),
    )
    return Table(
        id="full",
        caption="Full fine-tuning as PyTorch runs it, in parts",
        columns=("part", "bytes"),
        rows=tuple((Cell(text=name), bytes_cell(amount)) for name, amount in amounts),
    )


def _accountings_table(report: MemoryReport) -> Table:
    rows = [
        (Cell(text=row.accounting), Cell(text=row.of), Cell(text=f"{row.amount:,} {row.unit}", value=row.amount))
        for row in report.accountings
    ]
    return Table(
        id="accountings",
        caption="The same model in other accountings: compare only figures of the same accounting",
        columns=("accounting", "of", "amount"),
        rows=tuple(rows),
    )
