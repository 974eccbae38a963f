"""The figure of a step in a terminal, read back from its characters."""

from __future__ import annotations

import io

import pytest
from example_report import example_report
from rich.console import Console

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.terminal_figure import LAYERS, NARROWEST, ROWS, Panel, StepFigure, columns_of, layer_at


def figure() -> StepFigure:
    return StepFigure([Panel(title=step.name, timeline=step.timeline) for step in example_report().steps])


def printed(width: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(figure())
    stream.seek(0)
    return stream.read().splitlines()


def test_every_category_is_drawn_once() -> None:
    drawn = [category for layer in LAYERS for category in layer.categories]
    assert sorted(drawn) == sorted(Category)
    assert len({layer.mark for layer in LAYERS} | {layer.plain for layer in LAYERS}) == 2 * len(LAYERS)


def test_columns_keep_the_largest_moment_and_all_bytes() -> None:
    for step in example_report().steps:
        line = step.timeline
        for width in (NARROWEST, 40, 3 * len(line.phase)):
            columns = columns_of(line, width)
            assert len(columns) == width
            assert max(map(sum, columns)) == line.peak_bytes
            assert {sum(column) for column in columns} <= {sum(moment) for moment in line.live_bytes}


@pytest.mark.parametrize("width", [80, 100, 200])
def test_what_is_printed_is_what_stands_there(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    rows = lines[1 : 1 + ROWS]
    made, panels = figure(), figure().panels
    axis = rows[-1].index("0 B") + 3
    start = axis + 2
    inside = (len(rows[-1]) - axis) // len(panels) - 2
    by_mark = {layer.mark: layer for layer in LAYERS}
    for panel in panels:
        for row, line in enumerate(rows):
            height = made.peak_bytes * (ROWS - row - 0.5) / ROWS
            cells = line[start : start + inside].ljust(inside)
            expected = [layer_at(column, height) for column in columns_of(panel.timeline, inside)]
            assert [by_mark.get(cell) for cell in cells] == expected
        start += inside + 2
    assert all(step.name[:inside] in lines[ROWS + 2] for step in example_report().steps)


def test_what_stands_at_a_height_is_found_from_the_bottom_up() -> None:
    assert layer_at((10, 0, 5, 1), 9.5) is LAYERS[0]
    assert layer_at((10, 0, 5, 1), 10) is LAYERS[2]
    assert layer_at((10, 0, 5, 1), 15.5) is LAYERS[3]
    assert layer_at((10, 0, 5, 1), 16) is None


def test_without_unicode_it_is_ascii_and_without_room_it_is_left_out() -> None:
    assert all(line.isascii() for line in printed(100, "ascii"))
    assert printed(20) == []
