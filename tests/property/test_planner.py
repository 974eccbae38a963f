"""The integer program against brute force: every possible plan, priced by the tests' own simulation of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import Case, Sketch, cases, random_importance, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.graph import MeasuredKeep
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import MemoryModel
from medyate_planner.memory.rules import Keep
from medyate_planner.planning import solve
from medyate_planner.planning.request import Decision, PlanRequest
from medyate_planner.planning.strategies import full, head_only, optimal

EXHAUSTIVE = settings(max_examples=200, deadline=None, derandomize=True)
SMALLER = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = 2e-6  # of the largest value; HiGHS works with 1e-6
BREAKPOINTS = {  # 1, C and quadratically spaced between, worked out by hand
    1: (0, 1),
    2: (0, 1, 2),
    3: (0, 1, 3),
    4: (0, 1, 2, 4),
    5: (0, 1, 2, 3, 5),
    6: (0, 1, 2, 3, 4, 6),
    7: (0, 1, 2, 3, 4, 5, 7),
    8: (0, 1, 2, 3, 5, 6, 8),
}


@dataclass(frozen=True)
class Option:
    """One possible plan, its price and its worth."""

    quotas: Mapping[str, int]
    biases: frozenset[str]
    price: int
    worth: float


@dataclass(frozen=True)
class Sides:
    """Side constraints of a planning problem."""

    scope: str
    objective: str = "norm"
    curve: str = "uniform"
    buy_biases: bool = True
    max_layers: int | None = None
    granularity: int = 1
    force_layers: tuple[str, ...] = ()
    forbid_layers: tuple[str, ...] = ()

    def request(self, case: Case, importance: Importance, budget_bytes: int, *, gap_ratio: float = 0.0) -> PlanRequest:
        return PlanRequest(
            memory=MemoryModel(case.graph, loss=case.loss),
            importance=importance,
            budget_bytes=budget_bytes,
            gap_ratio=gap_ratio,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
        )


def worth_of_channels(energy: np.ndarray, sides: Sides) -> list[float]:
    """V(n) for n = 0..C, straight from DESIGN section 6."""
    if sides.curve == "uniform":
        captured = [n * float(np.mean(energy)) for n in range(len(energy) + 1)]
    else:
        captured = [float(sum(sorted(energy, reverse=True)[:n])) for n in range(len(energy) + 1)]
    return captured if sides.objective == "energy" else [math.sqrt(v) for v in captured]


def worth_of(
    importance: Importance, sides: Sides, quotas: Mapping[str, int], biases: frozenset[str], *, exact: bool
) -> float:
    total = 0.0
    for name, n in quotas.items():
        values = worth_of_channels(importance.energy[name], sides)
        points = range(len(values)) if exact else BREAKPOINTS[len(values) - 1]
        total += float(np.interp(n, points, [values[p] for p in points]))
    energies = [importance.bias_energy[name] for name in biases]
    return total + sum(energies if sides.objective == "energy" else map(math.sqrt, energies))


def price_of(case: Case, scope: str, quotas: Mapping[str, int], biases: frozenset[str]) -> int:
    step = simulate(case.graph, quotas, biases, case.graph.head, case.loss)
    return step.update if scope == "update" else step.training


def all_options(case: Case, importance: Importance, sides: Sides) -> list[Option]:
    """Every plan that the side constraints allow. A layer too small for the granularity is not for sale."""
    graph = case.graph
    sale = [
        layer
        for layer in graph.layers
        if layer.name not in graph.head
        and layer.name not in sides.forbid_layers
        and layer.weight_shape[1] * layer.groups >= sides.granularity
    ]
    channels = [range(0, layer.weight_shape[1] * layer.groups + 1, sides.granularity) for layer in sale]
    with_bias = [layer.name for layer in sale if layer.bias] if sides.buy_biases else []
    found = []
    for numbers in product(*channels):
        quotas = {layer.name: n for layer, n in zip(sale, numbers, strict=True) if n}
        if sides.max_layers is not None and len(quotas) > sides.max_layers:
            continue
        if not set(sides.force_layers) <= set(quotas):
            continue
        for bits in product([False, True], repeat=len(with_bias)):
            biases = frozenset(name for name, bit in zip(with_bias, bits, strict=True) if bit)
            if quotas or biases:
                found.append(
                    Option(
                        quotas=quotas,
                        biases=biases,
                        price=price_of(case, sides.scope, quotas, biases),
                        worth=worth_of(importance, sides, quotas, biases, exact=False),
                    )
                )
    return found


@st.composite
def all_sides(draw: st.DrawFn, case: Case) -> Sides:
    """Half of the time none but scope, objective and curve."""
    sides = Sides(
        scope=draw(st.sampled_from(["training", "update"])),
        objective=draw(st.sampled_from(["norm", "energy"])),
        curve=draw(st.sampled_from(["uniform", "top"])),
        buy_biases=draw(st.sampled_from([True, True, False])),
    )
    if draw(st.booleans()):
        return sides
    names = [layer.name for layer in case.graph.layers if layer.name not in case.graph.head]
    sizes = {layer.name: layer.weight_shape[1] * layer.groups for layer in case.graph.layers}
    granularity = draw(st.sampled_from([1, 1, 2, 3]))
    forbidden = draw(st.lists(st.sampled_from(names), max_size=1))
    may_force = [name for name in names if name not in forbidden and sizes[name] >= granularity]
    forced = draw(st.lists(st.sampled_from(may_force), max_size=2, unique=True)) if may_force else []
    return replace(
        sides,
        granularity=granularity,
        max_layers=draw(st.sampled_from([None, max(1, len(forced)), max(1, len(forced)) + 1])),
        force_layers=tuple(forced),
        forbid_layers=tuple(forbidden),
    )


def check_decision(decision: Decision, case: Case, importance: Importance, sides: Sides, budget: int) -> float:
    """The plan keeps every constraint, by the simulation; returns its interpolated worth."""
    quotas, biases = decision.updates.quotas, decision.updates.biases
    assert decision.updates.full == frozenset(case.graph.head)
    assert price_of(case, sides.scope, quotas, biases) <= budget
    assert not set(quotas) & set(sides.forbid_layers)
    assert set(sides.force_layers) <= set(quotas)
    assert all(n % sides.granularity == 0 and n > 0 for n in quotas.values())
    assert sides.max_layers is None or len(quotas) <= sides.max_layers
    assert sides.buy_biases or not biases
    assert quotas or biases
    worth = worth_of(importance, sides, quotas, biases, exact=False)
    assert decision.facts["interpolated_objective"] == pytest.approx(worth, rel=1e-9)
    loss = worth_of(importance, sides, quotas, biases, exact=True) - worth
    assert decision.facts["interpolation_loss"] == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert decision.facts["interpolation_loss"] >= -1e-9
    return worth


@pytest.fixture(autouse=True, scope="module")
def _no_second_chance() -> Iterator[None]:
    """The program never undercounts: its first plan must fit, so `solve` gets no retry with a tighter budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "_TIGHTENINGS", 1)
        yield


