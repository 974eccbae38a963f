"""`medyate plan --check`: a plan that a person edited, against the memory model and a real step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import (
    BATCH,
    BUDGET_BYTES,
    DATA,
    MODEL,
    assert_refused,
    cli,
    done,
    make_plan,
    write_images,
    write_sources,
)

from medyate_planner.planning.plan import Plan

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan without importance, one with, one in each other scope, one with an optimizer, one with draws."""
    folder = tmp_path_factory.mktemp("checked")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        make_plan("plain.json", "--metric", "raw")
        make_plan("measured.json", "--importance", "imp.safetensors")
        make_plan("update.json", "--scope", "update", "--margin", "10%", "--norm-scales")
        make_plan("peak.json", "--scope", "peak", "--weights-in", "flash", budget="120kB")
        make_plan("adam.json", "--optimizer", "adamw", "--accumulation", "2")
        make_plan("drawn.json", "--strategy", "trady", "--intervals", "3")
        make_plan("parts.json", "--head-by-channels", "--objective", "energy")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def edited(name: str, edit: Edit) -> str:
    """The plan as a person leaves it; returns the name of the new file."""
    data = json.loads(Path(name).read_text())
    edit(data)
    Path("edited.json").write_text(json.dumps(data, indent=2))
    return "edited.json"


def layer(data: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in data["layers"] if entry["name"] == name)
    return found


PLANS = ("plain", "measured", "update", "peak", "adam", "drawn", "parts")


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.usefixtures("folder")
def test_nothing_is_stale_in_a_plan_as_it_was_made(name: str) -> None:
    result = done("plan", "--check", f"{name}.json", "--json").json
    assert result["stale"] == []
    assert result["ok"] is True
    assert result["objective_checked"] is True
    assert result["needed_bytes"] <= result["limit_bytes"] <= result["budget_bytes"]


@pytest.mark.parametrize("name", ["plain", "measured", "update", "peak", "adam"])
@pytest.mark.usefixtures("folder")
def test_a_smaller_plan_is_corrected_and_then_proved_by_a_real_step(name: str) -> None:
    def shrink(data: dict[str, Any]) -> None:
        bought = [entry for entry in data["layers"] if not entry["head"]]
        largest = max(bought, key=lambda entry: entry["quota"])
        largest["quota"] -= 1
        data["biases"] = data["biases"][1:]

    file = edited(f"{name}.json", shrink)
    before = Path(file).read_bytes()
    found = done("plan", "--check", file, "-o", "new.json", "--json").json
    assert Path(file).read_bytes() == before
    assert {"predicted.update_bytes", "objective", "status"} <= {s["key"] for s in found["stale"]}
    corrected = Plan.load("new.json")
    assert corrected.status == "feasible"
    assert (corrected.objective_bound, corrected.gap_ratio) == (None, 1.0)
    written = json.loads(before)["predicted"]
    for entry in found["stale"]:
        if entry["key"].startswith("predicted."):
            key = entry["key"].removeprefix("predicted.")
            assert (entry["written"], entry["recomputed"]) == (written[key], getattr(corrected.predicted, key))
    again = done("plan", "--check", "new.json", "--json").json
    assert again["stale"] == []
    assert done("verify", "new.json").code == 0


@pytest.mark.usefixtures("folder")
def test_an_edited_plan_has_the_figures_of_the_same_plan_from_the_planner() -> None:
    make_plan("smaller.json", "--metric", "raw", "--forbid-layer", "stem.0", "--no-biases")
    wanted = Plan.load("smaller.json")
    names = {entry.name: entry.quota for entry in wanted.layers}

    def as_wanted(data: dict[str, Any]) -> None:
        data["layers"] = [entry for entry in data["layers"] if entry["name"] in names]
        for entry in data["layers"]:
            entry["quota"] = names[entry["name"]]
        assert {entry["name"] for entry in data["layers"]} == set(names)
        data["biases"] = []

    done("plan", "--check", edited("plain.json", as_wanted), "-o", "new.json")
    corrected = Plan.load("new.json")
    assert corrected.predicted == wanted.predicted
    assert corrected.objective == pytest.approx(wanted.objective, rel=1e-9)


@pytest.mark.usefixtures("folder")
def test_a_plan_above_its_budget_says_by_how_much_and_is_not_written() -> None:
    def fill(data: dict[str, Any]) -> None:
        for entry in data["layers"]:
            entry["quota"] = entry["channels"]

    file = edited("plain.json", fill)
    result = cli("plan", "--check", file, "-o", "new.json", "--json")
    assert result.code == 1
    found = result.json
    assert found["over_bytes"] == found["needed_bytes"] - BUDGET_BYTES > 0
    assert not Path("new.json").exists()
    text = cli("plan", "--check", file)
    assert text.code == 1
    assert f"FAILED: the plan needs {found['needed_bytes']:,} B" in text.out
    assert f"{found['over_bytes']:,} B above {BUDGET_BYTES:,} B" in text.out
    trained = cli("train", file, *DATA, "--epochs", "1", "--out", "run")
    assert trained.code == 2
    assert f"needs {found['needed_bytes']:,} B" in trained.err


