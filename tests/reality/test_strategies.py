"""The published strategies on real networks: budgets, true minima, published schemes, draws that a session repeats."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_importance
from networks import ZOO, subject

from medyate_planner import Plan, plan
from medyate_planner.api import open_session, planned_draws
from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.accounting import convolutions, read_scheme
from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.filling import Ordering, channels_of, fill
from medyate_planner.planning.pools import best_layers
from medyate_planner.planning.recompute import fits, scope_bytes
from medyate_planner.planning.request import PlanRequest, StrategySettings
from medyate_planner.planning.strategies import STRATEGIES
from medyate_planner.training.measure import measure_step

NETWORK = "mcunet-5fps"
PUBLISHED = json.loads(
    (Path(__file__).parents[2] / "reports" / "sparse_update_schemes.json").read_text(encoding="utf-8")
)
SCHEMES = [(network, label) for network in ZOO for label in PUBLISHED[network]]
BINDING = 512_000
QUICK = {"intervals": 3, "population": 6, "generations": 4}
ORDERINGS = {
    "paca": (None, Ordering(method="static")),
    "random": (None, Ordering(method="uniform")),
    "trady-static": ("rgn", Ordering(method="static")),
    "trady": ("rgn", Ordering(method="uniform")),
    "rgn": (None, Ordering(method="top", metric="rgn")),
    "medyate": ("rgn", Ordering(method="weighted", metric="rgn")),
    "lara-trady": ("lara", Ordering(method="uniform")),
    "lara-medyate": ("lara", Ordering(method="weighted", metric="rgn")),
}
ANEW = ("random", "trady", "medyate", "lara-trady", "lara-medyate")
pytestmark = pytest.mark.assets


@lru_cache(maxsize=1)
def importance() -> Importance:
    return random_importance(subject(NETWORK, 8).graph, 0)


def told(**more: Any) -> StrategySettings:
    scheme = read_scheme(PUBLISHED[NETWORK]["49kb"], subject(NETWORK, 8).graph)
    return StrategySettings(**{**QUICK, "scheme": scheme, **more})


def request(budget: int, **options: Any) -> PlanRequest:
    made = subject(NETWORK, 8)
    return PlanRequest(
        memory=made.memory, importance=importance(), budget_bytes=budget, **{"settings": told(), **options}
    )


def planned(name: str, budget: int, **options: Any) -> Plan:
    return plan(
        subject(NETWORK, 8), budget=budget, importance=importance(), strategy=name,
        request={"settings": told(), "seed": 3, **options},
    )  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_three_budgets_and_states_the_true_minimum(name: str) -> None:
    strategy = STRATEGIES[name]
    with pytest.raises(InfeasibleBudgetError) as caught:
        strategy(request(1))
    smallest = caught.value.minimum_bytes
    for budget in (smallest, max(smallest, BINDING), 10**9):
        asked = request(budget)
        for updates in strategy(asked).all_updates:
            assert fits(asked, updates)
            assert footprint(asked.memory, updates).training_bytes <= budget
            assert updates.quotas or updates.biases or name == "head-only"
    with pytest.raises(InfeasibleBudgetError) as caught:
        strategy(request(smallest - 1))
    assert caught.value.minimum_bytes == smallest


@pytest.mark.parametrize("name", STRATEGIES)
def test_plans_of_every_strategy_are_certified_and_survive_the_file(name: str, tmp_path: Path) -> None:
    budget = {"full": 10**9, "last-k": 10**6, "sparse-update": 10**7}.get(name, BINDING)
    made = planned(name, budget)
    assert Plan.load(made.save(tmp_path / "plan.json")) == made
    assert made.strategy == name
    intervals = range(QUICK["intervals"]) if name in ANEW else range(1)
    figures = [footprint(subject(NETWORK, 8).memory, made.updates(i)) for i in intervals]
    assert made.predicted.training_bytes == max(f.training_bytes for f in figures) <= budget
    if name in ORDERINGS:
        check_draws(name, made)


def check_draws(name: str, made: Plan) -> None:
    """The plan's draws are the strategy's, channel by channel, and the budget is full."""
    metric, ordering = ORDERINGS[name]
    asked = request(made.budget_bytes, seed=3)
    layers = best_layers(asked, metric) if metric else asked.layers
    drawn = planned_draws(made, importance())
    for interval in range(QUICK["intervals"]):
        quotas = fill(asked, layers, ordering, interval=interval if name in ANEW else 0)
        assert drawn(interval) == channels_of(asked, quotas, ordering, interval=interval)
        assert 0.99 * made.budget_bytes < scope_bytes(asked, made.updates(interval)) <= made.budget_bytes
    assert (drawn(0) == drawn(1)) == (name not in ANEW)


@pytest.mark.parametrize("scope", ["update", "peak"])
def test_pool_plans_hold_in_other_scopes(scope: str) -> None:
    budget = {"update": 200_000, "peak": 12_000_000}[scope]
    made = planned("trady", budget, scope=scope, weights_in="flash" if scope == "peak" else "ram")
    assert made.used_bytes <= budget
    assert made.sampling.draws is not None
    assert len(made.sampling.draws) == 3


@pytest.mark.parametrize("name", ["trady", "medyate"])
def test_a_session_trains_each_interval_in_what_was_predicted(name: str) -> None:
    made, decided = subject(NETWORK, 8), planned(name, BINDING)
    (x,), _ = made.traced.examples(8, seed=1)
    target = torch.arange(8) % 10
    assert decided.quotas(0) != decided.quotas(1)
    before = {key: tensor.clone() for key, tensor in made.model.state_dict().items()}
    try:
        with open_session(made, decided, importance()) as session:
            session.set_lr(0.01, clip=5.0)
            for interval in (0, 1):
                drawn = session.resample(interval)
                assert drawn == planned_draws(decided, importance())(interval)
                assert {key: len(channels) for key, channels in drawn.items()} == decided.quotas(interval)
                measured = measure_step(session, (x,), {}, target, made.loss.function)
                expected = footprint(made.memory, decided.updates(interval))
                for figure in ("training_bytes", "saved_bytes", "selected_bytes", "index_bytes", "update_bytes"):
                    assert getattr(measured, figure) == getattr(expected, figure), (interval, figure)
                assert measured.training_bytes <= BINDING
    finally:
        made.model.load_state_dict(before)


@pytest.mark.parametrize(("network", "label"), SCHEMES)
def test_published_schemes_become_plans(network: str, label: str) -> None:
    made = subject(network, 2)
    published = PUBLISHED[network][label]
    settings = StrategySettings(scheme=read_scheme(published, made.graph))
    decided = plan(made, budget=10**9, strategy="sparse-update", request={"settings": settings})
    assert decided.predicted.sparse_update_bytes is not None
    assert f"{decided.predicted.sparse_update_bytes // 1024}kb" == label
    known = convolutions(made.graph)
    assert set(decided.biases) == {layer.name for layer in known[len(known) - published["n_bias"] :]}
    chosen = planned_draws(decided)(0)
    expected = {}
    for index, ratio in published["weights"].items():
        layer = known[int(index)]
        weight = made.model.get_parameter(layer.weight).detach().double().numpy()
        axes = (1, 2, 3) if layer.groups > 1 else (0, 2, 3)
        order = np.argsort(-np.sqrt((weight**2).sum(axis=axes)), kind="stable")
        if count := int(layer.channels * Fraction(str(ratio))):
            expected[layer.name] = sorted(order[:count].tolist())
    assert chosen == expected
    assert Plan.from_dict(json.loads(decided.to_json())) == decided


def test_searches_do_not_beat_the_optimum() -> None:
    asked = request(BINDING)
    worth = {n: asked.interpolated_value(STRATEGIES[n](asked).updates) for n in ("optimal", "greedy", "evolutionary")}
    assert 0.8 * worth["optimal"] < worth["greedy"] <= worth["optimal"] * 1.001
    assert worth["evolutionary"] <= worth["optimal"] * 1.001
    longer = replace(asked, settings=told(population=24, generations=40))
    assert asked.interpolated_value(STRATEGIES["evolutionary"](longer).updates) > 0.6 * worth["optimal"]
