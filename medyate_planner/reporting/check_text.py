"""What became of a plan that was edited by hand, for a person."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medyate_planner.plancheck import PlanCheck
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_check(check: PlanCheck) -> Iterable[RenderableType]:
    """The stale lines of the file, then whether it meets its budget."""
    if check.stale:
        made = table(
            "Stale in the file: written, and recomputed",
            ("", "left"), ("written", "right"), ("recomputed", "right"), ("difference", "right"),
        )  # fmt: skip
        for entry in check.stale:
            put(
                made,
                entry.key,
                _shown(entry.written),
                _shown(entry.recomputed),
                _difference(entry.written, entry.recomputed),
            )
        yield made
    else:
        yield line("Nothing is stale: every figure of the file is what its layers and biases need")
    yield line(_verdict(check))


def _verdict(check: PlanCheck) -> str:
    limit = f"{check.limit_bytes:,} B"
    if check.limit_bytes != check.budget_bytes:
        limit += f" (the budget of {check.budget_bytes:,} B less its margin)"
    if check.over_bytes:
        return (
            f"FAILED: the plan needs {check.needed_bytes:,} B (scope {check.scope}), {check.over_bytes:,} B above "
            f"{limit}; lower quotas, take out layers or biases, or raise budget_bytes"
        )
    if check.over_flops:
        return (
            f"FAILED: a step takes {check.flops:,} operations, {check.over_flops:,} above max_flops "
            f"{check.max_flops:,}; take out early layers, lower quotas, or raise max_flops"
        )
    return f"OK: the plan needs {check.needed_bytes:,} B of {limit} (scope {check.scope})"


def _shown(value: str | float | None) -> str:
    return (
        "-"
        if value is None
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:.6g}"
        if isinstance(value, float)
        else value
    )


def _difference(written: str | float | None, recomputed: str | float | None) -> str:
    if isinstance(written, int) and isinstance(recomputed, int):
        return f"{recomputed - written:+,}"
    if isinstance(written, float) and isinstance(recomputed, float):
        return f"{recomputed - written:+.3g}"
    return ""
