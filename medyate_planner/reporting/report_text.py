"""The memory report as text for a terminal. Sums nothing: every number comes from the view or the tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.tables import line, put, table
from medyate_planner.reporting.tree import module_tree
from medyate_planner.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.reporting.view import MemoryReport, ReportedLayer, ReportedStep

_LEAN = (
    "lean: every layer by our operators, SGD inside backward, norms frozen; bound: how far the closed form is above "
    "the live peak"
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


def render_report(report: MemoryReport, *, sort: str = "order", depth: int = 2) -> Iterable[RenderableType]:
    """Totals, what is live at each peak, the tree of modules, and one row per layer.

    Args:
        report: The view.
        sort: Key of `SORT_KEYS`, for modules and layers.
        depth: Levels of modules shown.
    """
    yield line(_headline(report))
    if report.capture_error:
        yield line(f"No layers and no plan: {report.capture_error}")
    yield _steps(report.steps)
    if any(step.name == "lean_full" for step in report.steps):
        yield line(_LEAN)
    yield _peaks(report.steps)
    yield _modules(report, sort, depth)
    if report.layers:
        yield _layers(report.layers, sort)
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
    ]
    if regime.accumulation > 1:
        parts.append(f"{regime.accumulation} passes per step")
    if regime.train:
        parts.append(f"training {' '.join(regime.train)}")
    if report.model.fingerprint:
        parts.append(f"fingerprint {report.model.fingerprint[:12]}")
    return ", ".join(parts)


def _steps(steps: Sequence[ReportedStep]) -> RenderableType:
    measured = any(step.allocator_peak_bytes is not None for step in steps)
    bounded = any(step.live_peak_bound_bytes is not None for step in steps)
    columns = [("", "left"), ("saved", "right"), ("training", "right"), ("live peak", "right"), ("", "right")]
    if bounded:
        columns.append(("bound", "right"))
    if measured:
        columns.append(("allocator", "right"))
    made = table("One step, bytes", *columns, ("the peak is at", "left"))
    for step in steps:
        row = [step.title, f"{step.saved_bytes:,}", f"{step.training_bytes:,}", f"{step.live_peak_bytes:,}"]
        row.append(f"({format_bytes(step.live_peak_bytes)})")
        if bounded:
            over = (step.live_peak_bound_bytes or 0) / step.live_peak_bytes - 1
            row.append("" if step.live_peak_bound_bytes is None else f"+{over:.1%}")
        if measured:
            row.append("" if step.allocator_peak_bytes is None else f"{step.allocator_peak_bytes:,}")
        put(made, *row, _peak_place(step))
    return made


def _peak_place(step: ReportedStep) -> str:
    lines, at = step.timeline, step.timeline.peak_index
    where = f" in {lines.module[at]}" if lines.module[at] else ""
    source = f" ({lines.source[at]})" if lines.source[at] else ""
    return f"{lines.phase[at]}: {lines.operator[at]}{where}{source}"


def _peaks(steps: Sequence[ReportedStep]) -> RenderableType:
    made = table("Live at the peak, bytes", ("", "left"), *((step.title, "right") for step in steps))
    columns = [step.timeline.at_peak for step in steps]
    for category in Category:
        amounts = [column.get(category.value, 0) for column in columns]
        if any(amounts):
            cells = [f"{amount:,}" if amount else "" for amount in amounts]
            put(made, category.meaning, *cells, style=_STYLES.get(category))
    put(made, "sum", *(f"{step.timeline.peak_bytes:,}" for step in steps), style="bold")
    return made


def _modules(report: MemoryReport, sort: str, depth: int) -> RenderableType:
    made = table(
        "Full fine-tuning, PyTorch, by module, submodules included, bytes",
        ("module", "left"), ("kind", "left"), ("parameters", "right"), ("weights", "right"), ("gradients", "right"),
        (f"{report.regime.optimizer} state", "right"), ("saved", "right"), ("total", "right"), ("share", "right"),
    )  # fmt: skip
    root = module_tree(report.modules, sort=sort)
    for level, node in root.walk(depth):
        share = node.total_bytes / root.total_bytes if root.total_bytes else 0.0
        put(
            made,
            "  " * level + (node.name or "(model)"),
            node.kind,
            f"{node.parameters:,}",
            f"{node.weights_bytes:,}",
            f"{node.gradients_bytes:,}",
            f"{node.optimizer_bytes:,}",
            f"{node.saved_bytes:,}",
            f"{node.total_bytes:,}",
            f"{share:.1%}",
            style="bold" if level == 0 else None,
        )
    return made


def _layers(layers: Sequence[ReportedLayer], sort: str) -> RenderableType:
    made = table(
        "Layers: what one input channel costs to train, and what it costs to reach the layer, bytes",
        ("layer", "left"), ("kind", "left"), ("channels", "right"), ("weight", "right"),
        ("gradient/ch", "right"), ("saved/ch", "right"), ("pass-through", "right"),
    )  # fmt: skip
    if sort == "name":
        layers = sorted(layers, key=lambda layer: layer.name)
    elif sort in _LAYER_FIGURES:
        layers = sorted(layers, key=lambda layer: -int(getattr(layer, _LAYER_FIGURES[sort])))
    for layer in layers:
        put(
            made,
            layer.name + (" (head)" if layer.head else ""),
            layer.kind,
            str(layer.channels),
            f"{layer.weight_bytes:,}",
            f"{layer.gradient_bytes_per_channel:,}",
            f"{layer.saved_bytes_per_channel:,}",
            f"{layer.passthrough_bytes:,}",
        )
    return made


def _accountings(report: MemoryReport) -> RenderableType:
    made = table("Accountings (figures of different ones can not be compared)", ("accounting", "left"),
                 ("of", "left"), ("amount", "right"), ("unit", "left"))  # fmt: skip
    for row in report.accountings:
        put(made, row.accounting, row.of, f"{row.amount:,}", row.unit)
    return made


def _measured(report: MemoryReport) -> RenderableType:
    titles = {step.name: step.title for step in report.steps}
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
    titles = {step.name: step.title for step in report.steps}
    budget = report.largest_batch[0].budget_bytes
    made = table(f"Largest batch whose live peak fits into {budget:,} B", ("", "left"), ("batch", "right"),
                 ("live peak", "right"))  # fmt: skip
    for row in report.largest_batch:
        put(made, titles[row.step], str(row.batch_size) if row.batch_size else "none", f"{row.live_peak_bytes:,}")
    return made
