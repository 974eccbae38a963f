"""Frontiers, explanations and differences through the command line: what is written, shown, and refused."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_helpers import BATCH, MODEL, Done, assert_refused, done, make_plan, write_sources

from medyate_planner.cli.frontier import check_frontier, run_frontier
from medyate_planner.cli.options import ModelOptions, OutputOptions, load, make_subject
from medyate_planner.errors import InputError
from medyate_planner.planning.explain import explain
from medyate_planner.planning.plan import Plan, Sampling
from medyate_planner.planning.strategies import optimal

BUDGETS = "1kB:60kB:5"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the tiny network."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    return tmp_path


def run(*, output: str | None = None, plans: str | None = None, out: OutputOptions | None = None) -> Done:
    """What `medyate plan --budgets` does once the model is loaded."""
    options = ModelOptions(batch_size=4)
    loaded = load(MODEL, options)
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = run_frontier(
            make_subject(loaded, options), loaded, {}, "optimal", BUDGETS, None if output is None else Path(output),
            None if plans is None else Path(plans), Sampling(), {"spec": MODEL}, None, None, out or OutputOptions(),
        )  # fmt: skip
    return Done(code=code, out=stdout.getvalue(), err=stderr.getvalue())


@pytest.mark.parametrize("ending", [".json", ".csv", ".png", ".svg", ".html"])
def test_frontier_is_written_by_its_ending(ending: str) -> None:
    result = run(output=f"out/frontier{ending}")
    assert result.code == 0
    assert result.err == f"wrote out/frontier{ending}\n"
    assert "5 budgets" in result.out
    assert len(Path(f"out/frontier{ending}").read_bytes()) > 100
    with pytest.raises(InputError, match="--force"):
        run(output=f"out/frontier{ending}")
    run(output=f"out/frontier{ending}", out=OutputOptions(force=True))


def test_frontier_file_is_what_json_prints_and_show_reads() -> None:
    made = run(output="frontier.json", out=OutputOptions(json=True)).json
    assert made == json.loads(Path("frontier.json").read_text()) == done("show", "frontier.json", "--json").json
    schema = done("schema", "frontier").json
    jsonschema.validate(made, schema, cls=jsonschema.Draft202012Validator)
    shown = done("show", "frontier.json").out
    for point in made["points"]:
        assert f"{point['budget_bytes']:,}" in shown
        if point["feasible"]:
            assert f"{point['used_bytes']:,}" in shown
    assert f"{made['minimum_bytes']:,} B" in shown


def test_frontier_plans_are_certified_files_of_each_feasible_budget() -> None:
    points = run(plans="plans", out=OutputOptions(json=True)).json["points"]
    feasible = [point for point in points if point["feasible"]]
    assert len(feasible) < len(points)
    files = sorted(path.name for path in Path("plans").iterdir())
    assert files == sorted(f"plan-{point['budget_bytes']}B.json" for point in feasible)
    for point in feasible:
        plan = Plan.load(Path("plans") / f"plan-{point['budget_bytes']}B.json")
        assert (plan.budget_bytes, plan.objective) == (point["budget_bytes"], point["objective"])
        assert plan.used_bytes == point["used_bytes"]
    done("verify", f"plans/{files[0]}")


@pytest.mark.parametrize(
    ("budgets", "output", "plans", "words"),
    [
        ("1kB:2kB", None, None, "three parts"),
        (BUDGETS, "frontier.txt", None, "ends in"),
        (BUDGETS, None, "tiny.py", "folder"),
        (BUDGETS, None, "made", "--force"),
    ],
)
def test_check_frontier_refuses_before_any_work(
    budgets: str, output: str | None, plans: str | None, words: str
) -> None:
    Path("made").mkdir()
    Path("made/plan-1000B.json").touch()
    with pytest.raises(InputError, match=words) as caught:
        check_frontier(budgets, output and Path(output), plans and Path(plans), force=False)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message


def test_damaged_frontier_is_one_line(folder: Path) -> None:
    run(output="frontier.json")
    data = json.loads(Path("frontier.json").read_text())
    data["points"][-1]["used_bytes"] = None
    Path("frontier.json").write_text(json.dumps(data))
    assert_refused(folder, ["show", "frontier.json"], "frontier.json", "medyate plan --budgets")


def test_diff_of_two_plans_is_the_same_in_text_and_json() -> None:
    make_plan("a.json")
    make_plan("b.json", budget="60kB")
    text = done("show", "--diff", "a.json", "b.json").out
    data: dict[str, Any] = done("show", "--diff", "a.json", "b.json", "--json").json
    a, b = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert [s["name"] for s in data["settings"]] == ["budget_bytes"]
    training = next(figure for figure in data["figures"] if figure["name"] == "training_bytes")
    assert training["a"] == a["predicted"]["training_bytes"]
    assert training["change"] == b["predicted"]["training_bytes"] - a["predicted"]["training_bytes"]
    assert f"{training['change']:+,}" in text
    for layer in data["layers"]:
        assert layer["name"] in text


def test_diff_refuses_what_can_not_be_compared(folder: Path) -> None:
    make_plan("a.json")
    done("report", MODEL, *BATCH, "-o", "r.json")
    assert_refused(folder, ["show", "--diff", "a.json", "r.json"], "one kind")
    assert_refused(folder, ["show", "--diff", "a.json"], "--diff")
    assert_refused(folder, ["show", "--diff", "a.json", "none.json"], "no such file")
    assert_refused(folder, ["show", "--diff", "a.json", "."], "plans, frontiers or reports")
    assert_refused(folder, ["show", "a.json", "--diff", "a.json", "a.json"], "or two to --diff")
    assert_refused(folder, ["show"], "pass a file")


def test_show_prints_the_explanation_that_a_plan_holds() -> None:
    from medyate_planner.api import plan, request_of

    options = ModelOptions(batch_size=4)
    subject = make_subject(load(MODEL, options), options)
    made = plan(subject, None, 40_000, explain=True)
    made.save("plan.json")
    asked = request_of(subject, None, 40_000, {})
    assert made.explanation == explain(asked, optimal(asked)) == Plan.load("plan.json").explanation
    text = done("show", "plan.json").out
    assert text.count("Why each layer is in or out") == 1
    assert done("show", "plan.json", "--json").json["explanation"]["units"]
    plain = plan(subject, None, 40_000)
    assert plain.explanation is None
    plain.save("plain.json")
    assert "Why each layer" not in done("show", "plain.json").out


def test_plan_traces_the_frontier_and_explains() -> None:
    made = done("plan", MODEL, *BATCH, "--budgets", BUDGETS, "--plans", "plans", "-o", "frontier.json", "--json").json
    assert made == json.loads(Path("frontier.json").read_text()) == run(out=OutputOptions(json=True)).json
    assert len(list(Path("plans").iterdir())) == sum(point["feasible"] for point in made["points"])
    text = done("plan", MODEL, *BATCH, "--budget", "40kB", "--explain").out
    assert text.count("Why each layer is in or out") == 1
    explained = done("plan", MODEL, *BATCH, "--budget", "40kB", "--explain", "--json").json["explanation"]
    assert all(unit["name"] in text for unit in explained["units"] if unit["reason"] != "no_value")
