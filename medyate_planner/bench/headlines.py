"""How much of full fine-tuning's accuracy a contender reaches under a budget, network by network and task by task."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from medyate_planner.bench.analysis import whole_of
from medyate_planner.bench.matrix import Headline, Matrix
from medyate_planner.bench.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class PairShare:
    """On one network and task: mean accuracies over `seeds`, and measured training memory."""

    network: str
    task: str
    seeds: int
    accuracy: float
    full_accuracy: float
    training_bytes: int
    full_bytes: int

    @property
    def share(self) -> float:
        """Of full fine-tuning's accuracy."""
        return self.accuracy / self.full_accuracy

    @property
    def memory_ratio(self) -> float:
        """Of full fine-tuning's training memory."""
        return self.training_bytes / self.full_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadlineFigure:
    """A headline's figure, beside the mean shares of the others that take no more memory than the budget, the best
    first."""

    headline: Headline
    pairs: tuple[PairShare, ...]
    others: tuple[tuple[str, float], ...]

    @property
    def share(self) -> float:
        """Mean over networks and tasks."""
        return statistics.fmean(pair.share for pair in self.pairs)

    @property
    def memory_ratio(self) -> float:
        """Mean over networks and tasks."""
        return statistics.fmean(pair.memory_ratio for pair in self.pairs)

    @property
    def reached(self) -> bool:
        """Whether it is what was aimed at."""
        return self.share >= self.headline.aim


def headline_figures(matrix: Matrix, runs: Sequence[Record]) -> list[HeadlineFigure]:
    """Of the headlines for which there are results."""
    made = []
    for headline in matrix.headlines:
        pairs = shares(matrix, runs, headline.contender, headline.budget)
        if not pairs:
            continue
        places = {(pair.network, pair.task) for pair in pairs}
        others = {}
        for contender in matrix.contenders:
            if contender.name != headline.contender:
                budget = headline.budget if contender.has_budget else None
                found = [s for s in shares(matrix, runs, contender.name, budget) if (s.network, s.task) in places]
                as_small = contender.has_budget or _within(found, pairs)
                if len(found) == len(pairs) and as_small:  # else means are of different things
                    others[contender.name] = statistics.fmean(pair.share for pair in found)
        best_first = sorted(others.items(), key=lambda entry: -entry[1])
        made.append(HeadlineFigure(headline=headline, pairs=tuple(pairs), others=tuple(best_first)))
    return made


def _within(found: Sequence[PairShare], pairs: Sequence[PairShare]) -> bool:
    """Whether it never takes more than what the headline's contender was measured to take."""
    taken = {(pair.network, pair.task): pair.training_bytes for pair in pairs}
    return all(pair.training_bytes <= taken[pair.network, pair.task] for pair in found)


def shares(matrix: Matrix, runs: Sequence[Record], contender: str, budget: str | None) -> list[PairShare]:
    """Of a contender at a budget, over the seeds that both it and full fine-tuning have."""
    whole = whole_of(matrix)
    made = []
    for network in matrix.networks:
        for task in matrix.tasks:
            here = [r for r in runs if (r["network"], r["task"]) == (network.name, task.name) and not r.get("failure")]
            own = {r["seed"]: r for r in here if (r["contender"], r["budget"]) == (contender, budget)}
            full = {r["seed"]: r for r in here if r["contender"] == whole}
            seeds = [seed for seed in own if seed in full]
            if seeds:
                made.append(
                    PairShare(
                        network=network.name,
                        task=task.name,
                        seeds=len(seeds),
                        accuracy=statistics.fmean(float(own[seed]["accuracy"]) for seed in seeds),
                        full_accuracy=statistics.fmean(float(full[seed]["accuracy"]) for seed in seeds),
                        training_bytes=max(int(own[seed]["training_bytes"]) for seed in seeds),
                        full_bytes=max(int(full[seed]["training_bytes"]) for seed in seeds),
                    )
                )
    return made
