"""A step's memory as a drawing without scripts: a band for each category, the phases, the largest moment, a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from medyate_planner.reporting.chart import Level, Tick
from medyate_planner.reporting.page import Cell, Part, Table, bytes_cell
from medyate_planner.reporting.page_sections import css_class, meaning_of
from medyate_planner.reporting.view import ReportedTimeline
from medyate_planner.units import format_bytes

MOST_MOMENTS = 400
SIZE = 10_000  # units of a band's drawing, in both directions
_HEADROOM = 1.15
_CLEAR = 5.0  # percent around the budget in which no tick is named
_PHASE_NAME_PERCENT = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A category's path, in units of `SIZE`."""

    css: str
    meaning: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStrip:
    """A phase's part of the axis, in percent; its name only where there is room."""

    name: str
    start: float
    width: float
    shows_name: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDrawing:
    """Everything that is drawn of a step, and the table behind it."""

    description: str
    caption: str
    bands: tuple[Band, ...]
    phases: tuple[PhaseStrip, ...]
    y_ticks: tuple[Tick, ...]
    peak_x: float
    peak_y: float
    peak_bytes: int
    level: Level | None
    at_peak: tuple[Part, ...]
    moments: Table


def step_drawing(line: ReportedTimeline, budget_bytes: int | None, ticks: Sequence[int]) -> StepDrawing:
    """Draw a timeline under a budget line; of a long one, the largest moment of each of `MOST_MOMENTS` columns.

    Args:
        ticks: Round amounts for the axis, from 0.
    """
    shown = drawn_moments(line)
    top = _HEADROOM * max(line.peak_bytes, budget_bytes or 0, 1)
    columns = [line.live_bytes[moment] for moment in shown]
    peak = shown.index(line.peak_index)

    def y(amount: int) -> float:
        return round(100 * (1 - amount / top), 3)

    where = f"{line.operator[line.peak_index]} {line.module[line.peak_index]}".strip()
    place = f"operator {line.peak_index + 1:,} of {len(line.phase):,}, {line.phase[line.peak_index]}: {where}"
    budget = "" if budget_bytes is None else f" The budget is {format_bytes(budget_bytes)}."
    return StepDrawing(
        description=(
            f"Memory over the {len(line.phase):,} operators of a planned step, stacked by category. "
            f"Largest moment {line.peak_bytes:,} bytes, {place}.{budget} A table has all numbers."
        ),
        caption=f"Largest moment: {line.peak_bytes:,} B, {place}.",
        bands=tuple(
            Band(css=css_class(name), meaning=meaning_of(name), path=path)
            for name, path in zip(line.categories, _paths(columns, top), strict=True)
            if path
        ),
        phases=_phases(line, shown),
        y_ticks=tuple(
            Tick(at=y(tick), text=format_bytes(tick) if _is_clear(y(tick), budget_bytes, y) else "")
            for tick in ticks
            if tick <= top
        ),
        peak_x=round(100 * (peak + 0.5) / len(shown), 3),
        peak_y=y(line.peak_bytes),
        peak_bytes=line.peak_bytes,
        level=None
        if budget_bytes is None
        else Level(y=y(budget_bytes), text=f"budget {format_bytes(budget_bytes)}", value=budget_bytes),
        at_peak=tuple(
            Part(css=css_class(name), meaning=meaning_of(name), cell=bytes_cell(amount))
            for name, amount in reversed(list(line.at_peak.items()))
            if amount
        ),
        moments=_table(line, shown),
    )


def _is_clear(at: float, budget_bytes: int | None, y: Callable[[int], float]) -> bool:
    return budget_bytes is None or abs(at - y(budget_bytes)) >= _CLEAR


def drawn_moments(line: ReportedTimeline) -> list[int]:
    """All moments, or the largest of each column, so that no peak is lost."""
    count = len(line.phase)
    columns = min(count, MOST_MOMENTS)
    totals = [sum(row) for row in line.live_bytes]
    edges = [column * count // columns for column in range(columns + 1)]
    found = []
    for start, end in pairwise(edges):
        inside = range(start, end)
        found.append(line.peak_index if line.peak_index in inside else max(inside, key=lambda moment: totals[moment]))
    return found


def _paths(columns: Sequence[Sequence[int]], top: float) -> list[str]:
    """For each category a path along its tops from left to right, and back along its bottoms; "" if it is empty."""
    bottoms, paths = [0] * len(columns), []
    for category in range(len(columns[0])):
        amounts = [column[category] for column in columns]
        tops = [low + amount for low, amount in zip(bottoms, amounts, strict=True)]
        paths.append(_path(tops, bottoms, top) if any(amounts) else "")
        bottoms = tops
    return paths


def _path(tops: Sequence[int], bottoms: Sequence[int], top: float) -> str:
    def y(amount: int) -> int:
        return round(SIZE * (1 - amount / top))

    edges = [round(SIZE * column / len(tops)) for column in range(len(tops) + 1)]
    steps = [f"M{edges[0]} {y(tops[0])}"]
    for run, columns in groupby(range(len(tops)), key=lambda column: y(tops[column])):
        steps.append(f"V{run}H{edges[list(columns)[-1] + 1]}")
    for run, columns in groupby(reversed(range(len(tops))), key=lambda column: y(bottoms[column])):
        steps.append(f"V{run}H{edges[list(columns)[-1]]}")
    return "".join(steps) + "Z"


def _phases(line: ReportedTimeline, shown: Sequence[int]) -> tuple[PhaseStrip, ...]:
    strips, before = [], 0
    for name, group in groupby(line.phase[moment] for moment in shown):
        count = len(list(group))
        start, width = 100 * before / len(shown), 100 * count / len(shown)
        room = width >= _PHASE_NAME_PERCENT
        strips.append(PhaseStrip(name=name, start=round(start, 3), width=round(width, 3), shows_name=room))
        before += count
    return tuple(strips)


def _table(line: ReportedTimeline, shown: Sequence[int]) -> Table:
    used = [i for i in range(len(line.categories)) if any(row[i] for row in line.live_bytes)]
    every = len(shown) == len(line.phase)
    rows = tuple(
        (
            Cell(text=f"{moment + 1:,} {line.operator[moment]}", note=line.module[moment]),
            Cell(text=line.phase[moment]),
            *(Cell(text=f"{line.live_bytes[moment][i]:,}", value=line.live_bytes[moment][i]) for i in used),
            Cell(text=f"{sum(line.live_bytes[moment]):,}", value=sum(line.live_bytes[moment])),
        )
        for moment in shown
    )
    return Table(
        id="moments",
        caption="Bytes after each operator"
        if every
        else f"Bytes after {len(shown):,} of {len(line.phase):,} operators: the largest moment of each drawn column",
        columns=("operator", "phase", *(meaning_of(line.categories[i]) for i in used), "all"),
        rows=rows,
        search="operator",
    )
