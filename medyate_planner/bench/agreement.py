"""What planning beforehand rests on: importance that stays as it was while training, and is alike between data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from medyate_planner.bench.records import Record
from medyate_planner.bench.watching import spearman

LIKENESS = ("layers", "channels", "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How alike importance is to that at the start: for each epoch the mean over runs, by what is compared (see
    `watching.Follower`); `again` on other batches at the start, when nothing has been trained."""

    contender: str
    runs: int
    again: Mapping[str, float]
    epochs: tuple[Mapping[str, float], ...]


def stability(runs: Sequence[Record]) -> list[Stability]:
    """Of each contender that was followed."""
    followed = [run for run in runs if run.get("stability")]
    made = []
    for contender in dict.fromkeys(run["contender"] for run in followed):
        own = [run["stability"] for run in followed if run["contender"] == contender]
        epochs = min(len(seen["epochs"]) for seen in own)
        made.append(
            Stability(
                contender=contender,
                runs=len(own),
                again=_means([seen["again"] for seen in own]),
                epochs=tuple(_means([seen["epochs"][epoch] for seen in own]) for epoch in range(epochs)),
            )
        )
    return made


def _means(found: Sequence[Mapping[str, float | None]]) -> Mapping[str, float]:
    known = {key: [entry[key] for entry in found] for key in LIKENESS}
    return {key: statistics.fmean(v for v in values if v is not None) for key, values in known.items() if any(values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Spearman's correlation of a network's layers by a metric: mean over all seeds of one data set with all seeds of
    another, or with the other seeds of the same."""

    network: str
    metric: str
    tasks: tuple[str, str]
    pairs: int
    spearman: float
    lowest: float


def agreements(ranks: Sequence[Record]) -> list[Agreement]:
    """Between every two data sets of each network, and within each; from the results of stage rank."""
    made = []
    known = [record for record in ranks if record.get("layers")]
    for network in dict.fromkeys(record["network"] for record in known):
        own = [record for record in known if record["network"] == network]
        tasks = list(dict.fromkeys(record["task"] for record in own))
        for metric in own[0]["layers"]:
            for one, other in [*((task, task) for task in tasks), *combinations(tasks, 2)]:
                found = [_alike(a, b, metric) for a, b in _pairs(own, one, other)]
                values = [value for value in found if value is not None]
                if values:
                    made.append(
                        Agreement(
                            network=network, metric=metric, tasks=(one, other), pairs=len(values),
                            spearman=statistics.fmean(values), lowest=min(values),
                        )
                    )  # fmt: skip
    return made


def _pairs(own: Sequence[Record], one: str, other: str) -> list[tuple[Record, Record]]:
    first, second = ([record for record in own if record["task"] == task] for task in (one, other))
    return list(combinations(first, 2)) if one == other else list(product(first, second))


def _alike(one: Record, other: Record, metric: str) -> float | None:
    a, b = one["layers"][metric], other["layers"][metric]
    return spearman([a[name] for name in a], [b[name] for name in a])
