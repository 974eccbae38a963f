"""What the drawings of our pages consist of. Places are percentages of the drawing, so that it fits any screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_MOST_TICKS = 7
_HEADROOM = 1.08
_LEFT = 14.0  # percent that the numbers of the vertical axis take
_CLEAR = 7.0  # percent around a level in which no tick is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A label on an axis, at a percentage of its length."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The line between two points."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number of a curve: where it is drawn, and its words."""

    x: float
    y: float
    value: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve of a chart."""

    name: str
    css: str
    points: tuple[Point, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The lines from point to point."""
        return tuple(Piece(x1=a.x, y1=a.y, x2=b.x, y2=b.y) for a, b in pairwise(self.points))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line across a chart, such as the budget."""

    y: float
    text: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over a common axis; `description` is for those who do not see it."""

    id: str
    title: str
    description: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    level: Level | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Numbers of one series by place on the axis; None where there is none."""

    name: str
    css: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartWords:
    """What a chart says: its title, the name of its axis, and how its numbers are written."""

    id: str
    title: str
    x_name: str
    text: Callable[[float], str]
    from_zero: bool = True


def line_chart(
    words: ChartWords, places: Sequence[int], curves: Sequence[Curve], level: tuple[str, float] | None = None
) -> Chart | None:
    """Curves over numbered places (epochs), a level across them; None where no curve has a number.

    Args:
        places: Number of each place, in order.
        level: Name and amount of the line across.
    """
    found = [value for curve in curves for value in curve.values if value is not None]
    if not found:
        return None
    every = [*found, *([level[1]] if level else []), *([0.0] if words.from_zero else [])]
    ticks = value_ticks(min(every), max(every))
    low, high = ticks[0], max(ticks[-1], max(every) + (_HEADROOM - 1) * (max(every) - ticks[0]))

    def y(value: float) -> float:
        return round(100 * (high - value) / (high - low), 2)

    series = tuple(
        Series(
            name=curve.name,
            css=curve.css,
            points=tuple(
                Point(
                    x=place_at(index, len(places)),
                    y=y(value),
                    value=value,
                    text=f"{words.x_name} {places[index]}: {curve.name} {words.text(value)}",
                )
                for index, value in enumerate(curve.values)
                if value is not None
            ),
        )
        for curve in curves
        if any(value is not None for value in curve.values)
    )
    return Chart(
        id=words.id,
        title=words.title,
        description=_description(words, curves, level),
        x_name=words.x_name,
        x_ticks=_place_ticks(places),
        y_ticks=tuple(
            Tick(at=y(value), text="" if level and abs(y(value) - y(level[1])) < _CLEAR else words.text(value))
            for value in ticks
        ),
        series=series,
        level=None
        if level is None
        else Level(y=y(level[1]), text=f"{level[0]} {words.text(level[1])}", value=level[1]),
    )


def place_at(index: int, count: int) -> float:
    """The middle of a place's share of the axis, right of the numbers of the other one."""
    return round(_LEFT + (100 - _LEFT) * (index + 0.5) / max(count, 1), 2)


def value_ticks(low: float, high: float) -> tuple[float, ...]:
    """Three to seven round numbers, the first not above `low`; with numbers that are all alike, room around them."""
    span = high - low if high > low else abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (5, 2, 1) if factor * step <= span / 3 + 1e-12)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.floor(max(high, low + span if high <= low else high) / step + 1e-9))
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _place_ticks(places: Sequence[int]) -> tuple[Tick, ...]:
    """Every place, or every second, fifth, tenth, …"""
    stride = next(f * 10**p for p in range(12) for f in (1, 2, 5) if len(places) <= _MOST_TICKS * f * 10**p)
    return tuple(
        Tick(at=place_at(index, len(places)), text=str(place))
        for index, place in enumerate(places)
        if index % stride == 0
    )


def _description(words: ChartWords, curves: Sequence[Curve], level: tuple[str, float] | None) -> str:
    parts = []
    for curve in curves:
        values = [value for value in curve.values if value is not None]
        if values:
            way = f"{words.text(values[0])} to {words.text(values[-1])}" if len(values) > 1 else words.text(values[0])
            parts.append(f"{curve.name} {way}")
    across = "" if level is None else f"; {level[0]} {words.text(level[1])}"
    return f"{words.title}, {words.x_name} by {words.x_name}: {', '.join(parts)}{across}. A table has all numbers."
