"""Memory reports and frontiers in a few words, for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medyate_planner.reporting.frontier_text import sentences, status_of
from medyate_planner.summary import Row, Sketch, Summary
from medyate_planner.units import format_bytes, format_count

if TYPE_CHECKING:
    from medyate_planner.reporting.frontier_view import FrontierReport, ReportedPoint
    from medyate_planner.reporting.view import MemoryReport, ReportedStep

_CURVE_POINTS = 200


def summary_of_report(report: MemoryReport) -> Summary:
    """The three numbers of every way to run a step, and full fine-tuning moment by moment."""
    largest = max((step.live_peak_bytes for step in report.steps), default=1)
    lines = [f"{format_count(report.model.num_parameters)} parameters, {report.dtype}, {report.regime.optimizer}."]
    if report.capture_error is not None:
        lines.append("No plan can be made: the model can not be captured.")
    return Summary(
        title=f"Memory report on {report.model.spec}, batch {report.batch_size}",
        lines=tuple(lines),
        columns=("step", "saved", "training", "live peak"),
        rows=tuple(
            Row(
                cells=(
                    step.title,
                    f"{step.saved_bytes:,} B",
                    f"{step.training_bytes:,} B",
                    f"{step.live_peak_bytes:,} B",
                ),
                share=step.live_peak_bytes / max(largest, 1),
            )
            for step in report.steps
        ),
        share="live peak",
        sketches=tuple(_sketch(step) for step in report.steps if step.name == "full"),
    )


def _sketch(step: ReportedStep) -> Sketch:
    totals = [sum(moment) for moment in step.timeline.live_bytes]
    columns = min(len(totals), _CURVE_POINTS)
    edges = [column * len(totals) // columns for column in range(columns + 1)]
    largest = tuple(float(max(totals[edges[i] : edges[i + 1]])) for i in range(columns))
    return Sketch(text=f"live bytes of {step.title}, at most {format_bytes(step.live_peak_bytes)}", values=largest)


def summary_of_frontier(frontier: FrontierReport) -> Summary:
    """Value against budget."""
    values = [point.objective or 0.0 for point in frontier.feasible]
    return Summary(
        title=f"Value against budget: {frontier.model.spec}, batch {frontier.batch_size}, strategy {frontier.strategy}",
        lines=sentences(frontier),
        columns=("budget", "used", "value", "layers", "channels", "status"),
        rows=tuple(_row(frontier, point) for point in frontier.points),
        share="of the best value",
        sketches=(Sketch(text=f"value, {values[0]:.4g} to {values[-1]:.4g}", values=tuple(values)),)
        if len(values) > 1
        else (),
    )


def _row(frontier: FrontierReport, point: ReportedPoint) -> Row:
    budget = f"{point.budget_bytes:,} B"
    if not point.feasible:
        return Row(cells=(budget, "", "", "", "", status_of(point)))
    return Row(
        cells=(
            budget,
            f"{point.used_bytes:,} B",
            f"{point.objective:.5g}",
            str(point.layers),
            f"{point.channels:,}",
            "knee" if point.budget_bytes == frontier.knee_bytes else status_of(point),
        ),
        share=frontier.share_of_best(point),
    )
