"""The published strategies on small graphs: what each trains, the budget, the true minimum, every side constraint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from builders import Case, Sketch, random_case, random_importance
from simulation import simulate

from medyate_planner.errors import ContradictionError, InfeasibleBudgetError, InputError
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.accounting import SparseUpdateScheme, convolutions
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import Ordering, channels_of, fill, in_order
from medyate_planner.planning.recompute import fits, scope_bytes
from medyate_planner.planning.request import PlanRequest, StrategySettings
from medyate_planner.planning.sampling import draw
from medyate_planner.planning.strategies import STRATEGIES

QUICK = {"intervals": 3, "population": 8, "generations": 5}
ONCE = ("paca", "trady-static", "rgn")
ANEW = ("random", "trady", "medyate", "lara-trady", "lara-medyate")
DRAWING = (*ONCE, *ANEW)
OPTIMISING = ("optimal", "greedy", "evolutionary")
FIXED = ("full", "head-only", "sparse-update")
EVERY = tuple(STRATEGIES)
LOOSE = 10**9


def network() -> Case:
    """Six convolutions of every kind, all with biases but one, relus between them, and a head."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(3, 4, 4), 8, name="stem", kernel=(3, 3), bias=True)
    for i in range(2):
        y = sketch.unary("relu", sketch.conv(x, 12, name=f"expand{i}", bias=True))
        y = sketch.unary("relu", sketch.conv(y, 12, name=f"depth{i}", kernel=(3, 3), groups=12, bias=i == 0))
        x = sketch.add(x, sketch.conv(y, 8, name=f"project{i}", bias=True))
    out = sketch.linear(sketch.pooled(x), 5, name="head", bias=True)
    return Case(sketch.build([out], head=["head"]), ())


def scheme_for(case: Case) -> SparseUpdateScheme:
    """Two biases, all channels of the last convolution that can be trained and half of the first's."""
    sold = PlanRequest(memory=MemoryModel(case.graph), importance=random_importance(case.graph, 0), budget_bytes=1)
    known, names = convolutions(case.graph), {layer.name for layer in sold.layers}
    trained = [layer.name for layer in known if layer.name in names]
    ratios = {trained[0]: Fraction(1, 2), trained[-1]: Fraction(1)} if trained else {}
    last = [layer.name for layer in known[-2:]]
    return SparseUpdateScheme(n_bias=len(last) if names.issuperset(last) else 0, ratios=ratios)


def request_for(case: Case, **options: Any) -> PlanRequest:
    told = {**QUICK, "scheme": scheme_for(case), **options.pop("settings", {})}
    importance: Importance = options.pop("importance", None) or random_importance(case.graph, 0)
    return PlanRequest(
        memory=MemoryModel(case.graph, loss=case.loss, loss_cost=case.loss_cost),
        importance=importance,
        magnitudes=options.pop("magnitudes", random_importance(case.graph, 1, zeros=0)),
        **{"budget_bytes": LOOSE, "settings": StrategySettings(**told), **options},
    )


def decide(name: str, request: PlanRequest) -> Decision:
    decision = STRATEGIES[name](request)
    assert decision.strategy == name
    assert decision.updates == decision.all_updates[0]
    return decision


def minimum_of(name: str, request: PlanRequest) -> int:
    with pytest.raises(InfeasibleBudgetError) as caught:
        decide(name, replace(request, budget_bytes=1))
    return caught.value.minimum_bytes


def price_of(case: Case, scope: str, updates: Updates) -> int:
    """By the tests' own simulation of a step."""
    step = simulate(case.graph, updates.quotas, updates.biases, updates.full, case.loss)
    return step.update if scope == "update" else step.training


# Three budgets


