"""A frontier as a file: JSON, CSV, a self-contained page, or a figure, by the file's ending."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from medyate_planner.files import write_atomic, write_text
from medyate_planner.reporting.export import check_ending
from medyate_planner.reporting.frontier_view import FrontierReport

_COLUMNS = (
    "budget_bytes", "feasible", "used_bytes", "objective", "interpolated_objective", "objective_bound",
    "marginal_per_kb", "layers", "channels", "biases", "status", "gap_ratio", "carried_from_bytes",
)  # fmt: skip


def write_frontier(frontier: FrontierReport, path: Path, *, force: bool) -> Path:
    """Write a frontier, whole or not at all.

    Raises:
        InputError: an unknown ending, an existing file without `force`, or a missing extra.
    """
    check_ending(path)
    if path.suffix == ".json":
        return write_text(path, json.dumps(frontier.to_dict(), indent=2) + "\n", force=force)
    if path.suffix == ".csv":
        return write_text(path, frontier_csv(frontier), force=force)
    if path.suffix == ".html":
        from medyate_planner.reporting.frontier_page import render_frontier_html

        return write_text(path, render_frontier_html(frontier), force=force)
    from medyate_planner.reporting.frontier_figure import draw_frontier

    return write_atomic(path, lambda temporary: draw_frontier(frontier, temporary, path.suffix[1:]), force=force)


def frontier_csv(frontier: FrontierReport) -> str:
    """One row per budget; what an infeasible one lacks is empty. The last column marks the knee."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_COLUMNS, "knee"))
    for point in frontier.points:
        amounts = [getattr(point, column) for column in _COLUMNS]
        cells = ["" if amount is None else amount for amount in amounts]
        writer.writerow((*cells, point.budget_bytes == frontier.knee_bytes))
    return out.getvalue()