@pytest.mark.parametrize("scope", ["training", "update"])
@EXHAUSTIVE
@given(case=cases(), seed=st.integers(0, 10**6), data=st.data())
def test_optimal_equals_brute_force(scope: str, case: Case, seed: int, data: st.DataObject) -> None:
    importance = random_importance(case.graph, seed)
    sides = replace(data.draw(all_sides(case)), scope=scope)
    options = all_options(case, importance, sides)
    if not options:
        with pytest.raises(InputError, match="nothing to plan"):
            optimal(sides.request(case, importance, 10**9))
        return
    prices = sorted({option.price for option in options})
    for price in data.draw(st.lists(st.sampled_from(prices), min_size=1, max_size=3)):
        check_optimum(case, importance, sides, options, price + data.draw(st.sampled_from([0, 0, 1, 3, 10**6])))


def check_optimum(case: Case, importance: Importance, sides: Sides, options: list[Option], budget: int) -> None:
    """The plan is as good as the best of all options under this budget."""
    decision = optimal(sides.request(case, importance, budget))
    worth = check_decision(decision, case, importance, sides, budget)
    best = max(option.worth for option in options if option.price <= budget)
    scale = max(option.worth for option in options)
    assert worth == pytest.approx(best, abs=TOLERANCE * scale + 1e-12)
    assert decision.strategy == "optimal"
    if budget > min(
        option.price for option in options
    ):  # at the smallest budget to the byte, the solver may leave the proof out
        assert decision.status == "optimal"
        assert decision.gap_ratio <= 1e-5
        assert decision.bound is not None
        assert decision.bound >= best - TOLERANCE * scale


