"""A strategy of the user's own: as a function, as file.py:function; and what it decides is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import BATCH, MODEL, assert_refused, done, make_plan, write_sources
from torch import nn

from medyate_planner import InfeasibleBudgetError, InputError, Plan, frontier, plan
from medyate_planner.api import planned_draws
from medyate_planner.cli.train_options import DrawOptions
from medyate_planner.errors import ContradictionError
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.recompute import fits, require_fit
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import optimal
from medyate_planner.strategy import chosen_strategy, read_strategy
from medyate_planner.subject import Subject, subject_of

SOURCE = '''
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.recompute import fits, require_fit


def equal_shares(request):
    """The same share of every layer, the largest that fits."""

    def share(percent):
        return request.updates({layer.name: max(1, layer.channels * percent // 100) for layer in request.layers})

    require_fit(request, share(0), spent_on="one channel of every layer")
    return Decision(
        updates=share(max(p for p in range(101) if fits(request, share(p)))), strategy="equal-shares"
    )


def clumsy(request):
    return 1 // 0


def greedy_hands(request):
    return Decision(
        updates=request.updates({layer.name: layer.channels for layer in request.layers}), strategy="greedy-hands"
    )


LIMIT = 3
'''
Function = Callable[[PlanRequest], Any]


@functools.cache
def subject() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    return subject_of(model, torch.zeros(2, 3, 8, 8))


def equal_shares(request: PlanRequest) -> Decision:
    def share(percent: int) -> Updates:
        return request.updates({layer.name: max(1, layer.channels * percent // 100) for layer in request.layers})

    require_fit(request, share(0), spent_on="one channel of every layer")
    return Decision(updates=share(max(p for p in range(101) if fits(request, share(p)))), strategy="equal-shares")


def smallest_bytes() -> int:
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(subject(), budget=1, strategy=equal_shares)
    return caught.value.minimum_bytes


def test_a_function_plans_under_a_loose_a_binding_and_an_impossible_budget() -> None:
    loose = plan(subject(), budget="1MB", strategy=equal_shares)
    assert loose.quotas() == {"0": 3, "2": 8}
    assert loose.strategy == "equal-shares"
    minimum = smallest_bytes()
    binding = plan(subject(), budget=minimum, strategy=equal_shares)
    assert binding.quotas() == {"0": 1, "2": 1}
    assert binding.predicted.training_bytes == minimum
    with pytest.raises(InfeasibleBudgetError, match="one channel of every layer") as caught:
        plan(subject(), budget=minimum - 1, strategy=equal_shares)
    assert caught.value.minimum_bytes == minimum


def test_a_function_gives_a_plan_that_survives_its_file(tmp_path: Path) -> None:
    made = plan(subject(), budget="1MB", strategy=equal_shares)
    assert Plan.load(made.save(tmp_path / "plan.json")) == made


def test_an_explanation_asks_the_function_again() -> None:
    found = plan(subject(), budget=smallest_bytes(), strategy=equal_shares, explain=True).explanation
    assert found is not None
    assert found.notes == ()
    assert found.next is not None
    assert [(change.name, change.before, change.after) for change in found.next.layers] == [("0", 1, 3), ("2", 1, 8)]


def test_a_frontier_of_a_function_states_the_smallest_budget() -> None:
    minimum = smallest_bytes()
    found = frontier(subject(), budgets=[minimum - 1, minimum, 1_000_000], strategy=equal_shares)
    assert [point.feasible for point in found.points] == [False, True, True]
    assert found.minimum_bytes == minimum
    assert found.strategy == "equal-shares"


def test_a_function_that_asks_one_of_ours_is_named_itself() -> None:
    def first_layer(request: PlanRequest) -> Decision:
        return optimal(replace(request, forbid_layers=("2",)))

    made = plan(subject(), budget="1MB", strategy=first_layer)
    assert set(made.quotas()) == {"0"}
    assert made.strategy == "first_layer"


def deciding(quotas: dict[str, Any], **more: Any) -> Function:
    return lambda request: Decision(updates=replace(request.updates(quotas), **more), strategy="mine")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda _request: {"0": 1}, "expected a Decision, got dict; return Decision("),
        (lambda request: Decision(updates=request.updates({}), strategy="mine"), "nothing beside the head"),
        (deciding({"2": 1.6}), "expected whole numbers of channels, got 1.6 of 2; round down with int()"),
        (deciding({"2": True}), "got True of 2"),
        (deciding({"2": 1}, full=frozenset()), "trains nothing in full, expected the head, 6; make updates with"),
        (deciding({"2": 9}), "layer 2: expected a quota of 0 to 8 channels, got 9"),
        (deciding({"7": 1}), "'7', which the model does not have"),
    ],
)
def test_a_decision_that_can_not_be_carried_out_is_refused(function: Function, words: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(subject(), budget="1MB", strategy=function)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"method": "wheel"}, "sampling.method: Input should be 'uniform', 'weighted'"),
        ({"method": "fixed", "channels": {"2": (0, 5, 6)}}, "2: expected as many different channels as its quota"),
        ({"wheel": 1}, "sampling.wheel: Extra inputs are not permitted"),
    ],
)
def test_draws_that_a_plan_can_not_have_are_refused(sampling: dict[str, Any], words: str) -> None:
    def drawing(request: PlanRequest) -> Decision:
        return Decision(updates=request.updates({"2": 2}), strategy="drawing", sampling=sampling)

    with pytest.raises(InputError, match="strategy drawing: ") as caught:
        plan(subject(), budget="1MB", strategy=drawing)
    assert words in caught.value.message


def test_a_function_may_choose_the_channels_for_good() -> None:
    def chosen(request: PlanRequest) -> Decision:
        return Decision(
            updates=request.updates({"2": 2}),
            strategy="chosen",
            sampling={"method": "fixed", "channels": {"2": (0, 5)}},
        )

    made = plan(subject(), budget="1MB", strategy=chosen)
    assert [planned_draws(made)(interval) for interval in range(2)] == [{"2": [0, 5]}] * 2


def test_a_decision_above_the_budget_is_refused() -> None:
    budget = smallest_bytes()
    needed = plan(subject(), budget="1MB", strategy=deciding({"0": 3, "2": 8})).predicted.training_bytes
    with pytest.raises(InputError, match=rf"its updates need {needed:,} B \(scope training\) of {budget:,} B; ask "):
        plan(subject(), budget=budget, strategy=deciding({"0": 3, "2": 8}))
    roomy = int(needed * 1.05)  # without the margin it would fit
    with pytest.raises(InputError, match="its updates need"):
        plan(subject(), budget=roomy, strategy=deciding({"0": 3, "2": 8}), request={"margin_ratio": 0.1})


def test_a_decision_that_breaks_another_demand_is_refused() -> None:
    with pytest.raises(ContradictionError) as caught:
        plan(subject(), budget="1MB", strategy=deciding({"0": 1}), request={"forbid_layers": ("0",)})
    assert caught.value.demands[1] == "--forbid-layer 0"


def test_every_draw_is_checked_and_needs_update_mode_fused() -> None:
    def drawing(request: PlanRequest) -> Decision:
        draws = (request.updates({"0": 1}), request.updates({"0": 3, "2": 8}))
        quotas = tuple(dict(updates.quotas) for updates in draws)
        return Decision(
            updates=draws[0], strategy="drawing", draws=draws, sampling={"pool": ("0", "2"), "draws": quotas}
        )

    made = plan(subject(), budget="1MB", strategy=drawing)
    assert [made.quotas(i) for i in range(3)] == [{"0": 1}, {"0": 3, "2": 8}, {"0": 1}]
    with pytest.raises(InputError, match="its updates need"):
        plan(subject(), budget=made.predicted.training_bytes - 1, strategy=drawing)
    with pytest.raises(InputError, match="has draws of its own"):
        DrawOptions(sampling="static").applied(made, None)
    with pytest.raises(InputError, match="needs update mode fused"):
        plan(subject(), budget="1MB", strategy=drawing, optimizer="adam")


def test_what_a_function_raises_reaches_its_author() -> None:
    with pytest.raises(ZeroDivisionError):
        plan(subject(), budget="1MB", strategy=lambda _request: 1 // 0)  # type: ignore[arg-type,return-value]


def test_read_strategy_knows_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    assert read_strategy("greedy") == "greedy"
    made = plan(subject(), budget="1MB", strategy=f"{tmp_path}/mine.py:equal_shares")
    assert made == plan(subject(), budget="1MB", strategy=equal_shares)
    for spec, words in (
        ("best", "choose one of optimal, greedy"),
        (f"{tmp_path}/mine.py:worst", "it has Decision, fits"),
        (f"{tmp_path}/mine.py:LIMIT", "not a function to call"),
        (f"{tmp_path}/theirs.py:equal_shares", "there is no file"),
    ):
        with pytest.raises(InputError) as caught:
            chosen_strategy(spec)
        assert "strategy" in caught.value.message
        assert words in caught.value.message


def test_the_command_line_takes_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    make_plan("plan.json", "--strategy", "mine.py:equal_shares")
    made = Plan.load("plan.json")
    assert made.strategy == "equal-shares"
    assert 0 < made.predicted.training_bytes <= made.budget_bytes
    assert done("verify", "plan.json", "--json").json["ok"]
    curve = done("plan", MODEL, *BATCH, "--budgets", "40kB,80kB", "--strategy", "mine.py:equal_shares", "--json").json
    assert curve["strategy"] == "equal-shares"
    command = ("plan", MODEL, *BATCH, "--budget", "40kB", "--strategy")
    assert_refused(tmp_path, (*command, "mine.py:clumsy"), "mine.py:clumsy", "ZeroDivisionError")
    assert_refused(tmp_path, (*command, "mine.py:greedy_hands"), "its updates need", "of 40,000 B")
    assert_refused(tmp_path, (*command, "mine.py:absent"), "'absent'", "equal_shares")
    assert_refused(
        tmp_path, ("plan", MODEL, *BATCH, "--budget", "1kB", "--strategy", "mine.py:equal_shares"),
        "one channel of every layer", code=3,
    )  # fmt: skip
