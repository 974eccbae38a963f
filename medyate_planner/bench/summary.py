"""What came out, as tables: over seeds on each network and task, over all of them, and contenders against the first."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from medyate_planner.bench.analysis import Standing, compare, standings
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.errors import InputError
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
    if runs:
        yield _overall(standings(matrix, runs))
        yield _against_the_first(matrix, runs)
    failed = [run for run in runs if run.get("failure")]
    for contender, budget in dict.fromkeys((run["contender"], run["budget"]) for run in failed):
        own = [run for run in failed if (run["contender"], run["budget"]) == (contender, budget)]
        where = f"{contender}{f' at {budget}' if budget else ''}"
        yield line(f"{where}: {len(own)} without result, such as {own[0]['job']}: {own[0]['failure']}")


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


def _overall(found: Sequence[Standing]) -> Any:
    made = table(
        "Over all networks and tasks", ("contender", "left"), ("budget", "left"), ("runs", "right"),
        ("accuracy", "right"), ("deviation", "right"), ("of full's accuracy", "right"), ("of full's memory", "right"),
    )  # fmt: skip
    for standing in found:
        put(
            made,
            standing.contender,
            standing.budget or "",
            str(standing.cells),
            f"{standing.accuracy:.4f}",
            "" if standing.deviation is None else f"{standing.deviation:.4f}",
            "" if standing.share_of_full is None else f"{standing.share_of_full:.2%}",
            "" if standing.memory_ratio is None else f"{standing.memory_ratio:.2%}",
        )
    return made


def _against_the_first(matrix: Matrix, runs: Sequence[Record]) -> Any:
    first = matrix.contenders[0].name
    try:
        comparisons = [found for found in compare(matrix, runs) if found.first == first]
    except InputError as error:
        return line(error.message)
    made = table(
        f"{first} less the others on the same network, task and seed; p corrected over all comparisons (Holm)",
        ("", "left"), ("pairs", "right"), ("accuracy", "right"), ("wins", "right"), ("losses", "right"),
        ("t-test p", "right"), ("Wilcoxon p", "right"),
    )  # fmt: skip
    for found in comparisons:
        put(
            made,
            found.second,
            str(found.pairs),
            f"{found.mean_difference:+.4f}",
            str(found.wins),
            str(found.losses),
            "" if found.t_p_corrected is None else f"{found.t_p_corrected:.2g}",
            "" if found.wilcoxon_p_corrected is None else f"{found.wilcoxon_p_corrected:.2g}",
        )
    return made
