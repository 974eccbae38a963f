"""What came out, as a table: mean and deviation over seeds, on each network, task and budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_bench(matrix: Matrix, runs: Sequence[Record]) -> Iterable[RenderableType]:
    """A table for each network and task; contenders without a budget stand in each of its budgets' rows."""
    for network in matrix.networks:
        for task in matrix.tasks:
            found = [run for run in runs if (run["network"], run["task"]) == (network.name, task.name)]
            if found:
                yield _table(matrix, f"{network.name} on {task.name}", found)
    failed = [run for run in runs if run.get("failure")]
    for run in failed:
        yield line(f"{run['job']}: {run['failure']}")


def _table(matrix: Matrix, title: str, runs: Sequence[Record]) -> Any:
    made = table(
        title, ("contender", "left"), ("budget", "left"), ("training B", "right"), ("accuracy", "right"),
        ("deviation", "right"), ("seeds", "right"), ("ms a step", "right"), ("rate", "right"),
    )  # fmt: skip
    for contender in matrix.contenders:
        for budget in (None, *(budget.name for budget in matrix.budgets)):
            own = [
                r for r in runs if (r["contender"], r["budget"]) == (contender.name, budget) and not r.get("failure")
            ]
            if not own:
                continue
            accuracies = [float(r["accuracy"]) for r in own]
            put(
                made,
                contender.name,
                budget or "",
                f"{max(int(r['training_bytes']) for r in own):,}",
                f"{statistics.mean(accuracies):.4f}",
                f"{statistics.stdev(accuracies):.4f}" if len(own) > 1 else "",
                str(len(own)),
                f"{1e3 * statistics.median(float(r['step_seconds']) for r in own):.1f}",
                f"{own[0]['rate']:g}",
            )
    return made