@pytest.mark.parametrize("scope", ["update", "training", "peak"])
@pytest.mark.parametrize("name", EVERY)
def test_every_strategy_keeps_a_loose_a_binding_and_the_smallest_budget(name: str, scope: str) -> None:
    case = network()
    request = request_for(case, scope=scope)
    loose = decide(name, request)
    most = max(scope_bytes(request, updates) for updates in loose.all_updates)
    smallest = minimum_of(name, request)
    for budget in (smallest, (smallest + most) // 2, most, LOOSE):
        asked = replace(request, budget_bytes=budget)
        decision = decide(name, asked)
        for updates in decision.all_updates:
            assert fits(asked, updates)
            assert updates.full == {"head"}
            assert updates.quotas or updates.biases or name == "head-only"
            if scope != "peak":
                assert price_of(case, scope, updates) <= budget
    with pytest.raises(InfeasibleBudgetError) as caught:
        decide(name, replace(request, budget_bytes=smallest - 1))
    assert caught.value.minimum_bytes == smallest
    assert f"--budget {smallest}B" in caught.value.message


@pytest.mark.parametrize("seed", range(12))
def test_the_stated_minimum_is_the_true_one_on_random_networks(seed: int) -> None:
    case = random_case(seed)
    scope = ("training", "update")[seed % 2]
    request = request_for(case, scope=scope, importance=random_importance(case.graph, seed))
    layers = [layer.name for layer in request.layers]
    cheapest = min(price_of(case, scope, request.updates({name: 1})) for name in layers)
    for name in ("paca", "random", "rgn"):
        assert minimum_of(name, request) == cheapest
    for name in EVERY:
        if (name == "head-only" and not case.graph.head) or (name == "bias-only" and not request.biases):
            with pytest.raises(InputError):
                decide(name, request)
            continue
        smallest = minimum_of(name, request)
        for updates in decide(name, replace(request, budget_bytes=smallest)).all_updates:
            assert price_of(case, scope, updates) <= smallest
        with pytest.raises(InfeasibleBudgetError) as caught:
            decide(name, replace(request, budget_bytes=smallest - 1))
        assert caught.value.minimum_bytes == smallest


@pytest.mark.parametrize("name", DRAWING)
def test_a_draw_is_full_nothing_more_of_its_pool_fits(name: str) -> None:
    request = request_for(network(), budget_bytes=6000, granularity=2)
    decision = decide(name, request)
    pool = decision.sampling.get("pool") or (
        [layer.name for layer in request.layers] if name != "trady-static" else list(decision.updates.quotas)
    )
    for updates in decision.all_updates:
        for layer in request.layers:
            quota = updates.quotas.get(layer.name, 0)
            if layer.name in pool and quota < request.most(layer):
                assert not fits(request, request.updates({**updates.quotas, layer.name: quota + 2}))


# Side constraints

SIDES: dict[str, dict[str, Any]] = {
    "granularity": {"granularity": 4},
    "min-quota": {"min_quota": 3, "granularity": 2},
    "max-quota": {"max_quota": 5},
    "max-layers": {"max_layers": 2},
    "forced": {"force_layers": ("expand0", "project1")},
    "forced-stem": {"force_layers": ("stem",), "max_layers": 3},
    "forbidden": {"forbid_layers": ("project*",)},
    "no-biases": {"buy_biases": False},
    "head-by-channels": {"head_mode": "channels"},
    "margin": {"margin_ratio": 0.25},
    "max-flops": {"max_flops": 90_000},
}


IMPOSSIBLE = {
    *((name, sides) for name in ("head-only", "bias-only") for sides in ("forced", "forced-stem")),
    ("sparse-update", "forced"),
    ("full", "max-layers"),
    *((name, "max-flops") for name in ("full", "sparse-update")),
    *(("sparse-update", sides) for sides in ("granularity", "min-quota", "max-quota", "forbidden", "no-biases")),
    *((name, "forced-stem") for name in ("full", "last-k")),
    ("bias-only", "no-biases"),
    ("head-only", "head-by-channels"),
}


def keeps(sides: dict[str, Any], updates: Updates) -> bool:
    """The side constraints, written from their definitions."""
    step, small = sides.get("granularity", 1), {"stem": 2}  # too small: whole or not at all
    quotas = updates.quotas
    return (
        all(n % step == 0 for n in quotas.values())
        and all(n >= min(sides.get("min_quota", 1), small.get(name, 8)) for name, n in quotas.items())
        and all(n <= sides.get("max_quota", 99) for n in quotas.values())
        and len(quotas) <= sides.get("max_layers", 99)
        and all(name in quotas for name in sides.get("force_layers", ()))
        and not ("forbid_layers" in sides and any(n.startswith("project") for n in (*quotas, *updates.biases)))
        and (sides.get("buy_biases", True) or not updates.biases)
        and (updates.full == set()) == ("head_mode" in sides)
    )


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES.keys())
@pytest.mark.parametrize("name", EVERY)
def test_every_strategy_keeps_side_constraints_or_says_that_it_can_not(name: str, sides: dict[str, Any]) -> None:
    case = network()
    request = request_for(case, **sides)
    if (name, _name_of(sides)) in IMPOSSIBLE:
        with pytest.raises(InputError):
            decide(name, request)
        return
    smallest = minimum_of(name, request)
    for budget in (smallest, smallest + 3000, LOOSE):
        asked = replace(request, budget_bytes=budget)
        for updates in decide(name, asked).all_updates:
            assert keeps(sides, updates), updates
            assert fits(asked, updates)
            assert price_of(case, "training", updates) * (1 + sides.get("margin_ratio", 0)) <= budget
    with pytest.raises(InfeasibleBudgetError) as caught:
        decide(name, replace(request, budget_bytes=smallest - 1))
    assert caught.value.minimum_bytes == smallest