@pytest.mark.usefixtures("folder")
def test_the_budget_can_be_edited_and_its_margin_counts() -> None:
    needed = done("plan", "--check", "update.json", "--json").json["needed_bytes"]
    just, less = -(-needed * 11 // 10), needed * 11 // 10 - 1
    enough = done("plan", "--check", edited("update.json", lambda d: d.update(budget_bytes=just)), "--json").json
    assert (enough["stale"], enough["over_bytes"]) == ([], 0)
    result = cli("plan", "--check", edited("update.json", lambda d: d.update(budget_bytes=less)), "--json")
    assert result.code == 1
    assert 0 < result.json["over_bytes"] <= 2


@pytest.mark.usefixtures("folder")
def test_a_limit_on_operations_is_checked_too() -> None:
    flops = json.loads(Path("plain.json").read_text())["predicted"]["flops"]
    assert done("plan", "--check", edited("plain.json", lambda d: d.update(max_flops=flops))).code == 0
    result = cli("plan", "--check", edited("plain.json", lambda d: d.update(max_flops=flops - 1)))
    assert result.code == 1
    assert "1 above max_flops" in result.out


@pytest.mark.usefixtures("folder")
def test_stale_lines_are_listed_for_a_person() -> None:
    out = done("plan", "--check", edited("plain.json", lambda d: d["predicted"].update(saved_bytes=1))).out
    line = next(line for line in out.splitlines() if line.startswith("predicted.saved_bytes"))
    assert line.split()[1] == "1"
    assert "status" in out
    assert "OK: the plan needs" in out


def test_without_its_importance_a_plan_is_checked_but_not_corrected(folder: Path) -> None:
    Path("imp.safetensors").unlink()
    result = done("plan", "--check", "measured.json", "--json")
    assert "the objective is not recomputed" in result.err
    assert result.json["objective_checked"] is False
    assert result.json["stale"] == []
    assert_refused(
        folder, ("plan", "--check", "measured.json", "-o", "new.json"), "imp.safetensors", "--importance FILE"
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            lambda d: layer(d, "project").update(name="projct"), ("'projct'", "did you mean project"), id="name"
        ),
        pytest.param(lambda d: layer(d, "project").update(quota=17), ("quota 17", "expected 1 to 16"), id="quota"),
        pytest.param(lambda d: layer(d, "project").update(quota=0), ("quota", "got 0"), id="quota of 0"),
        pytest.param(lambda d: layer(d, "project").update(channels=99), ("project has 16 channels",), id="channels"),
        pytest.param(lambda d: layer(d, "fc").update(quota=3), ("fc", "the head has all"), id="part of the head"),
        pytest.param(lambda d: d["layers"].pop(), ("head (fc) is missing", "put it back"), id="no head"),
        pytest.param(lambda d: d["layers"].append(d["layers"][0]), ("listed twice",), id="twice"),
        pytest.param(lambda d: d["biases"].append("nobody"), ("nobody", "no bias"), id="bias"),
        pytest.param(lambda d: d["biases"].append(d["biases"][0]), ("listed twice",), id="bias twice"),
        pytest.param(lambda d: d.update(budget="1MB"), ("budget", "extra"), id="unknown key"),
        pytest.param(lambda d: d.update(budget_bytes="1MB"), ("budget_bytes", "got '1MB'"), id="budget as text"),
    ],
)
def test_a_bad_edit_is_one_line(folder: Path, edit: Edit, words: tuple[str, ...]) -> None:
    file = edited("plain.json", edit)
    assert_refused(folder, ("plan", "--check", file), *(word for word in words if word != "extra"))


@pytest.mark.parametrize("more", [(MODEL,), ("--budget", "1MB"), ("--budgets", "1MB,2MB"), ("--plans", "here")])
def test_check_takes_model_and_budget_from_the_plan_alone(folder: Path, more: tuple[str, ...]) -> None:
    assert_refused(folder, ("plan", "--check", "plain.json", *more), "--check reads model and budget from the plan")


def test_an_existing_file_is_not_overwritten(folder: Path) -> None:
    assert_refused(folder, ("plan", "--check", "plain.json", "-o", "adam.json"), "adam.json exists", "--force")


def test_every_field_of_the_schema_is_described() -> None:
    schema = done("schema", "plan").json
    for name in ("Plan", "PlannedModel", "ModelInput", "PlannedLayer", "Predicted", "Sampling", "ImportanceRef"):
        fields = (schema if name == "Plan" else schema["$defs"][name])["properties"]
        assert [field for field, facts in fields.items() if not facts.get("description")] == [], name
