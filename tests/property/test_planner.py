"""The integer program against brute force: every possible plan, priced by the tests' own simulation of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from builders import Case, Sketch, channels_of, random_case, random_importance
from enumeration import SCOPES, TOLERANCE, Problem, Sides, random_problem
from simulation import bias_bytes, simulate

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.graph import MeasuredKeep
from medyate_planner.memory.model import LossCost
from medyate_planner.memory.rules import Keep
from medyate_planner.planning import solve
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import full, head_only, optimal

CASES = range(200)
FEWER = range(60)


@pytest.fixture(autouse=True, scope="module")
def _no_second_chance() -> Iterator[None]:
    """The program never undercounts: its first plan must fit, so `solve` gets no retry with a tighter budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "_TIGHTENINGS", 1)
        yield


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", CASES)
def test_optimal_equals_brute_force(scope: str, seed: int) -> None:
    dice = Random(f"{scope} {seed}")
    problem = random_problem(dice, scope)
    if not problem.options:
        with pytest.raises(ContradictionError if problem.offers else InputError):
            optimal(problem.request(10**9))
        return
    prices = sorted({option.price for option in problem.options})
    price = dice.choice(prices) + dice.choice([0, 0, 1, 3, 10**6])
    check_optimum(problem, problem.sides.budget_for(price))