def _name_of(sides: dict[str, Any]) -> str:
    return next(name for name, value in SIDES.items() if value is sides)


@pytest.mark.parametrize(
    ("name", "options", "demand"),
    [
        ("full", {"max_layers": 2}, "--max-layers 2"),
        ("full", {"max_flops": 50_000}, "--max-flops 50000"),
        ("head-only", {"force_layers": ("stem",)}, "--force-layer stem"),
        ("bias-only", {"force_layers": ("st*",)}, "--force-layer st*"),
        ("last-k", {"settings": {"last_layers": 3}, "max_layers": 2}, "--max-layers 2"),
        ("last-k", {"settings": {"last_layers": 3}, "force_layers": ("stem",)}, "--force-layer stem"),
        ("last-k", {"max_layers": 2, "force_layers": ("stem",)}, "--max-layers 2"),
        ("sparse-update", {"forbid_layers": ("project*",)}, "--forbid-layer project*"),
        ("sparse-update", {"buy_biases": False}, "--no-biases"),
        ("sparse-update", {"granularity": 2}, "--granularity 2"),
        ("sparse-update", {"min_quota": 2}, "--min-quota 2"),
        ("sparse-update", {"max_quota": 4}, "--max-quota 4"),
        ("sparse-update", {"max_layers": 1}, "--max-layers 1"),
        ("sparse-update", {"force_layers": ("depth0",)}, "--force-layer depth0"),
    ],
)
def test_a_strategy_without_a_choice_names_itself_and_what_it_can_not_keep(
    name: str, options: dict[str, Any], demand: str
) -> None:
    with pytest.raises(ContradictionError) as caught:
        decide(name, request_for(network(), **options))
    assert caught.value.demands == (f"--strategy {name}", demand)
    assert isinstance(caught.value, InputError)


# What each trains