@pytest.mark.parametrize("scope", ["training", "update"])
@EXHAUSTIVE
@given(case=cases(), seed=st.integers(0, 10**6), data=st.data())
def test_optimal_states_the_smallest_budget(scope: str, case: Case, seed: int, data: st.DataObject) -> None:
    importance = random_importance(case.graph, seed)
    sides = replace(data.draw(all_sides(case)), scope=scope)
    options = all_options(case, importance, sides)
    if not options:
        return
    smallest = min(option.price for option in options)
    decision = optimal(sides.request(case, importance, smallest))
    check_decision(decision, case, importance, sides, smallest)
    budgets = [smallest - 1, smallest // 2] if smallest > 3 else []
    for budget in budgets:
        with pytest.raises(InfeasibleBudgetError) as caught:
            optimal(sides.request(case, importance, budget))
        assert caught.value.minimum_bytes == smallest
        assert caught.value.budget_bytes == budget
        assert caught.value.scope == scope
        assert caught.value.exit_code == 3
        assert f"{smallest}B" in caught.value.message
        assert "\n" not in caught.value.message


@SMALLER
@given(case=cases(max_layers=6, max_channels=24, max_plans=10**9), seed=st.integers(0, 10**6), data=st.data())
def test_optimal_is_never_worse_with_more_budget(case: Case, seed: int, data: st.DataObject) -> None:
    importance = random_importance(case.graph, seed)
    sides = Sides(
        scope=data.draw(st.sampled_from(["training", "update"])),
        curve=data.draw(st.sampled_from(["uniform", "weighted", "top"])),
        objective=data.draw(st.sampled_from(["norm", "energy"])),
    )
    limit = price_of_everything(case, sides)
    low = smallest_price(case, sides)
    budgets = sorted({low, low + 1, *(low + (limit - low) * i // 4 for i in range(1, 5)), 2 * limit})
    before = -1.0
    for budget in budgets:
        decision = optimal(sides.request(case, importance, budget))
        assert price_of(case, sides.scope, decision.updates.quotas, decision.updates.biases) <= budget
        worth = decision.facts.get("interpolated_objective", 0.0)
        assert worth >= before - TOLERANCE * abs(worth)
        before = worth


@SMALLER
@given(case=cases(max_layers=6, max_channels=24, max_plans=10**9), seed=st.integers(0, 10**6), data=st.data())
def test_optimal_is_never_below_greedy(case: Case, seed: int, data: st.DataObject) -> None:
    importance = random_importance(case.graph, seed)
    sides = Sides(
        scope=data.draw(st.sampled_from(["training", "update"])),
        objective=data.draw(st.sampled_from(["norm", "energy"])),
    )
    low, limit = smallest_price(case, sides), price_of_everything(case, sides)
    budget = low + data.draw(st.integers(0, 100)) * (limit - low) // 100
    request = sides.request(case, importance, budget)
    decision = optimal(request)
    quotas, biases = greedy(case, importance, sides, budget)
    by_greedy = sum(request.curves[name].interpolated(n) for name, n in quotas.items())
    by_greedy += worth_of(importance, sides, {}, biases, exact=True)
    if budget == low:  # the fallback without a solver buys one unit; greedy may have found a better one
        return
    assert decision.facts["interpolated_objective"] >= by_greedy * (1 - TOLERANCE) - 1e-12


@SMALLER
@given(case=cases(max_layers=6, max_channels=24, max_plans=10**9), seed=st.integers(0, 10**6), data=st.data())
def test_optimal_with_a_gap_stays_within_it(case: Case, seed: int, data: st.DataObject) -> None:
    importance = random_importance(case.graph, seed)
    sides = Sides(scope="training")
    low, limit = smallest_price(case, sides), price_of_everything(case, sides)
    budget = low + 1 + data.draw(st.integers(0, 100)) * (limit - low) // 100
    exact = optimal(sides.request(case, importance, budget))
    loose = optimal(sides.request(case, importance, budget, gap_ratio=0.05))
    assert price_of(case, "training", loose.updates.quotas, loose.updates.biases) <= budget
    best, found = exact.facts["interpolated_objective"], loose.facts["interpolated_objective"]
    assert found >= best * (0.95 - TOLERANCE)
    assert found <= best * (1 + TOLERANCE)
    assert loose.status == "optimal"
    assert loose.gap_ratio <= 0.05
    assert (loose.bound or 0.0) >= best * (1 - TOLERANCE)


@SMALLER
@given(case=cases(), seed=st.integers(0, 10**6), scope=st.sampled_from(["training", "update"]))
def test_full_and_head_only_state_what_they_need(case: Case, seed: int, scope: str) -> None:
    importance = random_importance(case.graph, seed)
    sides = Sides(scope=scope)
    everything = price_of_everything(case, sides)
    decision = full(sides.request(case, importance, everything))
    layers = [layer for layer in case.graph.layers if layer.name not in case.graph.head]
    assert decision.updates.quotas == {x.name: x.weight_shape[1] * x.groups for x in layers}
    with pytest.raises(InfeasibleBudgetError) as caught:
        full(sides.request(case, importance, everything - 1))
    assert caught.value.minimum_bytes == everything
    if not case.graph.head:
        with pytest.raises(InputError, match="needs a head"):
            head_only(sides.request(case, importance, everything))
        return
    needed = price_of(case, scope, {}, frozenset())
    assert head_only(sides.request(case, importance, needed)).updates.layers == set(case.graph.head)
    with pytest.raises(InfeasibleBudgetError) as caught:
        head_only(sides.request(case, importance, needed - 1))
    assert caught.value.minimum_bytes == needed


def price_of_everything(case: Case, sides: Sides) -> int:
    layers = [layer for layer in case.graph.layers if layer.name not in case.graph.head]
    quotas = {layer.name: layer.weight_shape[1] * layer.groups for layer in layers}
    return price_of(case, sides.scope, quotas, frozenset(layer.name for layer in layers if layer.bias))


def smallest_price(case: Case, sides: Sides) -> int:
    layers = [layer for layer in case.graph.layers if layer.name not in case.graph.head]
    prices = [price_of(case, sides.scope, {layer.name: 1}, frozenset()) for layer in layers]
    prices += [price_of(case, sides.scope, {}, frozenset({layer.name})) for layer in layers if layer.bias]
    return min(prices)


def greedy(case: Case, importance: Importance, sides: Sides, budget: int) -> tuple[dict[str, int], frozenset[str]]:
    """Add the unit with the most value per byte of its own, as long as one fits."""
    layers = {layer.name: layer for layer in case.graph.layers if layer.name not in case.graph.head}
    values = {name: worth_of_channels(importance.energy[name], sides) for name in layers}
    quotas: dict[str, int] = {}
    biases: frozenset[str] = frozenset()
    while True:
        offers: list[tuple[float, dict[str, int], frozenset[str]]] = []
        here = simulate(case.graph, quotas, biases, case.graph.head, case.loss).update
        for name, layer in layers.items():
            n = quotas.get(name, 0)
            if n + 1 < len(values[name]):
                new = {**quotas, name: n + 1}
                bytes_more = simulate(case.graph, new, biases, case.graph.head, case.loss).update - here
                offers.append(((values[name][n + 1] - values[name][n]) / bytes_more, new, biases))
            if layer.bias and name not in biases:
                worth = worth_of(importance, sides, {}, frozenset({name}), exact=True)
                offers.append((worth / (4 * layer.weight_shape[0]), quotas, biases | {name}))
        for _, more, more_biases in sorted(offers, key=lambda offer: -offer[0]):
            if price_of(case, sides.scope, more, more_biases) <= budget:
                quotas, biases = more, more_biases
                break
        else:
            return quotas, biases


# Corners


def chain(*, biases: bool = True) -> Case:
    """Two convolutions with a relu between them, and a head."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(4, 2, 2), 4, name="a", bias=biases)
    x = sketch.conv(sketch.unary("relu", x), 4, name="b", bias=biases)
    out = sketch.linear(sketch.pooled(x), 3, name="head", bias=True)
    return Case(sketch.build([out], head=["head"]), ())


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


@pytest.mark.parametrize("make", [chain, twice, shared_with_the_loss, statistic_of_two])
@pytest.mark.parametrize("scope", ["training", "update"])
def test_optimal_equals_brute_force_at_every_budget(make: Callable[[], Case], scope: str) -> None:
    case = make()
    for seed in range(2):
        importance, sides = random_importance(case.graph, seed), Sides(scope=scope)
        options = all_options(case, importance, sides)
        for price in sorted({option.price for option in options}):
            check_optimum(case, importance, sides, options, price)


def request_for(case: Case, **options: Any) -> PlanRequest:
    options.setdefault("gap_ratio", 0.0)
    options.setdefault("budget_bytes", 10**6)
    return PlanRequest(memory=MemoryModel(case.graph), importance=random_importance(case.graph, 0), **options)


def test_optimal_with_everything_affordable_buys_everything() -> None:
    decision = optimal(request_for(chain()))
    assert decision.updates.quotas == {"a": 4, "b": 4}
    assert decision.updates.biases == {"a", "b"}
    assert decision.updates.full == {"head"}


def test_optimal_without_importance_of_anything_still_plans() -> None:
    case = chain(biases=False)
    nothing = replace(
        random_importance(case.graph, 0), energy={"a": np.zeros(4), "b": np.zeros(4), "head": np.zeros(4)}
    )
    request = PlanRequest(memory=MemoryModel(case.graph), importance=nothing, budget_bytes=10**6, gap_ratio=0.0)
    assert optimal(request).updates.quotas


def test_optimal_with_all_layers_forbidden_says_so() -> None:
    with pytest.raises(InputError, match="nothing to plan"):
        optimal(request_for(chain(), forbid_layers=("*",)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "peak"}, "scope 'peak' is unknown"),
        ({"granularity": 0}, "granularity: expected 1 or more"),
        ({"max_layers": 0}, "--max-layers: expected 1 or more"),
        ({"force_layers": ("nothing*",)}, "'nothing*' matches no layer"),
        ({"forbid_layers": ("c",)}, "'c' matches no layer"),
    ],
)
def test_request_refuses_unusable_constraints(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        request_for(chain(), **options)
    assert text in caught.value.message
    assert "\n" not in caught.value.message


def test_optimal_never_breaks_max_layers_for_forced_layers() -> None:
    with pytest.raises(InputError):
        optimal(request_for(chain(), force_layers=("a", "b"), max_layers=1))


def test_request_refuses_a_layer_that_is_forced_and_forbidden() -> None:
    with pytest.raises(InputError):
        optimal(request_for(chain(), force_layers=("a",), forbid_layers=("a",)))


def test_request_refuses_a_forced_layer_smaller_than_the_granularity() -> None:
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 2, 2), 8, name="small")
    x = sketch.conv(x, 8, name="large")
    case = Case(sketch.build([x]), ())
    with pytest.raises(InputError):
        optimal(request_for(case, force_layers=("small",), granularity=8))


def test_update_scope_counts_only_sites_that_the_loss_sees() -> None:
    sketch = Sketch(batch=2)
    x = sketch.input(2, 2, 2)
    out = sketch.conv(x, 2, name="shared")
    sketch.conv(x, 2, name="shared")  # its output is read by nothing differentiable
    case = Case(sketch.build([out]), ())
    needed = simulate(case.graph, {"shared": 2}).update
    request = request_for(case, scope="update", budget_bytes=needed)
    energy = {"shared": np.ones(2)}
    decision = optimal(replace(request, importance=replace(request.importance, energy=energy)))
    assert decision.updates.quotas == {"shared": 2}
