"""The integer program in update mode `optimizer`, against brute force over every possible plan.

Plans are priced by the closed form, which tests/reality and test_random_plans.py hold against real steps.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from enumeration import SCOPES, TOLERANCE, random_problem

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.memory.mode import UpdateMode
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import optimal


def random_mode(dice: Random) -> UpdateMode:
    optimizer = dice.choice(["sgd", "momentum", "adam", "adamw"])
    return UpdateMode(update="optimizer", optimizer=optimizer, accumulation=dice.choice([1, 1, 4]))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", range(80))
def test_optimal_equals_brute_force_in_mode_optimizer(scope: str, seed: int) -> None:
    dice = Random(f"optimizer {scope} {seed}")
    problem = random_problem(dice, scope, most_options=600)
    memory = problem.request(1).memory.under(random_mode(dice))

    def request(budget_bytes: int) -> PlanRequest:
        return replace(problem.request(budget_bytes), memory=memory)

    if not problem.options:
        with pytest.raises(ContradictionError if problem.offers else InputError):
            optimal(request(10**9))
        return
    asked = request(10**9)
    priced = [(scope_bytes(asked, asked.updates(o.quotas, o.biases)), o.worth) for o in problem.options]
    cheapest = min(price for price, _ in priced)
    with pytest.raises(InfeasibleBudgetError) as refused:
        optimal(request(problem.sides.budget_for(cheapest) - 1))
    assert refused.value.facts["minimum_bytes"] == problem.sides.budget_for(cheapest)

    budget = problem.sides.budget_for(dice.choice(sorted({price for price, _ in priced})) + dice.choice([0, 0, 1, 3]))
    decision = optimal(request(budget))
    assert scope_bytes(asked, decision.updates) <= problem.sides.limit(budget)
    best = max(worth for price, worth in priced if price <= problem.sides.limit(budget))
    found = problem.worth(decision.updates.quotas, decision.updates.biases, exact=False)
    assert found == pytest.approx(best, abs=TOLERANCE * max(worth for _, worth in priced) + 1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_mode_optimizer_costs_at_least_what_mode_fused_does(seed: int) -> None:
    dice = Random(f"dearer {seed}")
    problem = random_problem(dice, "training", most_options=100)
    fused, mode = problem.request(10**9), random_mode(dice)
    other = replace(fused, memory=fused.memory.under(mode))
    for option in problem.options[:50]:
        updates = fused.updates(option.quotas, option.biases)
        assert scope_bytes(other, updates) >= scope_bytes(fused, updates)