def test_last_k_trains_the_last_layers_in_full_with_their_biases() -> None:
    request = request_for(network(), settings={"last_layers": 3})
    decision = decide("last-k", request)
    assert decision.updates.quotas == {"project1": 12, "depth1": 12, "expand1": 8}
    assert decision.updates.biases == {"project1", "expand1"}  # depth1 has none
    needed = scope_bytes(request, decision.updates)
    largest = decide("last-k", request_for(network(), budget_bytes=needed))
    assert largest.updates == decision.updates
    assert len(decide("last-k", request_for(network(), budget_bytes=needed - 1)).updates.quotas) == 2
    assert minimum_of("last-k", request) == needed
    with pytest.raises(InputError, match="--last-layers 9: there are 7 layers"):
        decide("last-k", request_for(network(), settings={"last_layers": 9}))


def test_last_k_reaches_forced_layers() -> None:
    request = request_for(network(), force_layers=("project0",))
    smallest = decide("last-k", replace(request, budget_bytes=minimum_of("last-k", request)))
    assert set(smallest.updates.quotas) == {"project0", "expand1", "depth1", "project1"}


def test_bias_only_trains_all_biases_or_the_last_ones() -> None:
    everything = decide("bias-only", request_for(network()))
    assert everything.updates.biases == {"stem", "expand0", "depth0", "project0", "expand1", "project1"}
    assert everything.status == "optimal"
    request = request_for(network())
    three = scope_bytes(request, request.updates({}, frozenset({"project0", "expand1", "project1"})))
    found = decide("bias-only", replace(request, budget_bytes=three))
    assert found.updates.biases == {"project0", "expand1", "project1"}
    assert not found.updates.quotas
    assert minimum_of("bias-only", request) == scope_bytes(request, request.updates({}, frozenset({"project1"})))


def test_sparse_update_takes_the_largest_slices() -> None:
    request = request_for(
        network(), settings={"scheme": SparseUpdateScheme(n_bias=3, ratios={"expand1": Fraction(1, 3)})}
    )
    sizes = np.array([3.0, 5.0, 1.0, 5.0, 0.0, 2.0, 5.0, 4.0])
    magnitudes = replace(request.importance, energy={"expand1": sizes})
    decision = decide("sparse-update", replace(request, magnitudes=magnitudes))
    assert decision.sampling == {"method": "fixed", "channels": {"expand1": (1, 3)}, "boost": 0.0}  # int(8 / 3) = 2
    assert decision.updates.quotas == {"expand1": 2}
    assert decision.updates.biases == {"expand1", "project1"}
    assert decision.status == "optimal"
    without = decide("sparse-update", replace(request, magnitudes=None))
    assert without.sampling["channels"] == {"expand1": (0, 1)}


def normed() -> Case:
    """Convolutions without a bias: a norm reads one, nothing but a relu the next, a norm without a bias the last."""
    sketch = Sketch(batch=2)
    x = sketch.norm(sketch.conv(sketch.input(3, 4, 4), 4, name="a"), name="norm_a")
    x = sketch.unary("relu", sketch.conv(x, 4, name="b"))
    x = sketch.norm(x, name="norm_b")
    x = sketch.norm(sketch.conv(x, 4, name="c"), name="norm_c", bias=False)
    out = sketch.linear(sketch.pooled(x), 5, name="head", bias=True)
    return Case(sketch.build([out], head=["head"]), ())


def test_sparse_update_lets_the_bias_of_the_norm_stand_in() -> None:
    scheme = SparseUpdateScheme(n_bias=3, ratios={})
    decision = decide("sparse-update", request_for(normed(), settings={"scheme": scheme}))
    assert decision.updates.biases == {"norm_a"}
    assert decision.sampling["channels"] == {}


def test_biases_of_norms_are_sold_with_the_last_layers_and_alone() -> None:
    request = request_for(normed(), settings={"last_layers": 2})
    assert decide("last-k", request).updates.biases == {"norm_b"}
    assert decide("bias-only", request).updates.biases == {"norm_a", "norm_b"}
    with_scales = decide("last-k", replace(request, buy_norm_scales=True))
    assert set(with_scales.updates.quotas) == {"b", "c"}


