"""The frontier as a figure for papers, with matplotlib (the extra `report`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medyate_planner.reporting.figures import check_available
from medyate_planner.reporting.frontier_view import FrontierReport
from medyate_planner.reporting.tables import safe
from medyate_planner.units import format_bytes

_LINE, _KNEE, _MINIMUM = "#0072b2", "#d55e00", "#8c8c8c"


def draw_frontier(frontier: FrontierReport, path: Path, form: str) -> None:
    """Value against budget (logarithmic), the knee and the smallest budget marked; `form` is png or svg."""
    check_available()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "medyate"}):  # the same file every time
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axis = figure.subplots()
        _curve(axis, frontier)
        title = f"{safe(frontier.model.spec)}, batch {frontier.batch_size}, {safe(frontier.strategy)}"
        axis.set_title(title.replace("$", r"\$"), fontsize=9)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(path, format=form, dpi=200, metadata=metadata)


def _curve(axis: Any, frontier: FrontierReport) -> None:
    points = frontier.feasible
    axis.set_xscale("log")
    axis.plot(
        [point.budget_bytes for point in points],
        [point.objective for point in points],
        marker="o",
        markersize=3.5,
        color=_LINE,
        linewidth=1.2,
    )
    if frontier.minimum_bytes is not None:
        label = f"smallest budget, {format_bytes(frontier.minimum_bytes)}"
        axis.axvline(frontier.minimum_bytes, color=_MINIMUM, linewidth=0.8, linestyle="--", label=label)
    knee = frontier.knee
    if knee is not None:
        label = f"knee, {format_bytes(knee.budget_bytes)}"
        axis.axvline(knee.budget_bytes, color=_KNEE, linewidth=0.8, linestyle=":", label=label)
        axis.plot(knee.budget_bytes, knee.objective, marker="o", markersize=7, fillstyle="none", color=_KNEE)
    axis.xaxis.set_major_formatter(lambda amount, _place: format_bytes(round(amount)).replace(".0 ", " "))
    axis.xaxis.set_minor_formatter(lambda _amount, _place: "")
    axis.set_xlabel(f"budget (scope {frontier.scope})", fontsize=8)
    axis.set_ylabel(f"value ({frontier.objective_name})", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, linewidth=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False, loc="lower right")