def check_optimum(problem: Problem, budget: int) -> None:
    """The plan is as good as the best of all options under this budget."""
    decision = optimal(problem.request(budget))
    worth = problem.check(decision, budget)
    limit = problem.sides.limit(budget)
    best = max(option.worth for option in problem.options if option.price <= limit)
    scale = max(option.worth for option in problem.options)
    assert worth == pytest.approx(best, abs=TOLERANCE * scale + 1e-12)
    assert decision.strategy == "optimal"
    if limit > min(option.price for option in problem.options):
        # at the smallest budget to the byte, the solver may leave the proof out
        assert decision.status == "optimal"
        assert decision.gap_ratio <= 1e-5
        assert decision.bound is not None
        assert decision.bound >= best - TOLERANCE * scale


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", CASES)
def test_optimal_states_the_smallest_budget(scope: str, seed: int) -> None:
    problem = random_problem(Random(f"{scope} smallest {seed}"), scope)
    if not problem.options:
        return
    smallest = problem.sides.budget_for(min(option.price for option in problem.options))
    problem.check(optimal(problem.request(smallest)), smallest)
    for budget in [smallest - 1, smallest // 2] if smallest > 3 else []:
        with pytest.raises(InfeasibleBudgetError) as caught:
            optimal(problem.request(budget))
        error = caught.value
        assert error.minimum_bytes == smallest
        assert error.budget_bytes == budget
        assert error.scope == scope
        assert error.exit_code == 3
        assert f"--budget {budget}B" in error.demands
        assert error.to_dict()["demands"] == list(error.demands)
        assert f"{smallest}B" in error.message
        assert "\n" not in error.message


def large_problem(dice: Random, sides: Sides) -> tuple[Problem, int, int]:
    """With the prices of the cheapest unit and of everything."""
    case = random_case(dice.getrandbits(32), max_layers=6, max_channels=24, max_plans=10**9)
    problem = Problem(case, random_importance(case.graph, dice.getrandbits(32)), sides)
    offers = problem.offers
    prices = [problem.price({o.unit.name: 1}, frozenset()) for o in offers if len(o.quotas) > 1]
    prices += [problem.price({}, frozenset({o.unit.name})) for o in offers if o.bias]
    return problem, min(prices), price_of_everything(problem)


def price_of_everything(problem: Problem) -> int:
    quotas = {offer.unit.name: offer.quotas[-1] for offer in problem.offers if len(offer.quotas) > 1}
    return problem.price(quotas, frozenset(offer.unit.name for offer in problem.offers if offer.bias))


@pytest.mark.parametrize("seed", FEWER)
def test_optimal_is_never_worse_with_more_budget(seed: int) -> None:
    dice = Random(seed)
    sides = Sides(
        scope=dice.choice(SCOPES),
        curve=dice.choice(["uniform", "weighted", "top"]),
        objective=dice.choice(["projection", "norm", "energy"]),
        buy_norm_scales=dice.random() < 0.5,
    )
    problem, low, limit = large_problem(dice, sides)
    budgets = sorted({low, low + 1, *(low + (limit - low) * i // 3 for i in range(1, 4)), 2 * limit})
    before = -1.0
    for budget in budgets:
        decision = optimal(problem.request(budget))
        assert problem.price(decision.updates.quotas, decision.updates.biases) <= budget
        worth = decision.facts.get("interpolated_objective", 0.0)
        assert worth >= before - TOLERANCE * abs(worth)
        before = worth


@pytest.mark.parametrize("seed", FEWER)
def test_optimal_is_never_below_greedy(seed: int) -> None:
    dice = Random(seed)
    sides = Sides(
        scope=dice.choice(SCOPES),
        objective=dice.choice(["projection", "norm", "energy"]),
        buy_norm_scales=dice.random() < 0.5,
    )
    problem, low, limit = large_problem(dice, sides)
    budget = low + dice.randint(0, 100) * (limit - low) // 100
    decision = optimal(problem.request(budget))
    quotas, biases = greedy(problem, budget)
    if budget == low:  # the fallback without a solver buys one unit; greedy may have found a better one
        return
    by_greedy = problem.worth(quotas, biases, exact=False)
    assert decision.facts["interpolated_objective"] >= by_greedy * (1 - TOLERANCE) - 1e-12


def greedy(problem: Problem, budget: int) -> tuple[dict[str, int], frozenset[str]]:
    """Add the unit with the most value per byte of its own, as long as one fits."""
    units = {offer.unit.name: offer for offer in problem.offers}
    values = {name: problem.worth_of_channels(o.unit) for name, o in units.items() if len(o.quotas) > 1}
    quotas: dict[str, int] = {}
    biases: frozenset[str] = frozenset()

    def bytes_of(quotas: dict[str, int], biases: frozenset[str]) -> int:
        return simulate(problem.graph, quotas, biases, problem.head, problem.case.loss).update

    while True:
        offers: list[tuple[float, dict[str, int], frozenset[str]]] = []
        here = bytes_of(quotas, biases)
        for name, offer in units.items():
            n = quotas.get(name, 0)
            if n < offer.quotas[-1]:
                new = {**quotas, name: n + 1}
                gain = values[name][n + 1] - values[name][n]
                offers.append((gain / (bytes_of(new, biases) - here), new, biases))
            if offer.bias and name not in biases:
                offers.append((problem.worth_of_bias(name) / bias_bytes(offer.unit), quotas, biases | {name}))
        for _, more, more_biases in sorted(offers, key=lambda offer: -offer[0]):
            if problem.price(more, more_biases) <= budget:
                quotas, biases = more, more_biases
                break
        else:
            return quotas, biases


@pytest.mark.parametrize("seed", FEWER)
def test_optimal_with_a_gap_stays_within_it(seed: int) -> None:
    dice = Random(seed)
    problem, low, limit = large_problem(dice, Sides(scope=dice.choice(SCOPES)))
    budget = low + 1 + dice.randint(0, 100) * (limit - low) // 100
    exact = optimal(problem.request(budget))
    loose = optimal(problem.request(budget, gap_ratio=0.05))
    assert problem.price(loose.updates.quotas, loose.updates.biases) <= budget
    best, found = exact.facts["interpolated_objective"], loose.facts["interpolated_objective"]
    assert found >= best * (0.95 - TOLERANCE)
    assert found <= best * (1 + TOLERANCE)
    assert loose.status == "optimal"
    assert loose.gap_ratio <= 0.05
    assert (loose.bound or 0.0) >= best * (1 - TOLERANCE)


@pytest.mark.parametrize("seed", FEWER)
def test_full_and_head_only_state_what_they_need(seed: int) -> None:
    dice = Random(seed)
    sides = Sides(scope=dice.choice(SCOPES), margin_ratio=dice.choice([0.0, 0.3]), buy_norm_scales=True)
    problem, _, everything = large_problem(dice, sides)
    needed = problem.sides.budget_for(everything)
    decision = full(problem.request(needed))
    assert decision.updates.quotas == {o.unit.name: channels_of(o.unit) for o in problem.offers if len(o.quotas) > 1}
    assert decision.updates.biases == {offer.unit.name for offer in problem.offers if offer.bias}
    with pytest.raises(InfeasibleBudgetError) as caught:
        full(problem.request(needed - 1))
    assert caught.value.minimum_bytes == needed
    if not problem.graph.head:
        with pytest.raises(InputError, match="needs a head"):
            head_only(problem.request(needed))
        return
    needed = problem.sides.budget_for(problem.price({}, frozenset()))
    assert head_only(problem.request(needed)).updates.layers == set(problem.graph.head)
    with pytest.raises(InfeasibleBudgetError) as caught:
        head_only(problem.request(needed - 1))
    assert caught.value.minimum_bytes == needed


# Corners


def chain() -> Case:
    """Two convolutions with a relu between them, and a head."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(4, 2, 2), 4, name="a", bias=True)
    x = sketch.conv(sketch.unary("relu", x), 4, name="b", bias=True)
    out = sketch.linear(sketch.pooled(x), 3, name="head", bias=True)
    return Case(sketch.build([out], head=["head"]), (), LossCost(forward_bytes=30, backward_bytes=50))


def twice() -> Case:
    """One weight with a bias at two sites, nothing else that needs room at the second."""
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(3, 1, 1), 3, name="a", bias=True)
    x = sketch.conv(sketch.conv(x, 3, name="a"), 2, name="b", bias=True)
    return Case(sketch.build([x]), ())


def shared_with_the_loss() -> Case:
    """The loss reads what the last sigmoid keeps."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 2, 2), 3, name="a", bias=True)
    x = sketch.unary("keeps_output", sketch.conv(x, 3, name="b"))
    number = sketch.values[x].storage
    return Case(sketch.build([x]), (Keep(f"storage/{number}", sketch.storages[number].nbytes), Keep("loss/p", 8)))


def statistic_of_two() -> Case:
    """An operator that keeps one and the same large thing for either of its two sources."""
    sketch = Sketch(batch=1)
    x = sketch.input(2, 1, 1)
    branches = [sketch.conv(x, 2, name="a", bias=True), sketch.conv(x, 2, name="b", bias=True)]
    keep = MeasuredKeep(storage=None, nbytes=100, label="0")
    return Case(sketch.build([sketch.measured(branches, [[keep], [keep]])]), ())


def norms_around_a_residual() -> Case:
    """A BatchNorm at two sites, a GroupNorm in the branch, and a view of a gradient that goes both ways."""
    sketch = Sketch(batch=2)
    x = sketch.norm(sketch.conv(sketch.input(2, 2, 2), 2, name="a"), name="n")
    y = sketch.norm(sketch.unary("relu", sketch.norm(x, groups=1, bias=False)), name="n")
    return Case(sketch.build([sketch.add(x, y)]), (), LossCost(target_bytes=8, forward_bytes=90, backward_bytes=10))


@pytest.mark.parametrize("make", [chain, twice, shared_with_the_loss, statistic_of_two, norms_around_a_residual])
@pytest.mark.parametrize("scope", SCOPES)
def test_optimal_equals_brute_force_at_every_budget(make: Callable[[], Case], scope: str) -> None:
    case = make()
    for seed in range(2):
        problem = Problem(case, random_importance(case.graph, seed), Sides(scope=scope, buy_norm_scales=True))
        for price in sorted({option.price for option in problem.options}):
            check_optimum(problem, price)


def chain_request(*, biases: bool = True, **options: Any) -> PlanRequest:
    case = chain()
    sides = Sides(scope=options.pop("scope", "training"), buy_biases=biases)
    return Problem(case, random_importance(case.graph, 0), sides).request(10**6, **options)


@pytest.mark.parametrize("scope", SCOPES)
def test_optimal_with_everything_affordable_buys_everything(scope: str) -> None:
    decision = optimal(chain_request(scope=scope))
    assert decision.updates.quotas == {"a": 4, "b": 4}
    assert decision.updates.biases == {"a", "b"}
    assert decision.updates.full == {"head"}


@pytest.mark.parametrize("scope", SCOPES)
def test_optimal_without_importance_of_anything_still_plans(scope: str) -> None:
    request = chain_request(scope=scope, biases=False)
    nothing = replace(request.importance, energy={"a": np.zeros(4), "b": np.zeros(4), "head": np.zeros(4)})
    assert optimal(replace(request, importance=nothing)).updates.quotas


def test_update_scope_counts_only_sites_that_the_loss_sees() -> None:
    sketch = Sketch(batch=2)
    x = sketch.input(2, 2, 2)
    out = sketch.conv(x, 2, name="shared")
    sketch.conv(x, 2, name="shared")  # its output is read by nothing differentiable
    case = Case(sketch.build([out]), ())
    importance = replace(random_importance(case.graph, 0), energy={"shared": np.ones(2)})
    needed = simulate(case.graph, {"shared": 2}).update
    assert optimal(Problem(case, importance, Sides(scope="update")).request(needed)).updates.quotas == {"shared": 2}