def test_sparse_update_needs_a_scheme_of_this_model() -> None:
    with pytest.raises(InputError, match="--scheme FILE"):
        decide("sparse-update", request_for(network(), settings={"scheme": None}))
    stranger = SparseUpdateScheme(n_bias=1, ratios={"elsewhere": Fraction(1)})
    with pytest.raises(InputError, match="elsewhere"):
        decide("sparse-update", request_for(network(), settings={"scheme": stranger}))


def test_paca_draws_once_what_its_sampling_draws_again() -> None:
    request = request_for(network(), budget_bytes=7000, seed=5)
    decision = decide("paca", request)
    assert decision.sampling["method"] == "static"
    assert "pool" not in decision.sampling
    ordering = Ordering(method="static")
    assert fill(request, request.layers, ordering) == decision.updates.quotas
    for name, channels in channels_of(request, decision.updates.quotas, ordering).items():
        size = request.memory.graph.layer_by_name[name].channels
        for interval in (0, 4):
            assert channels == draw("static", layer=name, channels=size, quota=len(channels), seed=5, interval=interval)


def test_draws_across_layers_differ_between_intervals_and_seeds() -> None:
    request = request_for(network(), budget_bytes=7000, settings={"intervals": 5})
    for name in ANEW:
        decision = decide(name, request)
        assert len(decision.draws) == 5
        assert [dict(u.quotas) for u in decision.draws] == list(decision.sampling["draws"])
        assert len({str(sorted(u.quotas.items())) for u in decision.draws}) > 1
        assert decide(name, request) == decision
        assert decide(name, replace(request, seed=1)).draws != decision.draws


def test_uniform_draws_take_every_channel_equally_often() -> None:
    request = request_for(network(), settings={"intervals": 400})
    count = dict.fromkeys([layer.name for layer in request.layers], 0)
    for interval in range(400):
        for step in in_order(request, request.layers, Ordering(method="uniform"), interval)[:10]:
            count[step.layer] += 1
    total = sum(layer.channels for layer in request.layers)
    for layer in request.layers:
        share = layer.channels / total
        assert abs(count[layer.name] / 4000 - share) < 4 * math.sqrt(share / 4000)


def test_rgn_takes_channels_by_falling_gradient_per_byte() -> None:
    request = request_for(network(), scope="update", budget_bytes=5000)
    decision = decide("rgn", request)
    assert decision.sampling["method"] == "top"
    assert decision.sampling["metric"] == "rgn"
    assert decision.sampling["oracle"] is True
    costs = {layer.name: request.memory.costs[layer.name].update_bytes for layer in request.layers}
    scores = sorted(
        ((g / costs[name], name) for name in costs for g in request.importance.norms[name]), key=lambda s: -s[0]
    )
    left, closed, expected = 5000 - scope_bytes(request, request.updates({})), set(), dict.fromkeys(costs, 0)
    for _, name in scores:
        if name in closed or costs[name] > left:
            closed.add(name)
            continue
        expected[name] += 1
        left -= costs[name]
    assert decision.updates.quotas == {name: n for name, n in expected.items() if n}


def test_weighted_draws_across_layers_follow_importance_per_byte() -> None:
    request = request_for(network())
    firsts = [
        in_order(request, request.layers, Ordering(method="weighted", metric="rgn", alpha=2.0), i)[0].layer
        for i in range(1500)
    ]
    weights = {
        layer.name: float(
            ((request.importance.norms[layer.name] / request.memory.costs[layer.name].update_bytes) ** 2).sum()
        )
        for layer in request.layers
    }
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(firsts.count(name) / 1500 - share) < 4 * math.sqrt(share / 1500) + 1e-3


