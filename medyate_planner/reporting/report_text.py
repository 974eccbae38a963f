"""The memory report as text for a terminal. Sums nothing: every number comes from the view or the tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.tables import line, put, table
from medyate_planner.reporting.terminal_figure import Panel, StepFigure
from medyate_planner.reporting.tree import module_tree
from medyate_planner.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.reporting.view import MemoryReport, ReportedLayer

_COMFORTABLE = 100
_LEAN = (
    "lean: every layer by our operators in the model's own type, SGD inside backward, norms frozen, whatever full "
    "fine-tuning is told; bound: how far the closed form is above the live peak"
)
_STYLES = {
    Category.WEIGHTS: "dim",
    Category.INPUTS: "dim",
    Category.KEPT: "blue",
    Category.KEPT_SELECTED: "blue",
    Category.KEPT_PASSTHROUGH: "magenta",
    Category.WEIGHT_GRADIENTS: "yellow",
    Category.OPTIMIZER_STATE: "red",
}
_LAYER_FIGURES = {
    "weights": "weight_bytes",
    "gradients": "gradient_bytes_per_channel",
    "saved": "saved_bytes_per_channel",
    "total": "passthrough_bytes",
}


def render_report(
    report: MemoryReport, *, sort: str = "order", depth: int = 2, width: int = 120, whole: bool = True
) -> Iterable[RenderableType]:
    """A figure, totals, what is live at each peak; as a whole, the tree of modules and one row per layer too.

    Args:
        report: The view.
        sort: Key of `SORT_KEYS`, for modules and layers.
        depth: Levels of modules shown.
        width: Columns of the terminal; below 100 the tables leave out what matters least.
        whole: Every table.
    """
    yield line(_headline(report))
    if report.capture_error:
        yield line(f"No layers and no plan: {report.capture_error}")
    for note in report.notes:
        yield line(f"Note: {note}")
    yield StepFigure([Panel(title=_short(report)[step.name], timeline=step.timeline) for step in report.steps])
    yield _steps(report)
    if any(step.name == "lean_full" for step in report.steps):
        yield line(_LEAN)
    yield _places(report)
    yield _peaks(report)
    if whole:
        yield _modules(report, sort, depth, compact=width < _COMFORTABLE)
        if report.layers:
            yield _layers(report.layers, sort, compact=width < _COMFORTABLE)
        yield _accountings(report)
    if report.measured:
        yield _measured(report)
    if report.largest_batch:
        yield _largest_batch(report)


def _headline(report: MemoryReport) -> str:
    regime = report.regime
    parts = [
        f"{report.model.spec}: {format_count(report.model.num_parameters)} parameters",
        f"batch {report.batch_size}",
        report.dtype if regime.autocast is None else f"{report.dtype}, autocast {regime.autocast}",
        regime.optimizer,
        f"norms {regime.norm}",
        f"{regime.mode} mode",
    ]
    if regime.accumulation > 1:
        parts.append(f"{regime.accumulation} passes per step")
    if regime.train:
        parts.append(f"training {' '.join(regime.train)}")
    if report.model.fingerprint:
        parts.append(f"fingerprint {report.model.fingerprint[:12]}")
    return ", ".join(parts)


def _short(report: MemoryReport) -> dict[str, str]:
    """Names of the steps that leave room for numbers."""
    return {"inference": "inference", "full": f"PyTorch ({report.regime.optimizer})", "lean_full": "lean (sgd)",
            "plan": "plan (sgd)"}  # fmt: skip


def _steps(report: MemoryReport) -> RenderableType:
    steps, names = report.steps, _short(report)
    bounded = any(step.live_peak_bound_bytes is not None for step in steps)
    measured = any(step.allocator_peak_bytes is not None for step in steps)
    columns = [("", "left"), ("saved", "right"), ("training", "right"), ("live peak", "right"), ("", "right")]
    columns += [("bound", "right")] * bounded + [("allocator", "right")] * measured
    made = table("One step: inference and full fine-tuning, bytes", *columns)
    for step in steps:
        cells = [names[step.name], f"{step.saved_bytes:,}", f"{step.training_bytes:,}", f"{step.live_peak_bytes:,}"]
        cells.append(f"({format_bytes(step.live_peak_bytes)})")
        if bounded:
            over = (step.live_peak_bound_bytes or 0) / step.live_peak_bytes - 1
            cells.append("" if step.live_peak_bound_bytes is None else f"+{over:.1%}")
        if measured:
            cells.append("" if step.allocator_peak_bytes is None else f"{step.allocator_peak_bytes:,}")
        put(made, *cells)
    return made


def _places(report: MemoryReport) -> RenderableType:
    made = table("Where the peak is", ("", "left"), ("phase", "left"), ("operator", "left"), ("in", "left"))
    for step in report.steps:
        lines, at = step.timeline, step.timeline.peak_index
        source = f" ({lines.source[at]})" if lines.source[at] else ""
        put(made, _short(report)[step.name], lines.phase[at], lines.operator[at], f"{lines.module[at]}{source}")
    return made


def _peaks(report: MemoryReport) -> RenderableType:
    steps, names = report.steps, _short(report)
    made = table("Live at the peak, bytes", ("", "left"), *((names[step.name], "right") for step in steps))
    columns = [step.timeline.at_peak for step in steps]
    for category in Category:
        amounts = [column.get(category.value, 0) for column in columns]
        if any(amounts):
            cells = [f"{amount:,}" if amount else "" for amount in amounts]
            put(made, category.meaning, *cells, style=_STYLES.get(category))
    put(made, "sum", *(f"{step.timeline.peak_bytes:,}" for step in steps), style="bold")
    return made


def _modules(report: MemoryReport, sort: str, depth: int, *, compact: bool) -> RenderableType:
    state = f"{report.regime.optimizer} state"
    columns = ["module", "kind", "parameters", "weights", "gradients", state, "saved", "total", "share"]
    hidden = {"kind", "parameters", "share" if report.full.optimizer_bytes else state} if compact else set()
    shown = [column for column in columns if column not in hidden]
    title = "Full fine-tuning in PyTorch by module, submodules included, bytes"
    made = table(title, *((name, "left" if name in ("module", "kind") else "right") for name in shown))
    root = module_tree(report.modules, sort=sort)
    for level, node in root.walk(depth):
        share = node.total_bytes / root.total_bytes if root.total_bytes else 0.0
        amounts = (
            node.parameters, node.weights_bytes, node.gradients_bytes, node.optimizer_bytes, node.saved_bytes,
            node.total_bytes,
        )  # fmt: skip
        cells = ["  " * level + (node.name or "(model)"), node.kind, *(f"{n:,}" for n in amounts), f"{share:.1%}"]
        kept = [cell for column, cell in zip(columns, cells, strict=True) if column not in hidden]
        put(made, *kept, style="bold" if level == 0 else None)
    return made


def _layers(layers: Sequence[ReportedLayer], sort: str, *, compact: bool) -> RenderableType:
    columns = ["layer", "kind", "channels", "weight", "gradient/ch", "saved/ch", "pass-through"]
    hidden = {"kind", "weight"} if compact else set()
    made = table(
        "Layers: what one input channel costs to train, and to reach the layer, bytes",
        *((name, "left" if name in ("layer", "kind") else "right") for name in columns if name not in hidden),
    )
    if sort == "name":
        layers = sorted(layers, key=lambda layer: layer.name)
    elif sort in _LAYER_FIGURES:
        layers = sorted(layers, key=lambda layer: -int(getattr(layer, _LAYER_FIGURES[sort])))
    for layer in layers:
        amounts = (
            layer.channels, layer.weight_bytes, layer.gradient_bytes_per_channel, layer.saved_bytes_per_channel,
            layer.passthrough_bytes,
        )  # fmt: skip
        cells = [layer.name + (" (head)" if layer.head else ""), layer.kind, *(f"{n:,}" for n in amounts)]
        put(made, *(cell for column, cell in zip(columns, cells, strict=True) if column not in hidden))
    return made


def _accountings(report: MemoryReport) -> RenderableType:
    made = table("Accountings (figures of different ones can not be compared)", ("accounting", "left"),
                 ("of", "left"), ("amount", "right"), ("unit", "left"))  # fmt: skip
    for row in report.accountings:
        put(made, row.accounting, row.of, f"{row.amount:,}", row.unit)
    return made


def _measured(report: MemoryReport) -> RenderableType:
    titles = _short(report)
    made = table(
        "Predicted against measured on this machine, bytes",
        ("", "left"), ("", "left"), ("predicted", "right"), ("measured", "right"), ("difference", "right"),
    )  # fmt: skip
    for row in report.measured:
        difference = row.measured_bytes - row.predicted_bytes
        put(
            made,
            titles[row.step],
            row.name,
            f"{row.predicted_bytes:,}",
            f"{row.measured_bytes:,}",
            f"{difference:+,}" if difference else "0",
        )
    return made


def _largest_batch(report: MemoryReport) -> RenderableType:
    titles = _short(report)
    budget = report.largest_batch[0].budget_bytes
    made = table(f"Largest batch whose live peak fits into {budget:,} B", ("", "left"), ("batch", "right"),
                 ("live peak", "right"))  # fmt: skip
    for row in report.largest_batch:
        put(made, titles[row.step], str(row.batch_size) if row.batch_size else "none", f"{row.live_peak_bytes:,}")
    return made


def report_as_text(report: MemoryReport) -> str:
    """What `medyate report` prints, without colour, 120 columns wide."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=120, no_color=True, highlight=False)
    for part in render_report(report):
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]
