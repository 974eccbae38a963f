"""An explanation for a terminal. Sums nothing: every number comes from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medyate_planner.planning.explanation import ExplainedUnit, Explanation, Limit, NextBytes
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_explanation(explanation: Explanation) -> Iterable[RenderableType]:
    """What binds, why each layer is in or out, and what more bytes would buy; biases worth nothing are only counted."""
    for limit in explanation.limits:
        yield line(limit_sentence(limit))
    made = table(
        "Why each layer is in or out",
        ("layer", "left"), ("quota", "right"), ("own B", "right"), ("reach B", "right"), ("next per kB", "right"),
        ("last per kB", "right"), ("", "left"),
    )  # fmt: skip
    worthless = [unit for unit in explanation.units if unit.what == "bias" and unit.reason == "no_value"]
    for unit in explanation.units:
        if unit not in worthless:
            put(made, *_row(unit), style=None if unit.chosen else "dim")
    yield made
    if worthless:
        yield line(f"{len(worthless)} biases are out: value 0, no importance measured")
    for note in explanation.notes:
        yield line(note)
    if explanation.next is not None:
        yield _render_next(explanation.next)


def limit_sentence(limit: Limit) -> str:
    """One limit in words: whether it binds, and what is left."""
    unit = " B" if limit.name == "budget" else ""
    binds = "binds" if limit.binds else "does not bind"
    where = f" {limit.where}" if limit.where else ""
    return f"--{limit.name} {binds}{where}: {limit.used:,} of {limit.limit:,}{unit} used, {limit.left:,}{unit} left"


def _render_next(found: NextBytes) -> RenderableType:
    head = f"{found.next_bytes:,} B more (a budget of {found.budget_bytes:,} B) would"
    if found.gained <= 0:
        return line(f"{head} buy nothing")
    made = table(
        f"{head} gain {found.gained:.4g}, {found.gained_per_kb:.3g} per kB, and use {found.used_bytes:,} B",
        ("layer", "left"), ("now", "right"), ("then", "right"), ("", "left"),
    )  # fmt: skip
    for change in found.layers:
        how = "enters" if not change.before else "leaves" if not change.after else ""
        put(made, change.name, str(change.before), str(change.after), how)
    for name in found.biases_entering:
        put(made, f"bias of {name}", "", "", "enters")
    for name in found.biases_leaving:
        put(made, f"bias of {name}", "", "", "leaves")
    return made


def _row(unit: ExplainedUnit) -> tuple[str, ...]:
    bias = unit.what == "bias"
    return (
        f"bias of {unit.name}" if bias else unit.name,
        "" if bias else f"{unit.quota}/{unit.channels}",
        "" if unit.own_bytes is None else f"{unit.own_bytes:,}",
        "" if unit.reach_bytes is None else f"{unit.reach_bytes:,}",
        "" if unit.next_value_per_kb is None else f"{unit.next_value_per_kb:.3g}",
        "" if unit.last_value_per_kb is None else f"{unit.last_value_per_kb:.3g}",
        unit.sentence,
    )
