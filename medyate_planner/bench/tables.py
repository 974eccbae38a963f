"""The numbers of a benchmark as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from medyate_planner.bench.agreement import LIKENESS, Agreement, Stability
from medyate_planner.bench.analysis import Comparison, Standing
from medyate_planner.bench.claims import Finding, Verdict
from medyate_planner.bench.headlines import HeadlineFigure
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.reporting.page import Cell, Table, bytes_cell, count_cell

_EMPTY = Cell(text="")


def overview_table(found: Sequence[Standing]) -> Table:
    """Shares of full fine-tuning's accuracy: contenders, the best first, by budget, the smallest first."""
    by_place = {(entry.contender, entry.budget): entry for entry in found if entry.share_of_full is not None}
    places = {name: [e for (_, budget), e in by_place.items() if budget == name] for _, name in by_place}
    by_budget = dict(sorted(places.items(), key=lambda entry: (entry[0] is None, _memory(entry[1]))))
    leading = max((name for name in by_budget if name is not None), key=lambda name: len(by_budget[name]), default=None)
    order = {entry.contender: -(entry.share_of_full or 0.0) for entry in by_budget.get(leading, ())}
    named = dict.fromkeys(contender for contender, _ in by_place)
    contenders = sorted(named, key=lambda name: (name not in order, order.get(name, 0.0)))
    return Table(
        id="overview",
        caption="Share of full fine-tuning's accuracy, mean over networks, tasks and seeds, by budget; in brackets the "
        f"training memory that was measured, of full fine-tuning's{f'; ordered by {leading}' if leading else ''}",
        columns=("contender", *(_budget_heading(*entry) for entry in by_budget.items())),
        rows=tuple(
            (Cell(text=name), *(_overview_cell(by_place.get((name, b)), others) for b, others in by_budget.items()))
            for name in contenders
        ),
    )


def _budget_heading(name: str | None, found: Sequence[Standing]) -> str:
    if name is None:
        return "without a budget"
    return f"{name} ({_memory(found):.2%})"


def _memory(found: Sequence[Standing]) -> float:
    """The most that was measured, of full fine-tuning's."""
    return max(entry.memory_ratio or 0.0 for entry in found)


def _overview_cell(entry: Standing | None, others: Sequence[Standing]) -> Cell:
    """Which is the highest is told of those with as many runs as any; without a budget, what was needed is."""
    if entry is None:
        return _EMPTY
    share, most = entry.share_of_full, max(other.cells for other in others)
    notes = [f"{entry.cells} runs" if entry.cells < most else ""]
    if entry.budget is None and entry.memory_ratio is not None:
        notes.insert(0, f"in {entry.memory_ratio:.2%}")
    elif entry.cells == most and share == max(other.share_of_full or 0.0 for other in others if other.cells == most):
        notes.append("highest")
    return replace(_percent(share), note=", ".join(filter(None, notes)))


def standings_table(found: Sequence[Standing]) -> Table:
    """Over all networks and tasks."""
    return Table(
        id="standings",
        caption="Means over networks, tasks and seeds (± standard deviation over seeds); shares are of full "
        "fine-tuning on the same network and task",
        columns=(
            "contender", "budget", "accuracy", "of full's accuracy", "of full's memory", "of full's step time",
            "channels seen", "runs",
        ),
        rows=tuple(
            (
                Cell(text=entry.contender),
                Cell(text=entry.budget or "none"),
                _accuracy(entry.accuracy, entry.deviation),
                _percent(entry.share_of_full),
                _percent(entry.memory_ratio, digits=2),
                _percent(entry.time_ratio, digits=0),
                _percent(entry.coverage, digits=0),
                Cell(
                    text=str(entry.cells),
                    value=entry.cells,
                    note=f"{entry.failed} without result" if entry.failed else "",
                ),
            )
            for entry in found
        ),
    )  # fmt: skip


