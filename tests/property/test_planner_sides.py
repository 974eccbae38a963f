"""Requests that can not be met, and how the program is solved: contradictions, the .lp file, solvers, time limits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import highspy
import pulp
import pytest
from builders import Case, Sketch, channels_of, random_case, random_importance
from enumeration import SCOPES, TOLERANCE, Option, Problem, Sides, random_problem

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.planning.demands import smallest_conflict
from medyate_planner.planning.strategies import optimal

# Contradictions


class Demands:
    """What a request insists on, each with what the request is without it; decided by looking at every plan."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem, self.budget = problem, budget
        sides = problem.sides
        self.without: dict[str, dict[str, Any]] = {f"--budget {budget}B": {}}
        if sides.margin_ratio:
            self.without[f"--margin {sides.margin_ratio:g}"] = {"margin_ratio": 0.0}
        if problem.head:
            self.without["training the head in full"] = {"head_mode": "channels"}
        if sides.scope == "peak" and sides.weights_in == "ram":
            self.without["--weights-in ram"] = {"weights_in": "flash"}
        self.without |= {f"--force-layer {name}": {} for name in sides.force_layers}
        for name, least in (("max_layers", None), ("min_quota", 1), ("granularity", 1), ("max_flops", None)):
            if getattr(sides, name) != least:
                self.without[f"--{name.replace('_', '-')} {getattr(sides, name)}"] = {name: least}
        if not sides.buy_biases:
            self.without["--no-biases"] = {"buy_biases": True}
        self._universes = {mode: self._universe(mode) for mode in ("full", "channels")}

    def _universe(self, mode: str) -> list[tuple[Option, int]]:
        """Every plan without any demand, with its operations."""
        free = {
            "granularity": 1,
            "min_quota": 1,
            "max_layers": None,
            "max_flops": None,
            "force_layers": (),
            "buy_biases": True,
        }
        problem = self.problem.with_sides(head_mode=mode, weights_in="ram", **free)
        return [(option, problem.flops(option.quotas, option.biases)) for option in problem.options]

    def can_be_met(self, kept: tuple[str, ...]) -> bool:
        """Whether there is a plan that meets these, whatever becomes of the others."""
        changes: dict[str, Any] = {}
        for text, change in self.without.items():
            changes |= change if text not in kept else {}
        forced = tuple(n for n in self.problem.sides.force_layers if f"--force-layer {n}" in kept)
        relaxed = self.problem.with_sides(**changes, force_layers=forced)
        sides, offers = relaxed.sides, {offer.unit.name: offer for offer in relaxed.offers}
        limit = sides.limit(self.budget) if f"--budget {self.budget}B" in kept else 10**18
        if sides.scope == "peak" and sides.weights_in == "flash":
            limit += relaxed.peak.weights
        return any(
            option.price <= limit
            and (sides.max_flops is None or flops <= sides.max_flops)
            and (sides.max_layers is None or len(option.quotas) <= sides.max_layers)
            and relaxed.forced <= option.quotas.keys()
            and all(name in offers and n in offers[name].quotas for name, n in option.quotas.items())
            and all(name in offers and offers[name].bias for name in option.biases)
            for option, flops in self._universes[sides.head_mode]
        )

    def smallest(self) -> int:
        """How few can contradict each other; 0 if all can be met."""
        counts = range(1, len(self.without) + 1)
        return next((k for k in counts if not all(map(self.can_be_met, combinations(self.without, k)))), 0)


