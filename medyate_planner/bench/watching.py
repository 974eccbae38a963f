"""What is watched while a contender trains: time, loss, and whether importance stays what it was."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np

from medyate_planner.bench.setting import Setting
from medyate_planner.errors import InputError
from medyate_planner.importance.energy import Importance, Vector
from medyate_planner.importance.gradients import probe
from medyate_planner.importance.metrics import rank_layers
from medyate_planner.training.batches import invoke, to_model

_FEWEST_CHANNELS = 4  # ranks of fewer say nothing
_TOP_SHARE = 0.25


class Steps:
    """Time and loss of every step."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, float]] = []
        self._losses: dict[int, list[float]] = {}

    def step(self, epoch: int, _step: int, loss: float) -> None:
        """To be called after every step."""
        self._ends.append((epoch, time.perf_counter()))
        self._losses.setdefault(epoch, []).append(loss)

    @property
    def seconds(self) -> float | None:
        """The median from the end of a step to that of the next: loading, training, updating. None before the second
        step."""
        taken = [after - before for (epoch, before), (same, after) in pairwise(self._ends) if epoch == same]
        return statistics.median(taken) if taken else None

    @property
    def train_losses(self) -> list[float | None]:
        """The mean of each epoch; None where it is not finite."""
        means = [statistics.fmean(losses) for losses in self._losses.values()]
        return [mean if math.isfinite(mean) else None for mean in means]


def measured_importance(setting: Setting, places: range) -> Importance:
    """Gradients of every channel as the model is now, on the batches at these places of the first epoch."""
    model, subject = setting.subject.model, setting.subject
    batches = (
        (to_model(model, x), to_model(model, target, cast=False))
        for x, target in islice(setting.batches.train(0), places.start, places.stop)
    )
    return probe(model, subject.graph, batches, subject.loss.function, call=invoke)


class Follower:
    """Measures importance at the start and after every epoch, on the same batches; nothing where `batches` is None.

    At the start also on as many others: how alike two measurements are between which nothing happened.
    """

    def __init__(self, setting: Setting, batches: int | None) -> None:
        self._setting, self._batches = setting, batches
        self._seen: list[Importance] = []
        self._others: Importance | None = None
        if batches is not None:
            if setting.batches.steps_per_epoch < 2 * batches:
                raise InputError(
                    f"{setting.job.name}: follow: an epoch has {setting.batches.steps_per_epoch} batches; expected "
                    f"at least twice {batches}"
                )
            self._others = measured_importance(setting, range(batches, 2 * batches))
            self.measure()

    def measure(self) -> None:
        """Measure now."""
        if self._batches is not None:
            self._seen.append(measured_importance(self._setting, range(self._batches)))

    def summary(self) -> dict[str, Any]:
        """How alike importance is to what it was at the start: after each epoch, and on other batches."""
        if self._others is None:
            return {}
        first, *later = self._seen
        return {
            "stability": {
                "again": self._likeness(first, self._others),
                "epochs": [self._likeness(first, after) for after in later],
            }
        }

    def _likeness(self, one: Importance, other: Importance) -> dict[str, float | None]:
        """Spearman's correlation of the layers by LaRa; the mean over layers of that of their channels' energies, and
        of the share of the best quarter of the channels that is the same."""
        memory = self._setting.subject.memory
        costs = {layer.name: memory.costs[layer.name].update_bytes for layer in memory.graph.layers}
        layers = [{entry.name: entry.score for entry in rank_layers(seen, "lara", costs)} for seen in (one, other)]
        pairs = [(one.energy[name], other.energy[name]) for name in costs if len(one.energy[name]) >= _FEWEST_CHANNELS]
        found = [spearman(a, b) for a, b in pairs]
        return {
            "layers": spearman(*([scores[name] for name in costs] for scores in layers)),
            "channels": _mean([rho for rho in found if rho is not None]),
            "best": _mean([_common_best(a, b) for a, b in pairs]),
        }


def spearman(one: Sequence[float] | Vector, other: Sequence[float] | Vector) -> float | None:
    """Spearman's rank correlation; None where all of one are the same.

    Raises:
        InputError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError:
        raise InputError("correlations need scipy; install it with: pip install 'medyate-planner[bench]'") from None
    if len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return None
    return float(stats.spearmanr(one, other).statistic)


def _common_best(one: Vector, other: Vector) -> float:
    count = max(1, round(_TOP_SHARE * len(one)))
    best = [set(np.argsort(-np.asarray(scores), kind="stable")[:count].tolist()) for scores in (one, other)]
    return len(best[0] & best[1]) / count


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