@pytest.mark.parametrize(("name", "metric"), [("trady", "rgn"), ("medyate", "rgn"), ("lara-trady", "lara")])
def test_pools_are_the_best_layers(name: str, metric: str) -> None:
    request = request_for(network(), settings={"top_layers": 3})
    scores = {}
    for layer in request.layers:
        cost = request.memory.costs[layer.name].update_bytes
        energy, norms = request.importance.energy[layer.name], request.importance.norms[layer.name]
        scores[layer.name] = float(norms.sum() / cost) if metric == "rgn" else float(energy.mean() / cost)
    best = sorted(scores, key=lambda layer: -scores[layer])
    decision = decide(name, request)
    assert set(decision.sampling["pool"]) == set(best[:3])
    forced = decide(name, replace(request, force_layers=(best[-1],)))
    assert set(forced.sampling["pool"]) == {*best[:3], best[-1]}
    assert all(best[-1] in updates.quotas for updates in forced.draws)
    total, carried, count = sum(scores.values()), 0.0, 0
    while carried < 0.6 * total:
        carried, count = carried + scores[best[count]], count + 1
    share = decide(name, request_for(network(), settings={"top_share": 0.6}))
    assert set(share.sampling["pool"]) == set(best[:count])
    assert len(decide(name, request_for(network(), settings={"top_share": 0.0})).sampling["pool"]) == 1


@pytest.mark.parametrize("name", DRAWING)
def test_boosting_is_for_weighted_draws(name: str) -> None:
    request = request_for(network(), settings={"boost": 0.5, "alpha": 0.7})
    if name in ("medyate", "lara-medyate"):
        sampling = decide(name, request).sampling
        assert (sampling["method"], sampling["boost"], sampling["alpha"]) == ("weighted", 0.5, 0.7)
    else:
        with pytest.raises(InputError, match=f"--boost 0.5 and --strategy {name}"):
            decide(name, request)


def budgets(request: PlanRequest) -> Iterator[PlanRequest]:
    for budget in (3500, 5000, 8000, 14000):
        yield replace(request, budget_bytes=budget, gap_ratio=0.0)


def test_greedy_and_evolution_come_near_the_optimum_and_never_above() -> None:
    settings = {"population": 24, "generations": 40}
    for request in budgets(request_for(network(), settings=settings)):
        best = request.interpolated_value(decide("optimal", request).updates)
        greedy = request.interpolated_value(decide("greedy", request).updates)
        evolved = decide("evolutionary", request)
        assert 0.8 * best <= greedy <= best * (1 + 1e-9)
        assert 0.8 * best <= request.interpolated_value(evolved.updates) <= best * (1 + 1e-9)
        assert evolved == decide("evolutionary", request)


def test_greedy_leaves_nothing_of_value_that_fits() -> None:
    for request in budgets(request_for(network(), granularity=2)):
        found = decide("greedy", request).updates
        for layer in request.layers:
            quota = found.quotas.get(layer.name, 0) + 2
            if quota <= request.most(layer):
                assert not fits(request, request.updates({**found.quotas, layer.name: quota}, found.biases))
        for layer in request.biases:
            if layer.name not in found.biases:
                assert not fits(request, request.updates(found.quotas, found.biases | {layer.name}))


def test_searches_buy_something_even_if_nothing_is_worth_anything() -> None:
    case = network()
    nothing = random_importance(case.graph, 0, zeros=1.0)
    request = request_for(case, importance=replace(nothing, bias_energy={}))
    for name in ("greedy", "evolutionary"):
        updates = decide(name, request).updates
        assert updates.quotas or updates.biases


def test_strategies_say_when_nothing_can_be_updated() -> None:
    for name in EVERY:
        request = request_for(network(), forbid_layers=("*",))
        if name == "head-only":
            decide(name, request)
            continue
        with pytest.raises(InputError):
            decide(name, request)


def test_a_forbidden_head_is_refused_while_it_is_trained_in_full() -> None:
    with pytest.raises(InputError, match=r"--forbid-layer he\* forbids the head.*--head-by-channels"):
        request_for(network(), forbid_layers=("he*",)).check_head()
    request_for(network(), forbid_layers=("*",)).check_head()
