"""Contenders against each other, over the cells of a matrix: network, task, budget and seed.

A contender without a budget (the head alone, full fine-tuning) stands in every budget's cell with the same result.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.errors import InputError

Cell = tuple[str, str, str, int]  # network, task, budget, seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`first` against `second` on the cells that both have: accuracy of the one less that of the other.

    `t_p` and `wilcoxon_p` are two-sided; None where there are fewer than two cells, or no difference in any. The
    corrected ones are Holm's (1979), over all comparisons made together.
    """

    first: str
    second: str
    cells: int
    mean_difference: float
    wins: int
    losses: int
    t_p: float | None
    wilcoxon_p: float | None
    t_p_corrected: float | None = None
    wilcoxon_p_corrected: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A contender over the cells it has: mean and deviation of accuracy, and its share of full fine-tuning's accuracy
    (mean over networks and tasks), and of its training memory; None where that was not run."""

    contender: str
    budget: str | None
    cells: int
    accuracy: float
    deviation: float
    share_of_full: float | None
    memory_ratio: float | None


def by_cell(matrix: Matrix, runs: Sequence[Record]) -> dict[str, dict[Cell, float]]:
    """Accuracy of each contender in each cell; one that failed is not in it."""
    found: dict[str, dict[Cell, float]] = {contender.name: {} for contender in matrix.contenders}
    for run in _succeeded(runs):
        budgets = [budget.name for budget in matrix.budgets] if run["budget"] is None else [run["budget"]]
        for budget in budgets:
            found[run["contender"]][run["network"], run["task"], budget, run["seed"]] = float(run["accuracy"])
    return found


def compare(matrix: Matrix, runs: Sequence[Record]) -> list[Comparison]:
    """All pairs of contenders that share a cell.

    Raises:
        InputError: scipy is not installed.
    """
    cells = by_cell(matrix, runs)
    made = [_compared(a, b, cells[a], cells[b]) for a, b in combinations(cells, 2) if cells[a].keys() & cells[b].keys()]
    t = holm([comparison.t_p for comparison in made])
    wilcoxon = holm([comparison.wilcoxon_p for comparison in made])
    return [
        replace(comparison, t_p_corrected=one, wilcoxon_p_corrected=other)
        for comparison, one, other in zip(made, t, wilcoxon, strict=True)
    ]


def _compared(first: str, second: str, a: Mapping[Cell, float], b: Mapping[Cell, float]) -> Comparison:
    differences = [a[cell] - b[cell] for cell in a if cell in b]
    t_p, wilcoxon_p = _tests(differences)
    return Comparison(
        first=first,
        second=second,
        cells=len(differences),
        mean_difference=statistics.fmean(differences),
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
    )


def _tests(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Two-sided p of Student's paired t-test and of Wilcoxon's signed ranks."""
    try:
        from scipy import stats
    except ImportError:
        raise InputError(
            "tests between contenders need scipy; install it with: pip install 'medyate-planner[bench]'"
        ) from None
    if len(differences) < 2 or not any(differences):
        return None, None
    t_p = None if len(set(differences)) == 1 else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return t_p, float(stats.wilcoxon(differences).pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Corrected p values (Holm 1979): the k-th smallest of n times n - k + 1, no smaller than the last, at most 1."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def standings(matrix: Matrix, runs: Sequence[Record]) -> list[Standing]:
    """Each contender at each budget, in the order of the matrix."""
    return [
        standing
        for contender in matrix.contenders
        for budget in ([budget.name for budget in matrix.budgets] if contender.has_budget else [None])
        for standing in _standing(matrix, _succeeded(runs), contender.name, budget)
    ]


def _standing(matrix: Matrix, runs: Sequence[Record], contender: str, budget: str | None) -> Iterator[Standing]:
    own = [run for run in runs if (run["contender"], run["budget"]) == (contender, budget)]
    if not own:
        return
    whole = {contender.name for contender in matrix.contenders if contender.kind == "full"}
    full = [run for run in runs if run["contender"] in whole]
    shares, ratios = [], []
    for network, task in dict.fromkeys((run["network"], run["task"]) for run in own):
        here = [run for run in own if (run["network"], run["task"]) == (network, task)]
        theirs = [run for run in full if (run["network"], run["task"]) == (network, task)]
        if theirs:
            shares.append(_mean(here, "accuracy") / _mean(theirs, "accuracy"))
            ratios.append(_mean(here, "training_bytes") / _mean(theirs, "training_bytes"))
    accuracies = [float(run["accuracy"]) for run in own]
    yield Standing(
        contender=contender,
        budget=budget,
        cells=len(own),
        accuracy=statistics.fmean(accuracies),
        deviation=statistics.stdev(accuracies) if len(own) > 1 else 0.0,
        share_of_full=statistics.fmean(shares) if shares else None,
        memory_ratio=statistics.fmean(ratios) if ratios else None,
    )


def _mean(runs: Sequence[Record], key: str) -> float:
    return statistics.fmean(float(run[key]) for run in runs)


def _succeeded(runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if not run.get("failure")]
