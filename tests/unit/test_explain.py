"""Why a plan is as it is: prices worked out by hand and by simulation, every reason, what more bytes would buy."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import Case, Sketch, random_case, random_importance
from rich.console import Console
from simulation import simulate

from medyate_planner.errors import InfeasibleBudgetError, InputError, MedyateError, SolverError
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import MemoryModel
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.explain import explain
from medyate_planner.planning.explanation import SENTENCES, ExplainedUnit, Explanation
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import STRATEGIES, optimal
from medyate_planner.reporting.explanation_text import render_explanation


def pair() -> Case:
    """Two 1x1 convolutions of 2 channels, 2 x 2 large, batch 1; what lies between keeps its whole input (32 B).

    One channel of either: 16 B saved, 8 B gradient, 4 B index. The head: 8 B saved, 16 B gradient.
    """
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(2, 2, 2), 2, name="a")
    x = sketch.conv(sketch.unary("keeps_input", x), 2, name="b")
    return Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=("head",)), ())


def importance_of(case: Case, **energy: list[float]) -> Importance:
    vectors = {layer.name: np.array(energy.get(layer.name, [1.0] * layer.channels)) for layer in case.graph.units}
    return Importance(energy=vectors, norms={}, bias_energy={}, fingerprint=case.graph.fingerprint, source="by hand")


def request_for(case: Case, budget: int, energy: dict[str, list[float]] | None = None, **options: Any) -> PlanRequest:
    importance = importance_of(case, **(energy or {"a": [1.0, 1.0], "b": [4.0, 4.0]}))
    return PlanRequest(
        memory=MemoryModel(case.graph),
        importance=importance,
        budget_bytes=budget,
        gap_ratio=0.0,
        **{"objective": "norm", "metric": "raw", **options},  # a second channel is worth less than the first
    )


def unit_of(explanation: Explanation, name: str, what: str = "channels") -> ExplainedUnit:
    return next(unit for unit in explanation.units if (unit.name, unit.what) == (name, what))


def test_explain_prices_worked_out_by_hand() -> None:
    """{b: 1}: at the backward of the head 16 + 8 kept, 16 gradient, 4 index = 44 B; the head alone is 24 B."""
    request = request_for(pair(), 50)
    decision = optimal(request)
    assert decision.updates.quotas == {"b": 1}
    found = explain(request, decision, next_bytes=100)
    assert (found.used_bytes, found.left_bytes) == (44, 6)
    b = unit_of(found, "b")
    assert (b.own_bytes, b.reach_bytes, b.next_bytes) == (28, 0, 20)
    assert b.next_value_per_kb == pytest.approx(1000 * (math.sqrt(8) - 2) / 20)
    assert b.last_value_per_kb == pytest.approx(1000 * 2 / 20)
    assert b.sentence == "in: 1 of 2 channels; one more would cost 20 B, and 6 B are left"
    a = unit_of(found, "a")
    assert (a.own_bytes, a.reach_bytes, a.next_bytes) == (28, 32, 52)
    assert a.next_value_per_kb == pytest.approx(1000 * 1 / 52)
    assert a.sentence == "out: its cheapest channel would add 32 B of pass-through (reach) at the backward of head"
    head = unit_of(found, "head")
    assert (head.sentence, head.quota, head.chosen) == ("head, in full", 2, True)
    assert found.worst_value_per_kb == b.last_value_per_kb


def test_explain_names_what_binds() -> None:
    request = request_for(pair(), 50)
    (limit,) = explain(request, optimal(request), next_bytes=0).limits
    assert (limit.name, limit.binds, limit.used, limit.limit, limit.left) == ("budget", True, 44, 50, 6)
    assert limit.where == "at the backward of head"
    loose = request_for(pair(), 10**6)
    found = explain(loose, optimal(loose))
    assert not found.limits[0].binds
    assert found.next is not None
    assert (found.next.gained, found.next.layers) == (0.0, ())


def test_explain_says_what_more_bytes_would_buy() -> None:
    """All of both: 32 + 32 + 32 + 8 kept, 16 gradient, 16 index = 136 B."""
    request = request_for(pair(), 50)
    found = explain(request, optimal(request), next_bytes=100).next
    assert found is not None
    assert [(c.name, c.before, c.after) for c in found.layers] == [("a", 0, 2), ("b", 1, 2)]
    assert found.gained == pytest.approx(math.sqrt(2) + math.sqrt(8) - 2)
    assert found.gained_per_kb == pytest.approx(found.gained / 0.1)
    assert (found.budget_bytes, found.used_bytes) == (150, 136 - 44)


def test_explain_survives_a_strategy_that_fails_with_more_bytes() -> None:
    def slow(_request: PlanRequest) -> Decision:
        raise SolverError("the time limit passed")

    request = request_for(pair(), 50)
    found = explain(request, optimal(request), strategy=slow)
    assert found.next is None
    assert "the time limit passed" in found.notes[0]


def test_explain_does_not_name_what_is_worth_less_with_more_bytes() -> None:
    request = request_for(pair(), 50)
    poor = Decision(updates=request.updates({"a": 1}), strategy="poor")
    found = explain(request, optimal(request), strategy=lambda _: poor).next
    assert found is not None
    assert (found.gained, found.used_bytes, found.layers) == (0.0, 0, ())


def three(size: int = 2) -> Case:
    """Convolutions a (3 channels), b and c (4), of which c has a bias; a branch `dead` that the loss does not see."""
    sketch = Sketch(batch=1)
    x = sketch.conv(sketch.input(3, size, size), 4, name="a")
    x = sketch.conv(sketch.unary("relu", x), 4, name="b")
    x = sketch.conv(sketch.unary("relu", x), 4, name="c", bias=True)
    sketch.conv(x, 2, name="dead")
    return Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=("head",)), ())


def frozen(case: Case, name: str) -> Case:
    layers = tuple(replace(x, trainable=False) if x.name == name else x for x in case.graph.layers)
    return replace(case, graph=replace(case.graph, layers=layers))


EVERYTHING = 10**7
LARGE = 64  # so that operations are far above the solver's tolerance
REASONS: dict[str, tuple[str, str, dict[str, Any]]] = {  # reason: layer, what, options
    "head": ("head", "channels", {}),
    "forced": ("a", "channels", {"force_layers": ("a",), "budget": 200}),
    "in_whole": ("b", "channels", {}),
    "in_all_allowed": ("b", "channels", {"max_quota": 2}),
    "in_flops": ("c", "channels", {"max_flops": 500}),
    "forbidden": ("b", "channels", {"forbid_layers": ("b",)}),
    "not_upstream": ("dead", "channels", {}),
    "frozen": ("b", "channels", {"freeze": "b"}),
    "not_for_sale": ("c", "bias", {"buy_biases": False}),
    "granularity": ("a", "channels", {"granularity": 4}),
    "no_value": ("c", "bias", {"budget": 150}),
    "max_layers": ("a", "channels", {"max_layers": 1}),
    "max_flops": ("a", "channels", {"max_flops": 500}),
    "strategy": ("b", "channels", {"strategy": "head-only"}),
    "in_bias": ("c", "bias", {}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_explain_gives_each_reason(reason: str) -> None:
    name, what, options = REASONS[reason]
    options = dict(options)
    strategy, budget = options.pop("strategy", "optimal"), options.pop("budget", EVERYTHING)
    case = three(LARGE if "max_flops" in options else 2)
    case = frozen(case, options.pop("freeze")) if "freeze" in options else case
    request = request_for(case, budget, {"c": [9.0] * 4}, **options)
    if "max_flops" in options:
        flops = request.flops.training(request.updates({"c": 2}))
        request = replace(request, max_flops=flops)
    if reason == "in_bias":
        importance = replace(request.importance, bias_energy={"c": 4.0})
        request = replace(request, importance=importance)
    found = explain(request, STRATEGIES[strategy](request))
    unit = unit_of(found, name, what)
    assert unit.reason == reason
    assert unit.chosen == (reason in ("head", "forced") or reason.startswith("in_"))
    start = SENTENCES[unit.reason].split("{")[0]
    assert unit.sentence.startswith(start)
    assert "{" not in unit.sentence
    assert unit.chosen == (unit.quota > 0)


def test_explain_a_layer_that_is_worth_less_than_the_worst_unit() -> None:
    request = request_for(pair(), 64, {"a": [1e-6, 1e-6], "b": [4.0, 4.0]})
    found = explain(request, optimal(request), next_bytes=0)
    a = unit_of(found, "a")
    assert a.reason in ("reach", "worth_less")
    sketch = Sketch(batch=1)
    x = sketch.input(2, 2, 2)
    joined = sketch.cat(sketch.conv(x, 2, name="poor"), sketch.conv(x, 2, name="rich"))
    case = Case(sketch.build([sketch.linear(sketch.pooled(joined), 2, name="head")], head=("head",)), ())
    request = request_for(case, 90, {"poor": [1e-4, 1e-4], "rich": [4.0, 4.0]})
    found = explain(request, optimal(request), next_bytes=0)
    poor = unit_of(found, "poor")
    assert poor.reason == "worth_less"
    assert found.worst_value_per_kb is not None
    assert poor.next_value_per_kb is not None
    assert poor.next_value_per_kb < found.worst_value_per_kb
    assert f"{found.worst_value_per_kb:.3g}" in poor.sentence


def test_explain_counts_the_layers_and_operations_that_are_left() -> None:
    request = request_for(three(LARGE), EVERYTHING, {"c": [9.0] * 4}, max_layers=2)
    decision = optimal(request)
    request = replace(request, max_flops=request.flops.training(decision.updates) + 1)
    limits = {limit.name: limit for limit in explain(request, optimal(request)).limits}
    assert (limits["max-layers"].used, limits["max-layers"].left, limits["max-layers"].binds) == (2, 0, True)
    assert (limits["max-flops"].left, limits["budget"].binds) == (1, False)


@pytest.mark.parametrize("scope", ["training", "update"])
@pytest.mark.parametrize("seed", range(12))
def test_explain_prices_equal_the_simulation(scope: str, seed: int) -> None:
    """Each next step: the simulated step of the plan with it, less that of the plan."""
    case = random_case(seed)
    importance = random_importance(case.graph, seed)
    request = PlanRequest(
        memory=MemoryModel(case.graph, loss=case.loss), importance=importance, budget_bytes=10**6, scope=scope
    )
    try:
        everything = explain(request, optimal(request), next_bytes=0).used_bytes
    except InputError:
        pytest.skip("nothing can be updated")
    request = replace(request, budget_bytes=max(1, int(0.7 * everything)))
    try:
        decision = optimal(request)
    except InfeasibleBudgetError as error:
        request = replace(request, budget_bytes=error.minimum_bytes)
        decision = optimal(request)

    def price(quotas: dict[str, int], biases: frozenset[str]) -> int:
        step = simulate(case.graph, quotas, biases, case.graph.head, case.loss)
        return step.update if scope == "update" else step.training

    quotas, biases = dict(decision.updates.quotas), decision.updates.biases
    found = explain(request, decision, next_bytes=0)
    assert found.used_bytes == price(quotas, biases)
    for unit in found.units:
        if unit.next_bytes is None:
            continue
        with_it = (quotas, biases | {unit.name})
        if unit.what == "channels":
            with_it = ({**quotas, unit.name: quotas.get(unit.name, 0) + 1}, biases)
        assert unit.next_bytes == price(*with_it) - found.used_bytes
        if not unit.chosen:
            assert unit.own_bytes is not None
            assert unit.reach_bytes is not None
            assert unit.next_bytes <= unit.own_bytes + unit.reach_bytes


@pytest.mark.parametrize("scope", ["training", "update", "peak"])
@pytest.mark.parametrize("strategy", ["optimal", "greedy", "last-k", "medyate", "bias-only"])
def test_explain_every_kind_of_strategy_and_scope(scope: str, strategy: str) -> None:
    case = three()
    importance = random_importance(case.graph, 1)
    request = PlanRequest(
        memory=MemoryModel(case.graph), importance=importance, magnitudes=importance, budget_bytes=600, scope=scope
    )
    try:
        decision = STRATEGIES[strategy](request)
    except MedyateError:
        request = replace(request, budget_bytes=10**4)
        decision = STRATEGIES[strategy](request)
    found = explain(request, decision, next_bytes=500)
    assert {unit.name for unit in found.units} == {"a", "b", "c", "dead", "head"}
    assert bool(found.notes) == bool(decision.draws)
    again = Explanation.model_validate(json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False)))
    assert again == found
    console = Console(width=160, record=True, file=io.StringIO())
    for part in render_explanation(found):
        console.print(part)
    text = console.export_text()
    assert "--budget" in text
    assert "Why each layer is in or out" in text
