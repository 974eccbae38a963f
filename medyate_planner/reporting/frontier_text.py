"""The frontier for a terminal. Sums nothing: every number comes from the view."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING

from medyate_planner.reporting.frontier_view import FrontierReport, ReportedPoint
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_frontier(frontier: FrontierReport) -> Iterable[RenderableType]:
    """What was asked, the points, and where the curve bends."""
    yield line(
        f"{frontier.model.spec}: value against budget (scope {frontier.scope}, batch {frontier.batch_size}); "
        f"strategy {frontier.strategy}, objective {frontier.objective_name} on {frontier.curve}; "
        f"importance: {frontier.importance.source}"
    )
    made = table(
        f"{len(frontier.points)} budgets",
        ("", "left"), ("budget B", "right"), ("used B", "right"), ("value", "right"), ("of the best", "right"),
        ("per further kB", "right"), ("layers", "right"), ("channels", "right"), ("biases", "right"),
        ("status", "left"), ("gap", "right"),
    )  # fmt: skip
    for point in frontier.points:
        put(made, *_row(frontier, point), style=None if point.feasible else "dim")
    yield made
    for sentence in sentences(frontier):
        yield line(sentence)


def sentences(frontier: FrontierReport) -> tuple[str, ...]:
    """What a reader should take along: the smallest budget, and the knee."""
    found = []
    if frontier.minimum_bytes is not None:
        found.append(f"The smallest budget that can be met is {frontier.minimum_bytes:,} B.")
    knee = frontier.knee
    if knee is not None:
        last = frontier.feasible[-1]
        found.append(
            f"The curve's knee is at {knee.budget_bytes:,} B: {frontier.share_of_best(knee):.0%} of the best value for "
            f"{knee.budget_bytes / last.budget_bytes:.1%} of the largest budget."
        )
    elif len(frontier.feasible) >= 3:
        found.append("The curve does not bend in this range: the last bytes pay as much as the first.")
    carried = [point for point in frontier.points if point.carried_from_bytes is not None]
    if carried:
        found.append(
            f"At {len(carried)} of the budgets the plan of a smaller one is kept: what was found there was worth less."
        )
    return tuple(found)


def status_of(point: ReportedPoint) -> str:
    """Optimal, feasible, carried over, or infeasible, in a word or a few."""
    if not point.feasible:
        return "can not be met"
    if point.carried_from_bytes is not None:
        return f"plan of {point.carried_from_bytes:,} B"
    return point.status or ""


def frontier_as_text(frontier: FrontierReport) -> str:
    """What `medyate show` prints, without colour, 120 columns wide."""
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=120, no_color=True, highlight=False)
    for part in render_frontier(frontier):
        console.print(part)
    return out.getvalue()


def _row(frontier: FrontierReport, point: ReportedPoint) -> tuple[str, ...]:
    mark = "knee" if point.budget_bytes == frontier.knee_bytes else ""
    if not point.feasible:
        return (mark, f"{point.budget_bytes:,}", "", "", "", "", "", "", "", status_of(point), "")
    return (
        mark,
        f"{point.budget_bytes:,}",
        f"{point.used_bytes:,}",
        f"{point.objective:.5g}",
        f"{frontier.share_of_best(point):.1%}",
        "" if point.marginal_per_kb is None else f"{point.marginal_per_kb:.3g}",
        str(point.layers),
        f"{point.channels:,}",
        str(point.biases),
        status_of(point),
        f"{point.gap_ratio:.1e}",
    )
