"""A difference for a terminal. Sums nothing: every number comes from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medyate_planner.reporting.difference import Difference, FigureDifference
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_difference(found: Difference, a: str, b: str) -> Iterable[RenderableType]:
    """Settings that differ, figures, layers; `a` and `b` are the files' names."""
    yield line(f"A: {a}   B: {b}")
    for note in found.notes:
        yield line(note)
    if found.settings:
        made = table("Settings that differ", ("", "left"), ("A", "left"), ("B", "left"))
        for setting in found.settings:
            put(made, setting.name, setting.a, setting.b)
        yield made
    else:
        yield line("all settings are the same")
    figures = table("Figures", ("", "left"), ("A", "right"), ("B", "right"), ("B - A", "right"), ("", "left"))
    for figure in found.figures:
        put(figures, figure.name, _number(figure.a), _number(figure.b), _change(figure), figure.unit)
    yield figures
    if found.kind == "plan":
        yield from _updates(found)


def _updates(found: Difference) -> Iterable[RenderableType]:
    if not found.layers and not found.biases_entering and not found.biases_leaving:
        yield line("the same layers with the same quotas, and the same biases")
        return
    made = table("What is updated otherwise", ("", "left"), ("A", "right"), ("B", "right"), ("", "left"))
    for layer in found.layers:
        sizes = ["drawn" if quota is None else str(quota) for quota in (layer.a, layer.b)]
        put(made, layer.name, *sizes, "" if layer.change == "quota" else layer.change)
    for name in found.biases_entering:
        put(made, f"bias of {name}", "", "", "enters")
    for name in found.biases_leaving:
        put(made, f"bias of {name}", "", "", "leaves")
    yield made


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _change(figure: FigureDifference) -> str:
    if figure.change is None:
        return ""
    if figure.change == 0:
        return "0"
    return f"{figure.change:+,}" if isinstance(figure.change, int) else f"{figure.change:+.4g}"
