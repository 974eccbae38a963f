"""The frontier as one HTML page without scripts: plain data first (`frontier_page_of`), then the template.

Places in the drawing are percentages of its size, so that it fits any screen while its letters keep theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from medyate_planner.reporting.chart import Piece, Tick
from medyate_planner.reporting.frontier_text import sentences, status_of
from medyate_planner.reporting.frontier_view import FrontierReport, ReportedPoint
from medyate_planner.reporting.html import fill_template
from medyate_planner.reporting.page import Cell, Front, Table, bytes_cell, count_cell
from medyate_planner.units import format_bytes, format_count

_HEADROOM = 1.08
_MOST_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at a budget, with its name beside it."""

    at: float
    text: str
    css: str
    anchor: str
    dy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of the curve."""

    x: float
    y: float
    text: str
    budget_bytes: int
    knee: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """The curve, as percentages of the drawing's width and height."""

    description: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    pieces: tuple[Piece, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPage(Front):
    """Everything the page shows."""

    drawing: Drawing
    points: Table


def render_frontier_html(frontier: FrontierReport) -> str:
    """Draw a frontier as one self-contained page; the same frontier gives the same bytes."""
    styles = ("page.css", "charts.css", "frontier.css")
    return fill_template("frontier.html", styles=styles, page=frontier_page_of(frontier))


def frontier_page_of(frontier: FrontierReport) -> FrontierPage:
    """Everything the page shows, as plain data."""
    return FrontierPage(
        kicker="Value against budget",
        title=frontier.model.spec,
        lead=sentences(frontier),
        facts=_facts(frontier),
        drawing=drawing_of(frontier),
        points=_points_table(frontier),
    )


def drawing_of(frontier: FrontierReport) -> Drawing:
    """The feasible points as a curve over a logarithmic axis of all the budgets that were asked for."""
    axis = _Axis.of(frontier)
    dots = tuple(_dot(frontier, point, axis) for point in frontier.feasible)
    return Drawing(
        description=_description(frontier),
        x_name=f"budget (scope {frontier.scope}, logarithmic)",
        y_name=f"value (objective {frontier.objective_name})",
        x_ticks=_budget_ticks(axis),
        y_ticks=_value_ticks(axis),
        marks=_marks(frontier, axis),
        pieces=tuple(Piece(x1=one.x, y1=one.y, x2=two.x, y2=two.y) for one, two in pairwise(dots)),
        dots=dots,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """From bytes and values to percentages; a value's runs downwards, as in a drawing."""

    low_bytes: int
    high_bytes: int
    top: float

    @classmethod
    def of(cls, frontier: FrontierReport) -> _Axis:
        budgets = [point.budget_bytes for point in frontier.points]
        return cls(low_bytes=budgets[0], high_bytes=budgets[-1], top=_HEADROOM * frontier.best_objective or 1.0)

    def x(self, budget_bytes: float) -> float:
        if self.low_bytes == self.high_bytes:
            return 50.0
        return round(100 * math.log(budget_bytes / self.low_bytes) / math.log(self.high_bytes / self.low_bytes), 2)

    def y(self, value: float) -> float:
        return round(100 * (1 - value / self.top), 2)

    def anchor(self, at: float) -> str:
        return "start" if at < 4 else "end" if at > 96 else "middle"


def _dot(frontier: FrontierReport, point: ReportedPoint, axis: _Axis) -> Dot:
    value = point.objective or 0.0
    return Dot(
        x=axis.x(point.budget_bytes),
        y=axis.y(value),
        text=f"{point.budget_bytes:,} B: value {value:.5g}, {frontier.share_of_best(point):.1%} of the best",
        budget_bytes=point.budget_bytes,
        knee=point.budget_bytes == frontier.knee_bytes,
    )


def _marks(frontier: FrontierReport, axis: _Axis) -> tuple[Mark, ...]:
    """The smallest budget and the knee, where they lie inside the drawing."""
    wanted = [(frontier.minimum_bytes, "smallest budget", "minimum"), (frontier.knee_bytes, "knee", "knee")]
    inside = [(a, name, css) for a, name, css in wanted if a is not None and axis.low_bytes <= a <= axis.high_bytes]
    return tuple(
        Mark(
            at=axis.x(amount),
            text=f"{name}, {format_bytes(amount)}",
            css=css,
            anchor="start" if axis.x(amount) < 50 else "end",
            dy=10 + 16 * row,
        )
        for row, (amount, name, css) in enumerate(inside)
    )


def _budget_ticks(axis: _Axis) -> tuple[Tick, ...]:
    """Round budgets: 1, 2 and 5 of every power of ten, or only the powers, or the two ends."""
    powers = range(int(math.log10(axis.low_bytes)), int(math.log10(axis.high_bytes)) + 1)
    for digits in ((1, 2, 5), (1,)):
        amounts = [d * 10**p for p in powers for d in digits if axis.low_bytes <= d * 10**p <= axis.high_bytes]
        if 2 <= len(amounts) <= _MOST_TICKS:
            break
    else:
        amounts = sorted({axis.low_bytes, axis.high_bytes})
    places = [(axis.x(amount), amount) for amount in amounts]
    return tuple(Tick(at=x, text=_short(amount), anchor=axis.anchor(x)) for x, amount in places)


def _value_ticks(axis: _Axis) -> tuple[Tick, ...]:
    """Three to six round values from 0."""
    step = 10.0 ** math.floor(math.log10(axis.top / 3))
    step *= next(factor for factor in (5, 2, 1) if factor * step <= axis.top / 3)
    count = int(axis.top / step + 1e-9)
    return tuple(Tick(at=axis.y(i * step), text=f"{i * step:.4g}") for i in range(count + 1))


def _description(frontier: FrontierReport) -> str:
    points = frontier.feasible
    text = (
        f"Value against budget: from {points[0].objective:.4g} at {format_bytes(points[0].budget_bytes)} to "
        f"{points[-1].objective:.4g} at {format_bytes(points[-1].budget_bytes)}"
        if points
        else "No budget can be met"
    )
    knee = "" if frontier.knee_bytes is None else f"; the curve bends at {format_bytes(frontier.knee_bytes)}"
    return f"{text}{knee}. The table below has all numbers."


def _facts(frontier: FrontierReport) -> tuple[tuple[str, str], ...]:
    facts = [
        ("parameters", f"{frontier.model.num_parameters:,} ({format_count(frontier.model.num_parameters)})"),
        ("batch", f"{frontier.batch_size:,}"),
        (
            "scope",
            frontier.scope if not frontier.margin_ratio else f"{frontier.scope}, margin {frontier.margin_ratio:g}",
        ),
        ("strategy", frontier.strategy),
        ("objective", f"{frontier.objective_name} on {frontier.curve}"),
        ("importance", frontier.importance.source),
    ]
    limits = (("layers at most", frontier.max_layers), ("operations at most", frontier.max_flops))
    facts += [(name, f"{limit:,}") for name, limit in limits if limit is not None]
    if frontier.model.fingerprint is not None:
        facts.append(("fingerprint", frontier.model.fingerprint[:12]))
    return tuple(facts)


def _points_table(frontier: FrontierReport) -> Table:
    return Table(
        id="points",
        caption=f"{len(frontier.points)} budgets, value relative to the largest",
        columns=("budget", "used", "value", "per further kB", "layers", "channels", "biases", "status", "gap"),
        rows=tuple(_row(frontier, point) for point in frontier.points),
    )


def _row(frontier: FrontierReport, point: ReportedPoint) -> tuple[Cell, ...]:
    knee = point.budget_bytes == frontier.knee_bytes
    name = Cell(
        text=f"{point.budget_bytes:,} B",
        note="the knee" if knee else format_bytes(point.budget_bytes),
        value=point.budget_bytes,
    )
    if point.used_bytes is None or point.objective is None or point.gap_ratio is None:
        return (name, *(Cell(text="") for _ in range(6)), Cell(text=status_of(point), alert=True), Cell(text=""))
    share = frontier.share_of_best(point)
    marginal = point.marginal_per_kb
    return (
        name,
        bytes_cell(point.used_bytes, note=f"{point.used_bytes / point.budget_bytes:.1%} of the budget"),
        Cell(
            text=f"{point.objective:.5g}", value=point.objective, note=f"{share:.1%}", bar_percent=round(100 * share, 2)
        ),
        Cell(text="") if marginal is None else Cell(text=f"{marginal:.3g}", value=marginal),
        count_cell(point.layers or 0),
        count_cell(point.channels or 0),
        count_cell(point.biases or 0),
        Cell(text=status_of(point)),
        Cell(text=f"{point.gap_ratio:.1e}", value=point.gap_ratio),
    )


def _short(amount_bytes: int) -> str:
    return format_bytes(amount_bytes).replace(".0 ", " ")
