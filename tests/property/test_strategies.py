"""The published strategies under random side constraints, against every possible plan, priced by the simulation."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from enumeration import SCOPES, Problem, random_problem

from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.memory.model import Updates
from medyate_planner.planning.request import PlanRequest, StrategySettings
from medyate_planner.planning.strategies import STRATEGIES

ANY_CHANNEL = ("paca", "random", "rgn")
ANY_UNIT = ("greedy", "evolutionary")
POOLS = ("trady-static", "trady", "medyate", "lara-trady", "lara-medyate")
NO_CHOICE = ("full", "head-only", "last-k", "bias-only")
TOLD = StrategySettings(intervals=2, population=6, generations=3)


def check(problem: Problem, request: PlanRequest, updates: Updates) -> None:
    """These updates keep the budget and every constraint."""
    quotas, biases = updates.quotas, updates.biases
    assert updates.full == problem.head
    assert problem.price(quotas, biases) <= problem.sides.limit(request.budget_bytes)
    offers = {offer.unit.name: offer for offer in problem.offers}
    assert all(n in offers[name].quotas and n > 0 for name, n in quotas.items())
    assert all(offers[name].bias for name in biases)
    assert problem.sides.max_layers is None or len(quotas) <= problem.sides.max_layers
    assert problem.sides.max_flops is None or problem.flops(quotas, biases) <= problem.sides.max_flops
    assert problem.forced <= quotas.keys()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", range(25))
def test_every_strategy_keeps_every_demand_or_states_the_true_minimum(scope: str, seed: int) -> None:
    dice = Random(seed)
    problem = random_problem(dice, scope, most_options=300)
    request = problem.request(1, settings=TOLD)
    some_budgets = [dice.choice(problem.options).price for _ in range(2)] if problem.options else []
    for name in (*ANY_CHANNEL, *ANY_UNIT, *POOLS, *NO_CHOICE):
        strategy = STRATEGIES[name]
        with pytest.raises((InfeasibleBudgetError, InputError)) as caught:
            strategy(request)
        possible = [o for o in problem.options if name in ANY_UNIT or (o.quotas and not o.biases)]
        if not isinstance(caught.value, InfeasibleBudgetError):
            assert name in (*POOLS, *NO_CHOICE) or not possible, caught.value
            continue
        smallest = caught.value.minimum_bytes
        if name in (*ANY_CHANNEL, *ANY_UNIT):
            assert smallest == problem.sides.budget_for(min(o.price for o in possible))
        with pytest.raises(InfeasibleBudgetError) as caught:
            strategy(replace(request, budget_bytes=smallest - 1))
        assert caught.value.minimum_bytes == smallest
        for budget in (smallest, *(problem.sides.budget_for(b) for b in some_budgets), 10**9):
            if budget >= smallest:
                asked = replace(request, budget_bytes=budget)
                decision = strategy(asked)
                for updates in decision.all_updates:
                    assert updates.quotas or updates.biases or name == "head-only"
                    check(problem, asked, updates)
