"""Importance measured within a budget against importance measured at once: layer rankings, plans, bytes, time.

Usage: python reports/within_budget.py > reports/within_budget.txt   (needs the data files, see MEDYATE_ASSETS)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from subjects import HEAD_EPOCHS, zoo_subject

from medyate_planner.api import ROUND_BATCHES, rank
from medyate_planner.data import load_data, make_loader
from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.importance.energy import Importance
from medyate_planner.importance.metrics import rank_layers
from medyate_planner.models import assets_dir
from medyate_planner.models.zoo import ZOO_PREPROCESSING
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import STRATEGIES
from medyate_planner.subject import Subject
from medyate_planner.training.loop import Recipe

NETWORKS = ("mcunet-5fps", "mbv2-w0.35")
BATCH_SIZE = 8
BUDGETS = (64_000, 128_000, 256_000, 512_000, 1_000_000, 2_000_000, 64_000_000)
HEADER = (
    f"{'budget B':>12} {'measured B':>12} {'rounds':>6} {'seconds':>8} {'layers':>8}   "
    f"{'raw':>6} {'rgn':>6} {'lara':>6}   {'raw':>6} {'rgn':>6} {'lara':>6}   {'raw':>6} {'rgn':>6} {'lara':>6}   "
    f"{'error':>8} {'plan':>7}"
)
METRICS = ("raw", "rgn", "lara")
LEGEND = """\
Importance of the layers on sign_digits (128 px, batch 8) after two epochs of head warm-up, as `medyate rank
--within-budget` measures it, against importance measured by full backward passes.
measured: the most that any step kept, of the warm-up or of a round (all are measured). seconds: warm-up and rounds.
layers: those of which a channel fits the budget, of all but the head. Then Spearman's rank correlation of the layers'
scores (a layer that does not fit has 0), by each metric:
  same   all layers, against full backward passes over the same mini-batches
  reach  the layers that fit, against the same
  epoch  the layers that fit, against full backward passes over a whole epoch (the default without a budget)
error: largest relative difference of a fitting layer's energies (as vectors) from the same mini-batches at once.
plan: value of the plan made for this budget from the importance measured within it, as a share of the value of the
plan made from a whole epoch's, both valued by the latter (gap 0.1%).
"at once": full backward passes over the same mini-batches; "whole epoch": over all.
"""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Importance, and how long it took."""

    importance: Importance
    seconds: float


def main() -> None:
    """Print the report."""
    torch.set_num_threads(1)
    print(LEGEND)
    for name in NETWORKS:
        report(name)


def report(name: str) -> None:
    """The table of one network."""
    subject = zoo_subject(name, BATCH_SIZE)
    measure = measurer(subject)
    same = measure(max_batches=ROUND_BATCHES)
    epoch = measure()
    print(f"{name}: {len(subject.graph.units)} layers, {ROUND_BATCHES} mini-batches in each round")
    print(f"{'':>51}{'same':^20}   {'reach':^20}   {'epoch':^20}")
    print(HEADER)
    for budget_bytes in BUDGETS:
        print(row(subject, measure(within_budget=budget_bytes), same, epoch, budget_bytes))
    names = layers_of(subject)
    agreement = cells(subject, same.importance, epoch.importance, names)
    print(f"{'at once':>12} {same.seconds:>28.1f} {'':>57}{agreement}")
    print(f"{'whole epoch':>12} {epoch.seconds:>28.1f}")
    print()


def measurer(subject: Subject) -> Callable[..., Ranked]:
    """`rank` on sign_digits, timed."""
    assets = assets_dir()
    if assets is None:
        raise SystemExit("this report needs the data files; see MEDYATE_ASSETS in the README")
    bundle = load_data(f"tar:{assets / 'datasets' / 'sign_digits.tar'}", ZOO_PREPROCESSING)

    def batches(epoch: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return make_loader(bundle.train, BATCH_SIZE, shuffle=True, seed=0, epoch=epoch, drop_last=True, workers=0)

    def measure(**options: int) -> Ranked:
        began = time.perf_counter()
        importance = rank(
            subject,
            batches,
            steps_per_epoch=len(bundle.train) // BATCH_SIZE,  # type: ignore[arg-type]
            warm_head_epochs=HEAD_EPOCHS,
            recipe=Recipe(epochs=HEAD_EPOCHS, lr=0.02, clip=5.0, seed=0),
            **options,
        )
        return Ranked(importance=importance, seconds=time.perf_counter() - began)

    return measure


def row(subject: Subject, found: Ranked, same: Ranked, epoch: Ranked, budget_bytes: int) -> str:
    """One budget."""
    facts, names = found.importance.facts, layers_of(subject)
    within = [name for name in names if name not in facts["beyond_budget"]]
    parts = [
        cells(subject, found.importance, same.importance, names),
        cells(subject, found.importance, same.importance, within),
        cells(subject, found.importance, epoch.importance, within),
    ]
    error = max(
        np.linalg.norm(found.importance.energy[name] - same.importance.energy[name])
        / np.linalg.norm(same.importance.energy[name])
        for name in within
    )
    value = planned_value(subject, found.importance, epoch.importance, budget_bytes)
    best = planned_value(subject, epoch.importance, epoch.importance, budget_bytes)
    assert facts["measured_training_bytes"] <= budget_bytes
    return (
        f"{budget_bytes:>12,} {facts['measured_training_bytes']:>12,} {facts['rounds']:>6} {found.seconds:>8.1f} "
        f"{len(within):>4}/{len(names):<3}   {'   '.join(parts)}   {error:>8.1e} "
        + (f"{value / best:>7.2%}" if value is not None and best else f"{'none':>7}")
    )


def layers_of(subject: Subject) -> list[str]:
    """All but the head, as `medyate rank` ranks them."""
    return [layer.name for layer in subject.graph.layers if layer.name not in subject.graph.head]


def cells(subject: Subject, found: Importance, other: Importance, names: list[str]) -> str:
    """Spearman's correlation by each metric."""
    costs = {name: subject.memory.costs[name].update_bytes for name in names}
    columns = []
    for metric in METRICS:
        mine, theirs = (
            {entry.name: entry.score for entry in rank_layers(importance, metric, costs)}
            for importance in (found, other)
        )
        columns.append(f"{spearman([mine[name] for name in names], [theirs[name] for name in names]):>6.3f}")
    return " ".join(columns)


def planned_value(subject: Subject, importance: Importance, judge: Importance, budget_bytes: int) -> float | None:
    """What the optimal plan made from `importance` is worth by `judge`; None if no plan fits."""
    request = PlanRequest(
        memory=subject.memory, importance=importance, objective="norm", metric="raw", budget_bytes=budget_bytes
    )
    try:
        decision = STRATEGIES["optimal"](request)
    except InfeasibleBudgetError:
        return None
    return replace(request, importance=judge).value(decision.updates)


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; ties have their mean rank."""
    return float(np.corrcoef(mean_ranks(a), mean_ranks(b))[0, 1])


def mean_ranks(values: list[float]) -> NDArray[np.float64]:
    """Rank of each number, counted from 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


if __name__ == "__main__":
    main()