def pair_tables(matrix: Matrix, runs: Sequence[Record]) -> tuple[Table, ...]:
    """One for each network and task."""
    made = []
    for network in matrix.networks:
        for task in matrix.tasks:
            own = [run for run in runs if (run["network"], run["task"]) == (network.name, task.name)]
            rows = tuple(_pair_rows(matrix, own))
            if rows:
                made.append(
                    Table(
                        id=f"{network.name}-{task.name}".replace(".", "-"),
                        caption=f"{network.name} on {task.name}",
                        columns=("contender", "budget", "accuracy", "training memory", "ms a step", "rate", "seeds"),
                        rows=rows,
                    )
                )
    return tuple(made)


def _pair_rows(matrix: Matrix, runs: Sequence[Record]) -> Iterable[tuple[Cell, ...]]:
    for contender in matrix.contenders:
        for budget in (None, *(budget.name for budget in matrix.budgets)):
            own = [r for r in runs if (r["contender"], r["budget"]) == (contender.name, budget)]
            done = [r for r in own if not r.get("failure")]
            if done:
                accuracies = [float(r["accuracy"]) for r in done]
                seconds = [float(r["step_seconds"]) for r in done if r.get("step_seconds")]
                yield (
                    Cell(text=contender.name),
                    Cell(text=budget or "none"),
                    _accuracy(
                        statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None
                    ),
                    bytes_cell(max(int(r["training_bytes"]) for r in done)),
                    _EMPTY if not seconds else _number(1e3 * statistics.median(seconds), "{:.1f}"),
                    Cell(text=" or ".join(f"{rate:g}" for rate in sorted({float(r["rate"]) for r in done}))),
                    count_cell(len(done)),
                )
            elif own:
                yield Cell(text=contender.name, note=own[0]["failure"]), Cell(text=budget or "none"), *[_EMPTY] * 5


def comparisons_table(found: Sequence[Comparison], first: str) -> Table:
    """One contender against each other one; those that were met in the other order are turned round."""
    rows = []
    for entry in found:
        if first in (entry.first, entry.second):
            sign = 1 if entry.first == first else -1
            wins, losses = (entry.wins, entry.losses)[::sign]
            other = entry.second if sign == 1 else entry.first
            rows.append(
                (
                    Cell(text=other), count_cell(entry.pairs),
                    _number(sign * entry.mean_difference, "{:+.4f}"), count_cell(wins), count_cell(losses),
                    _p(entry.t_p_corrected), _p(entry.wilcoxon_p_corrected),
                )
            )  # fmt: skip
    return Table(
        id="comparisons",
        caption=f"{first} less the other on the same network, task and seed, mean over the budgets that both have; "
        "p corrected over all comparisons (Holm)",
        columns=("against", "pairs", "mean difference", "wins", "losses", "t-test p", "Wilcoxon p"),
        rows=tuple(rows),
    )


def verdicts_table(found: Sequence[Finding]) -> Table:
    """Claim by claim, how many of its pairs say what."""
    rows = []
    for claim in dict.fromkeys(entry.claim for entry in found):
        verdicts = [entry.verdict for entry in found if entry.claim == claim]
        counts = [Cell(text=str(n or ""), value=n) for n in map(verdicts.count, get_args(Verdict))]
        rows.append((Cell(text=claim.text, note=claim.source), count_cell(len(verdicts)), *counts))
    return Table(
        id="verdicts",
        caption="Claims, and of how many pairs of contenders each holds here",
        columns=("claim", "pairs", *get_args(Verdict)),
        rows=tuple(rows),
        cards=True,
    )


def claims_table(found: Sequence[Finding]) -> Table:
    """Pair by pair, their claim, our figure, and whether it holds."""
    return Table(
        id="claims",
        caption="Their claim, our figure; p of the paired t-test, corrected over all rows (Holm)",
        columns=("claim", "here", "difference, 90 % interval", "wins", "losses", "p", "verdict"),
        rows=tuple(_claim_row(entry) for entry in found),
        cards=True,
    )


