"""Figures for papers, with matplotlib (the extra `report`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.memory.moments import Category
from medyate_planner.reporting.tables import safe
from medyate_planner.reporting.view import MemoryReport, ReportedStep

COLOURS = {
    Category.WEIGHTS: "#8c8c8c",
    Category.INPUTS: "#c7c7c7",
    Category.ACTIVATIONS: "#56b4e9",
    Category.KEPT: "#0072b2",
    Category.KEPT_SELECTED: "#3d9ad6",
    Category.KEPT_PASSTHROUGH: "#004466",
    Category.KEPT_LOSS: "#cc79a7",
    Category.ACTIVATION_GRADIENTS: "#f0e442",
    Category.WEIGHT_GRADIENTS: "#e69f00",
    Category.OPTIMIZER_STATE: "#d55e00",
    Category.WORKING_COPIES: "#a04000",
    Category.INDICES: "#009e73",
}


def check_available() -> None:
    """Raise `InputError` unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib; pip install 'medyate-planner[report]', or write .html instead")


def draw_report(report: MemoryReport, path: Path, form: str) -> None:
    """Memory over one step, a panel for each way to run it, on one scale; `form` is png or svg."""
    check_available()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(report.steps), 3.4), layout="constrained")
    axes = figure.subplots(1, len(report.steps), sharey=True, squeeze=False)
    with rc_context({"svg.hashsalt": "medyate"}):  # the same file every time
        unit, scale = _unit(max(step.live_peak_bytes for step in report.steps))
        for axis, step in zip(axes[0], report.steps, strict=True):
            _panel(axis, step, scale)
        axes[0][0].set_ylabel(f"live bytes ({unit})")
        handles = {
            label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7, frameon=False)
        title = f"{safe(report.model.spec)}, batch {report.batch_size}"
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
        save(figure, path, form)


def save(figure: Any, path: Path, form: str) -> None:
    """Write a figure as png or svg, without what would make two files of the same figure differ."""
    figure.savefig(path, format=form, dpi=200, metadata={"Date": None} if form == "svg" else {"Software": None})


def _panel(axis: Any, step: ReportedStep, scale: float) -> None:
    lines = step.timeline
    moments = range(len(lines.phase))
    columns = [[row[i] / scale for row in lines.live_bytes] for i in range(len(lines.categories))]
    kinds = [Category(name) for name in lines.categories]
    axis.stackplot(
        moments,
        *columns,
        labels=[kind.meaning for kind in kinds],
        colors=[COLOURS[kind] for kind in kinds],
        linewidth=0,
        step="post",
    )
    axis.plot(lines.peak_index, lines.peak_bytes / scale, marker="v", color="black", markersize=5, clip_on=False)
    axis.set_title(f"{step.title}\npeak {lines.peak_bytes:,} B", fontsize=7)
    for index in moments[1:]:
        if lines.phase[index] != lines.phase[index - 1]:
            axis.axvline(index, color="black", linewidth=0.5, linestyle=":")
    axis.set_xlabel("operator", fontsize=8)
    axis.set_xlim(0, max(1, len(lines.phase) - 1))
    axis.tick_params(labelsize=7)
    axis.margins(y=0.06)


def _unit(largest: int) -> tuple[str, float]:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if largest >= scale:
            return unit, scale
    return "kB", 1e3
