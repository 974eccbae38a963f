"""What differs between two files: settings, figures, layers; the same data in text and JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from example_report import example_report
from rich.console import Console
from torch import nn

from medyate_planner import frontier, plan
from medyate_planner.errors import InputError
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.difference import Difference, difference_of
from medyate_planner.reporting.difference_text import render_difference
from medyate_planner.reporting.frontier_view import FrontierReport


def model(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )


def planned(budget: str, width: int = 4, **options: Any) -> Plan:
    made, x = model(width), torch.zeros(2, 3, 8, 8)
    made(x)
    return plan(made, x, budget, **options)


@pytest.fixture(scope="module")
def small() -> Plan:
    return planned("6kB")


@pytest.fixture(scope="module")
def large() -> Plan:
    return planned("20kB", strategy="full", request={"objective": "energy"})


def text_of(found: Difference) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in render_difference(found, "a.json", "b.json"):
        console.print(part)
    return console.export_text()


def test_a_plan_differs_in_nothing_from_itself(small: Plan) -> None:
    found = difference_of(small, small)
    assert found.same_model
    assert (found.notes, found.settings, found.layers) == ((), (), ())
    assert all(figure.change == 0 for figure in found.figures)
    assert "all settings are the same" in text_of(found)
    assert "the same layers" in text_of(found)


def test_settings_figures_and_layers_of_two_plans(small: Plan, large: Plan) -> None:
    found = difference_of(small, large)
    settings = {setting.name: (setting.a, setting.b) for setting in found.settings}
    assert settings == {
        "budget_bytes": ("6,000", "20,000"),
        "strategy": ("optimal", "full"),
        "objective_name": ("projection", "energy"),
    }
    figures = {figure.name: figure for figure in found.figures}
    assert figures["training_bytes"].a == small.predicted.training_bytes
    assert figures["training_bytes"].b == large.predicted.training_bytes
    for figure in found.figures:
        assert figure.a is not None
        assert figure.b is not None
        assert figure.change == figure.b - figure.a
    before = {layer.name: layer.quota for layer in small.layers}
    after = {layer.name: layer.quota for layer in large.layers}
    layers = {layer.name: layer for layer in found.layers}
    for name in {*before, *after}:
        if before.get(name) == after.get(name):
            assert name not in layers
        else:
            assert (layers[name].a, layers[name].b) == (before.get(name, 0), after.get(name, 0))
    assert {layer.change for layer in found.layers} <= {"enters", "leaves", "quota"}
    assert set(found.biases_entering) == set(large.biases) - set(small.biases)
    assert set(found.biases_leaving) == set(small.biases) - set(large.biases)


def test_a_difference_turned_around_changes_every_sign(small: Plan, large: Plan) -> None:
    there, back = difference_of(small, large), difference_of(large, small)
    assert [f.change for f in there.figures] == [-(f.change or 0) for f in back.figures]
    assert there.biases_entering == back.biases_leaving
    turned = {"enters": "leaves", "leaves": "enters", "quota": "quota"}
    assert {x.name: turned[x.change] for x in there.layers} == {x.name: x.change for x in back.layers}


def test_plans_of_different_models_are_compared_by_name(small: Plan) -> None:
    found = difference_of(small, planned("6kB", width=6))
    assert not found.same_model
    assert "different models" in found.notes[0]
    assert "different models" in text_of(found)
    assert found.layers


def test_json_is_plain_and_says_what_it_is(small: Plan, large: Plan) -> None:
    data = json.loads(json.dumps(difference_of(small, large).to_dict(), allow_nan=False))
    assert (data["kind"], data["of"], data["same_model"]) == ("difference", "plan", True)
    assert data["settings"][0].keys() == {"name", "a", "b"}
    assert data["figures"][0].keys() == {"name", "unit", "a", "b", "change"}


def test_a_plan_that_draws_layers_anew_is_compared(small: Plan) -> None:
    drawn = planned("6kB", strategy="trady")
    found = difference_of(small, drawn)
    assert any(layer.b is None for layer in found.layers)
    assert "drawn" in text_of(found)


def _frontier(**options: Any) -> FrontierReport:
    made, x = model(), torch.zeros(2, 3, 8, 8)
    made(x)
    return frontier(made, x, "5kB,10kB,20kB", **options)


def test_frontiers_are_compared_budget_by_budget() -> None:
    one, two = _frontier(), _frontier(strategy="greedy", request={"objective": "energy"})
    found = difference_of(one, two)
    values = {figure.name: figure for figure in found.figures}
    assert values["value at 10,000 B"].a == one.points[1].objective
    assert values["value at 10,000 B"].b == two.points[1].objective
    assert {setting.name for setting in found.settings} == {"strategy", "objective_name"}
    assert "one objective" in found.notes[0]
    assert "value at 5,000 B" in text_of(found)
    assert difference_of(one, one).notes == ()


def test_reports_are_compared_by_their_figures() -> None:
    one, two = example_report(), example_report(blocks=3)
    found = difference_of(one, two)
    figures = {figure.name: figure for figure in found.figures}
    assert figures["full: saved_bytes"].a == one.full.saved_bytes
    assert figures["full: live_peak_bytes"].b == two.full.live_peak_bytes
    names = [figure.name for figure in found.figures]
    assert len(set(names)) == len(names)
    assert "full: saved_bytes" in text_of(found)


def test_files_of_different_kinds_are_refused(small: Plan) -> None:
    with pytest.raises(InputError, match="got a plan and a report"):
        difference_of(small, example_report())
