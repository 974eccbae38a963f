"""A chart of lines and points, as plain data: drawn by a template for a page, or by matplotlib for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from medyate_planner.reporting.chart import Piece, Tick
from medyate_planner.reporting.figures import check_available
from medyate_planner.reporting.tables import safe

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#5c4db1", "#7d838b", "#000000", "#e69f00",
    "#871f52", "#256700",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
_MARGIN = 0.06
_LABELS = 0.13  # in front of the points, for the labels of the vertical axis
_MOST_TICKS = 6
_MOST_LEVELS = 8  # ticks of a vertical axis, whose labels stand one above the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point, and what it says when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one name; a line through them if `joined`."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Series over two axes. `x_text` and `y_text` write a value at a tick; `caption` says what is seen, from what."""

    id: str
    caption: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    x_log: bool = False
    x_text: Callable[[float], str] = "{:g}".format
    y_text: Callable[[float], str] = "{:g}".format

    @property
    def drawn(self) -> tuple[DrawnSeries, ...]:
        """The series at percentages of the drawing's width and height, downwards."""
        x, y = self.x_axis, self.y_axis
        return tuple(
            _drawn(number, entry, [(x.at(p.x), round(100 - y.at(p.y), 2), p.text) for p in entry.points])
            for number, entry in enumerate(self.series)
        )

    @property
    def x_ticks(self) -> tuple[Tick, ...]:
        """Places in percent, and what stands there."""
        axis = self.x_axis
        return tuple(Tick(at=axis.at(value), text=self.x_text(value)) for value in self.x_values)

    @property
    def x_values(self) -> list[float]:
        """Where ticks stand: at the points, if they are few and whole (epochs, layers), else at round values."""
        places = sorted({p.x for entry in self.series for p in entry.points})
        whole = len(places) <= _MOST_TICKS and all(float(x).is_integer() for x in places)
        return places if whole else self.x_axis.ticks()

    @property
    def y_ticks(self) -> tuple[Tick, ...]:
        """Places in percent downwards, and what stands there."""
        axis = self.y_axis
        return tuple(
            Tick(at=round(100 - axis.at(value), 2), text=self.y_text(value)) for value in axis.ticks(_MOST_LEVELS)
        )

    @property
    def x_axis(self) -> _Axis:
        """The horizontal one."""
        return _Axis.around((p.x for entry in self.series for p in entry.points), log=self.x_log, before=_LABELS)

    @property
    def y_axis(self) -> _Axis:
        """The vertical one."""
        return _Axis.around((p.y for entry in self.series for p in entry.points), log=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSeries:
    """A series in the drawing: dots (x, y, text) and the lines between them; `css` is its style."""

    name: str
    css: str
    dots: tuple[tuple[float, float, str], ...]
    pieces: tuple[Piece, ...]


def _drawn(number: int, series: Series, dots: list[tuple[float, float, str]]) -> DrawnSeries:
    pieces = [Piece(x1=a[0], y1=a[1], x2=b[0], y2=b[1]) for a, b in pairwise(dots)] if series.joined else []
    return DrawnSeries(name=series.name, css=f"s{number % len(COLOURS)}", dots=tuple(dots), pieces=tuple(pieces))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool, before: float = _MARGIN) -> _Axis:
        """A little wider than the values; `before`: room below them, as a share of theirs."""
        known = [math.log10(value) if log else value for value in values] or [0.0, 1.0]
        span = (max(known) - min(known)) or 0.5 / _MARGIN
        return cls(low=min(known) - before * span, high=max(known) + _MARGIN * span, log=log)

    def at(self, value: float) -> float:
        """In percent of the axis."""
        place = math.log10(value) if self.log else value
        return round(100 * (place - self.low) / (self.high - self.low), 2)

    def ticks(self, most: int = _MOST_TICKS) -> list[float]:
        """At most so many round values within: 1, 2 or 5 powers of ten apart, or 1, 2 and 5 of each power."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = [digit * 10.0**power for power in powers for digit in digits]
                inside = [value for value in found if self.low <= math.log10(value) <= self.high]
                if len(inside) <= most:
                    break
            return inside
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(f * step for f in (1, 2, 5, 10) if (self.high - self.low) / (f * step) <= most)
        first = math.ceil(self.low / step)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step) + 1)]


def draw_chart(chart: Chart, path: Path, form: str) -> None:
    """The chart as a figure for a paper; `form` is png or svg. The same chart gives the same bytes.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_available()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "medyate"}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.subplots()
        _plot(axis, chart)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(path, format=form, dpi=160, metadata=metadata)


def _plot(axis: Any, chart: Chart) -> None:
    axis.set_xscale("log" if chart.x_log else "linear")
    for number, entry in enumerate(chart.series):
        style = {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}
        xs, ys = [p.x for p in entry.points], [p.y for p in entry.points]
        line = "-" if entry.joined else "none"
        axis.plot(xs, ys, label=_plain(entry.name), markersize=4, linewidth=1.2, linestyle=line, **style)
    values = chart.x_values
    axis.set_xticks(values, [_plain(chart.x_text(value)) for value in values], minor=False)
    axis.set_xticks([], minor=True)
    values = chart.y_axis.ticks(_MOST_LEVELS)
    axis.set_yticks(values, [_plain(chart.y_text(value)) for value in values])
    axis.set_xlabel(_plain(chart.x_name), fontsize=8)
    axis.set_ylabel(_plain(chart.y_name), fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, linewidth=0.3)
    axis.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plain(text: str) -> str:
    return safe(text).replace("$", r"\$")
