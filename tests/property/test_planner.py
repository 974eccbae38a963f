"""The integer program against brute force: every possible plan, priced by the tests' own simulation of a step."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from builders import channels_of, random_case, random_importance
from enumeration import SCOPES, TOLERANCE, Problem, Sides, random_problem
from simulation import bias_bytes, simulate

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.planning import solve
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
        objective=dice.choice(["norm", "energy"]),
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
        objective=dice.choice(["norm", "energy"]),
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
    assert head_only(problem.request(needed)).updates.layers == set(case.graph.head)
    with pytest.raises(InfeasibleBudgetError) as caught:
        head_only(problem.request(needed - 1))
    assert caught.value.minimum_bytes == needed