def _claim_row(entry: Finding) -> tuple[Cell, ...]:
    found = entry.comparison
    name = Cell(text=entry.claim.text, note=entry.claim.source)
    here = Cell(
        text=entry.first, note=f"{'better than' if entry.claim.expect == 'better' else 'same as'} {entry.second}"
    )
    verdict = Cell(text=entry.verdict, alert=entry.verdict == "does not hold")
    if found is None:
        return name, here, *[_EMPTY] * 4, verdict
    return (
        name,
        here,
        replace(_number(found.mean_difference, "{:+.4f}"), note="{:+.4f} to {:+.4f}".format(*found.interval)),
        count_cell(found.wins),
        count_cell(found.losses),
        _p(entry.p),
        verdict,
    )


def headline_table(figure: HeadlineFigure) -> Table:
    """One headline, network by network and task by task."""
    asked = figure.headline
    return Table(
        id=f"headline-{asked.contender}-{asked.budget}".replace("%", "-percent").replace(".", "-"),
        caption=f"{asked.contender} at {asked.budget}",
        columns=("network and task", "accuracy", "full fine-tuning", "of its accuracy", "training memory", "of full's"),
        rows=tuple(
            (
                Cell(text=f"{pair.network} on {pair.task}", note=f"{pair.seeds} seeds" if pair.seeds > 1 else "1 seed"),
                _accuracy(pair.accuracy),
                _accuracy(pair.full_accuracy),
                _percent(pair.share),
                bytes_cell(pair.training_bytes),
                _percent(pair.memory_ratio, digits=2),
            )
            for pair in figure.pairs
        ),
        cards=True,
    )


def stability_table(found: Sequence[Stability]) -> Table:
    """After each epoch, and with nothing trained in between."""
    rows = []
    for entry in found:
        moments = [("other batches, nothing trained", entry.again)]
        moments += [(f"after epoch {number}", seen) for number, seen in enumerate(entry.epochs, start=1)]
        for moment, seen in moments:
            likeness = [_number(seen[key], "{:.3f}") if key in seen else _EMPTY for key in LIKENESS]
            rows.append((Cell(text=entry.contender, note=moment), *likeness, count_cell(entry.runs)))
    return Table(
        id="stability",
        caption="Importance compared with that at the start of training",
        columns=("contender", "layers (Spearman)", "channels (Spearman)", "best quarter the same", "runs"),
        rows=tuple(rows),
        cards=True,
    )


def agreement_table(found: Sequence[Agreement]) -> Table:
    """Between data sets, and between seeds of one; a column for each metric."""
    metrics = tuple(dict.fromkeys(entry.metric for entry in found))
    by_place = {(entry.network, entry.tasks, entry.metric): entry for entry in found}
    rows = []
    for network, tasks in dict.fromkeys((entry.network, entry.tasks) for entry in found):
        own = [by_place.get((network, tasks, metric)) for metric in metrics]
        pairs = max(entry.pairs for entry in own if entry is not None)
        cells = [_EMPTY if e is None else _correlation(e.spearman, e.lowest) for e in own]
        rows.append((Cell(text=network, note=_between(tasks)), *cells, count_cell(pairs)))
    return Table(
        id="agreement",
        caption="Spearman's correlation of layer rankings by metric, mean over pairs of seeds",
        columns=("network", *metrics, "pairs"),
        rows=tuple(rows),
    )


def _correlation(value: float, lowest: float) -> Cell:
    return Cell(text=f"{value:.3f}", value=value, note=f"lowest {lowest:.3f}")


def _between(tasks: tuple[str, str]) -> str:
    return f"{tasks[0]}, other seeds" if tasks[0] == tasks[1] else f"{tasks[0]} and {tasks[1]}"


def _accuracy(value: float, deviation: float | None = None) -> Cell:
    return Cell(text=f"{value:.4f}", value=value, note="" if deviation is None else f"± {deviation:.4f}")


def _percent(value: float | None, digits: int = 1) -> Cell:
    return _EMPTY if value is None else Cell(text=f"{value:.{digits}%}", value=value)


def _number(value: float, form: str) -> Cell:
    return Cell(text=form.format(value), value=value)


def _p(value: float | None) -> Cell:
    return _EMPTY if value is None else Cell(text=f"{value:.2g}", value=value)