def demanding(dice: Random, scope: str) -> tuple[Problem, int]:
    """A problem with many demands, and a budget; both may be too tight."""
    while True:  # until a case is found whose head by channels does not make too many plans
        case = random_case(dice.getrandbits(32), max_layers=3, max_plans=60)
        free = Sides(scope=scope, head_mode="channels", buy_norm_scales=True)
        if Problem(case, random_importance(case.graph, 0), free).size <= 500:
            break
    sizes = {unit.name: channels_of(unit) for unit in case.graph.units if unit.trainable and unit.name != "head"}
    granularity = dice.choice([1, 2, 3])
    enough = [name for name, size in sizes.items() if size >= granularity]
    sides = Sides(
        scope=scope,
        weights_in=dice.choice(["ram", "ram", "flash"]),
        margin_ratio=dice.choice([0.0, 0.1, 0.5]),
        buy_biases=dice.random() < 0.5,
        buy_norm_scales=True,
        max_layers=dice.choice([None, 1, 2]),
        granularity=granularity,
        min_quota=dice.choice([1, 2, 3]),
        force_layers=tuple(dice.sample(enough, k=min(len(enough), dice.randint(0, 3)))),
    )
    problem = Problem(case, random_importance(case.graph, 0), sides)
    everything = problem.with_sides(max_layers=None, force_layers=()).options
    flops = sorted({problem.flops(option.quotas, option.biases) for option in everything})
    if flops and dice.random() < 0.5:
        few = dice.choice(flops[: len(flops) // 3 + 1])
        problem = problem.with_sides(max_flops=max(1, few - dice.randint(0, 1)))
    prices = sorted(option.price for option in everything) or [1]
    return problem, max(1, dice.choice([prices[0] // 2, prices[0] - 1, prices[0], prices[len(prices) // 4], 10**9]))


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("scope", SCOPES)
def test_conflict_is_a_smallest_one(scope: str, seed: int) -> None:
    problem, budget = demanding(Random(f"{scope} {seed}"), scope)
    if not problem.offers:
        return
    request = problem.request(budget)
    demands = Demands(problem, budget)
    conflict = tuple(demand.text for demand in smallest_conflict(request))
    assert len(conflict) == demands.smallest()
    assert set(conflict) <= set(demands.without)
    if not conflict:
        problem.check(optimal(request), budget)
        return
    assert not demands.can_be_met(conflict)
    whatever_the_budget = tuple(text for text in demands.without if not text.startswith("--budget"))
    hopeless = not demands.can_be_met(whatever_the_budget)
    with pytest.raises(ContradictionError if hopeless else InfeasibleBudgetError) as caught:
        optimal(request)
    error = caught.value
    assert error.exit_code == (2 if hopeless else 3)
    assert error.demands == conflict
    assert error.facts["demands"] == list(conflict)
    assert "\n" not in error.message
    for text in conflict if hopeless else conflict[1:]:
        assert text in error.message
    if not hopeless:
        assert error.minimum_bytes == problem.sides.budget_for(min(option.price for option in problem.options))


def lonely(*, frozen: bool) -> Case:
    """A layer that is for sale if it is forced at the latest, and a head."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(4, 2, 2), 4, name="a")
    if frozen:
        sketch.layers["a"]["trainable"] = False
    return Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=["head"]), ())


def error_of(case: Case, budget: int, **sides: Any) -> Any:
    problem = Problem(case, random_importance(case.graph, 0), Sides(scope="training", buy_biases=False, **sides))
    with pytest.raises((InfeasibleBudgetError, InputError)) as caught:
        optimal(problem.request(budget))
    return caught.value


def test_conflict_of_a_frozen_layer_that_is_forced_does_not_blame_the_granularity() -> None:
    error = error_of(lonely(frozen=True), 100, force_layers=("a",), granularity=2)
    assert isinstance(error, InfeasibleBudgetError)
    assert "--budget 100B" in error.demands


def test_contradiction_does_not_blame_the_budget() -> None:
    error = error_of(lonely(frozen=True), 10**9, force_layers=("a",), max_flops=1)
    assert isinstance(error, ContradictionError)
    assert "--max-flops 1" in error.demands
    assert not any(demand.startswith("--budget") for demand in error.demands)


@pytest.mark.parametrize("sides", [{"granularity": 4}, {"forbid_layers": ("head",)}])
def test_conflict_with_a_pattern_that_matches_a_head_not_for_sale(sides: dict[str, Any]) -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(4, 2, 2), 2, name="a")
    case = Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=["head"]), ())
    error = error_of(case, 10, force_layers=("*",), **sides)
    assert isinstance(error, InfeasibleBudgetError)
    assert "--budget 10B" in error.demands


def test_conflict_with_a_forced_head_that_is_trained_in_full_anyway() -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(4, 2, 2), 2, name="a")
    case = Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=["head"]), ())
    error = error_of(case, 10, force_layers=("a", "head"), max_layers=1)
    assert isinstance(error, InfeasibleBudgetError)
    assert error.demands == ("--budget 10B",)
    problem = Problem(case, random_importance(case.graph, 0), Sides("training", buy_biases=False))
    request = problem.request(error.minimum_bytes - 1, force_layers=("a", "head"), max_layers=1)
    assert "--max-layers 1" not in [demand.text for demand in smallest_conflict(request)]


def test_optimal_with_all_layers_forbidden_says_so() -> None:
    error = error_of(lonely(frozen=False), 10**6, forbid_layers=("*",))
    assert "nothing to plan" in error.message


def test_optimal_never_breaks_max_layers_for_forced_layers() -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.conv(sketch.input(4, 2, 2), 2, name="a"), 2, name="b")
    error = error_of(Case(sketch.build([x]), ()), 10**6, force_layers=("a", "b"), max_layers=1)
    assert isinstance(error, ContradictionError)
    assert error.demands == ("--force-layer a", "--force-layer b", "--max-layers 1")
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "ram"}, "--scope 'ram' is unknown"),
        ({"weights_in": "rom"}, "--weights-in 'rom' is unknown"),
        ({"metric": "tradi"}, "--metric 'tradi' is unknown"),
        ({"head_mode": "none"}, "head 'none' is unknown"),
        ({"granularity": 0}, "--granularity: expected 1 or more"),
        ({"max_layers": 0}, "--max-layers: expected 1 or more"),
        ({"min_quota": 0}, "--min-quota: expected 1 or more"),
        ({"max_quota": 0}, "--max-quota: expected 1 or more"),
        ({"max_flops": 0}, "--max-flops: expected 1 or more"),
        ({"max_quota": 2, "min_quota": 3}, "--max-quota 2 is below --min-quota 3"),
        ({"max_quota": 2, "granularity": 3}, "--granularity 3"),
        ({"margin_ratio": -0.1}, "--margin: expected 0 or more"),
        ({"margin_ratio": float("nan")}, "--margin: expected 0 or more"),
        ({"gap_ratio": float("inf")}, "--gap: expected 0 or more"),
        ({"time_limit_seconds": 0.0}, "--time-limit: expected more than 0"),
        ({"force_layers": ("nothing*",)}, "'nothing*' matches no layer"),
        ({"forbid_layers": ("c",)}, "'c' matches no layer"),
        ({"force_layers": ("a",), "forbid_layers": ("*",)}, "--force-layer a and --forbid-layer * together"),
        ({"force_layers": ("a",), "granularity": 5}, "--force-layer a and --granularity 5 together"),
    ],
)
def test_request_refuses_unusable_constraints(options: dict[str, Any], text: str) -> None:
    case = lonely(frozen=False)
    with pytest.raises(InputError) as caught:
        Problem(case, random_importance(case.graph, 0), Sides(scope="training")).request(10**6, **options)
    assert text in caught.value.message
    assert "\n" not in caught.value.message


# Solvers


@pytest.fixture(params=SCOPES)
def some(request: pytest.FixtureRequest) -> list[tuple[Problem, int]]:
    """A dozen problems with a binding budget."""
    found: list[tuple[Problem, int]] = []
    for seed in range(40):
        dice = Random(f"{request.param} some {seed}")
        problem = random_problem(dice, request.param)
        if problem.options and len(found) < 12:
            prices = sorted(option.price for option in problem.options)
            found.append((problem, problem.sides.budget_for(prices[len(prices) // 2])))
    return found


def test_optimal_decides_the_same_again(some: list[tuple[Problem, int]]) -> None:
    for problem, budget in some:
        once = optimal(problem.request(budget))
        assert optimal(problem.request(budget)) == once
        assert optimal(replace(problem.request(budget + 1), budget_bytes=budget)) == once


def test_optimal_writes_a_program_that_others_can_read_and_solve(
    some: list[tuple[Problem, int]], tmp_path: Path
) -> None:
    for number, (problem, budget) in enumerate(some):
        path = tmp_path / f"{number}.lp"
        request = problem.request(budget, lp_file=path)
        decision = optimal(request)
        names = re.findall(r"^([A-Za-z_]\w*): ", path.read_text().split("Subject To")[1], re.MULTILINE)
        assert len(names) == len(set(names)) > 2
        known = [re.escape(op.name) for op in problem.graph.ops] + [re.escape(u.name) for u in problem.graph.units]
        readable = re.compile(rf"\w*({'|'.join(known)}|something|max_layers|max_flops|upkeep|loss|update|forward)\w*")
        assert all(readable.fullmatch(name) for name in names), [n for n in names if not readable.fullmatch(n)]
        solver = highspy.Highs()
        solver.silent()
        assert solver.readModel(str(path)) != highspy.HighsStatus.kError
        solver.setOptionValue("mip_rel_gap", 0.0)
        solver.run()
        assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        values = [curve.values[-1] for curve in request.curves.values()] + list(request.bias_values.values())
        best = decision.facts["interpolated_objective"]
        scale = max(values) or 1.0  # the program's objective is relative to the largest value
        assert solver.getInfo().objective_function_value * scale == pytest.approx(best, rel=1e-5, abs=1e-5 * scale)


@pytest.fixture
def without_highs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not pulp.PULP_CBC_CMD(msg=False).available():
        pytest.skip("PuLP has no CBC on this machine")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "highspy", None)
        yield


@pytest.mark.usefixtures("without_highs")
@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD is deprecated")
def test_optimal_by_cbc_equals_brute_force(some: list[tuple[Problem, int]]) -> None:
    for problem, budget in some[:6]:
        decision = optimal(problem.request(budget))
        worth = problem.check(decision, budget)
        limit = problem.sides.limit(budget)
        best = max(option.worth for option in problem.options if option.price <= limit)
        scale = max(option.worth for option in problem.options)
        assert worth == pytest.approx(best, abs=TOLERANCE * scale + 1e-12)
        assert decision.status == "optimal"


def deep(layers: int = 40) -> Case:
    """A chain with residuals, too long for a solver that has no time."""
    sketch = Sketch(batch=2)
    x = sketch.input(8, 4, 4)
    for i in range(layers):
        y = sketch.unary("relu", sketch.norm(sketch.conv(x, 8, name=f"c{i}", bias=True), name=f"n{i}"))
        x = sketch.add(x, y) if i % 3 else y
    return Case(sketch.build([sketch.linear(sketch.pooled(x), 3, name="head")], head=["head"]), ())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seconds", [1e-6, 0.05, 0.3])
def test_optimal_with_too_little_time_is_honest(scope: str, seconds: float) -> None:
    case = deep()
    problem = Problem(case, random_importance(case.graph, 1), Sides(scope=scope, buy_norm_scales=True))
    low = problem.price({"c39": 1}, frozenset())
    everything = problem.price({o.unit.name: o.quotas[-1] for o in problem.offers}, frozenset())
    budget = (2 * low + everything) // 3

    hurried, patient = (optimal(problem.request(budget, time_limit_seconds=limit)) for limit in (seconds, 2.0))
    found = problem.check(hurried, budget)
    if hurried.bound is None:  # the solver had no plan yet: greedily, and nothing is known of the optimum
        assert (hurried.status, hurried.gap_ratio) == ("feasible", 1.0)
        return
    assert hurried.bound >= patient.facts["interpolated_objective"] * (1 - TOLERANCE)
    assert hurried.gap_ratio == pytest.approx(max(0.0, 1 - found / hurried.bound), abs=1e-9)
    assert hurried.status == ("optimal" if hurried.gap_ratio <= 1e-6 else "feasible")


def test_a_bound_below_its_own_solution_is_not_believed() -> None:
    """HiGHS 1.15 calls 0.43611 optimal here, with a lower bound; without presolve it finds 0.43620."""
    problem = random_problem(Random("training 1036"), "training")
    worths = [
        problem.request(budget).interpolated_value(optimal(problem.request(budget)).updates)
        for budget in (51332, 51340, 51368, 51400, 51500)
    ]
    assert worths == sorted(worths)
