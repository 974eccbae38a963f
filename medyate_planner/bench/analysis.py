"""Contenders against each other, in pairs: the same network, task and seed.

What a contender reaches under several budgets has much in common, and is averaged before anything is tested: a pair is
one observation, not one for each budget. One without a budget (the head alone, full fine-tuning) meets that average.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.errors import InputError

Place = tuple[str, str, int]  # network, task, seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`first` against `second` in `pairs` of runs, of the same network, task and seed: accuracy of the one less that of
    the other, averaged over the budgets that both have; its mean with the 90 % interval (Student's).

    `t_p` and `wilcoxon_p` are two-sided; None where there are fewer than two pairs, or no difference in any. The
    corrected ones are Holm's (1979), over all comparisons made together.
    """

    first: str
    second: str
    pairs: int
    mean_difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    t_p: float | None
    wilcoxon_p: float | None
    t_p_corrected: float | None = None
    wilcoxon_p_corrected: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A contender over the cells it has: mean accuracy, its standard deviation over the seeds of one network and task
    (pooled; None with one seed), and its shares of full fine-tuning's accuracy, training memory and time of a step
    (means over networks and tasks); None where that was not run. `failed` runs are those without a result: the budget
    could not be met, or the loss became infinite."""

    contender: str
    budget: str | None
    cells: int
    failed: int
    accuracy: float
    deviation: float | None
    share_of_full: float | None
    memory_ratio: float | None
    time_ratio: float | None
    coverage: float | None


def by_place(matrix: Matrix, runs: Sequence[Record]) -> dict[str, dict[Place, dict[str, float]]]:
    """Accuracy of each contender in each place, by budget (all where it has none); without runs that failed."""
    found: dict[str, dict[Place, dict[str, float]]] = {contender.name: {} for contender in matrix.contenders}
    for run in _succeeded(runs):
        here = found[run["contender"]].setdefault((run["network"], run["task"], run["seed"]), {})
        budgets = [budget.name for budget in matrix.budgets] if run["budget"] is None else [run["budget"]]
        here |= dict.fromkeys(budgets, float(run["accuracy"]))
    return found


def compare(matrix: Matrix, runs: Sequence[Record]) -> list[Comparison]:
    """Each two contenders that meet in a place under a budget; those that are followed are copies of others.

    Raises:
        InputError: scipy is not installed.
    """
    copies = {contender.name for contender in matrix.contenders if contender.follow}
    accuracies = {name: places for name, places in by_place(matrix, runs).items() if name not in copies}
    two = (_compared(accuracies, a, b) for a, b in combinations(accuracies, 2))
    made = [found for found in two if found is not None]
    t = holm([comparison.t_p for comparison in made])
    wilcoxon = holm([comparison.wilcoxon_p for comparison in made])
    return [
        replace(comparison, t_p_corrected=one, wilcoxon_p_corrected=other)
        for comparison, one, other in zip(made, t, wilcoxon, strict=True)
    ]


def compared(matrix: Matrix, runs: Sequence[Record], first: str, second: str) -> Comparison | None:
    """Two contenders, without correction; None where they never meet.

    Raises:
        InputError: scipy is not installed.
    """
    return _compared(by_place(matrix, runs), first, second)


def _compared(
    accuracies: Mapping[str, Mapping[Place, Mapping[str, float]]], first: str, second: str
) -> Comparison | None:
    differences = []
    for place, ours in accuracies[first].items():
        theirs = accuracies[second].get(place, {})
        shared = [ours[budget] - theirs[budget] for budget in ours if budget in theirs]
        if shared:
            differences.append(statistics.fmean(shared))
    if not differences:
        return None
    t_p, wilcoxon_p = _tests(differences)
    return Comparison(
        first=first,
        second=second,
        pairs=len(differences),
        mean_difference=statistics.fmean(differences),
        interval=_interval(differences),
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
    )


def _interval(differences: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """Of the mean; the mean alone where there is no spread to judge by."""
    mean = statistics.fmean(differences)
    if len(set(differences)) < 2:
        return mean, mean
    half = _stats().t.ppf((1 + level) / 2, len(differences) - 1) * statistics.stdev(differences)
    half /= math.sqrt(len(differences))
    return mean - half, mean + half


def _tests(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Two-sided p of Student's paired t-test and of Wilcoxon's signed ranks."""
    stats = _stats()
    if len(differences) < 2 or not any(differences):
        return None, None
    t_p = None if len(set(differences)) == 1 else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return t_p, float(stats.wilcoxon(differences).pvalue)


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise InputError(
            "tests between contenders need scipy; install it with: pip install 'medyate-planner[bench]'"
        ) from None
    return stats


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
        for standing in _standing(matrix, runs, contender.name, budget)
    ]


def _standing(matrix: Matrix, runs: Sequence[Record], contender: str, budget: str | None) -> Iterator[Standing]:
    every = [run for run in runs if (run["contender"], run["budget"]) == (contender, budget)]
    own = _succeeded(every)
    if not own:
        return
    full = [run for run in _succeeded(runs) if run["contender"] == whole_of(matrix)]
    places = dict.fromkeys((run["network"], run["task"]) for run in own)
    here, theirs = ([[r for r in some if (r["network"], r["task"]) == at] for at in places] for some in (own, full))
    pairs = [(mine, whole) for mine, whole in zip(here, theirs, strict=True) if whole]
    yield Standing(
        contender=contender,
        budget=budget,
        cells=len(own),
        failed=len(every) - len(own),
        accuracy=statistics.fmean(float(run["accuracy"]) for run in own),
        deviation=_pooled([[float(run["accuracy"]) for run in runs] for runs in here]),
        share_of_full=_ratio(pairs, "accuracy"),
        memory_ratio=_ratio(pairs, "training_bytes"),
        time_ratio=_ratio(pairs, "step_seconds"),
        coverage=_known_mean([run.get("coverage") for run in own]),
    )


def _pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups: the root of their variances' mean, weighted by degrees of freedom."""
    free = sum(len(group) - 1 for group in groups)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    return math.sqrt(squares / free) if free else None


def whole_of(matrix: Matrix) -> str | None:
    """The contender that all others are shares of: the first that is full fine-tuning."""
    return next((contender.name for contender in matrix.contenders if contender.kind == "full"), None)


def _ratio(pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]], key: str) -> float | None:
    """Mean over networks and tasks of the quotient of means."""
    both = [(_known_mean([r.get(key) for r in one]), _known_mean([r.get(key) for r in two])) for one, two in pairs]
    quotients = [one / two for one, two in both if one is not None and two]
    return statistics.fmean(quotients) if quotients else None


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _succeeded(runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if not run.get("failure")]
