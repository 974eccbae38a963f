"""`medyate report`, `schema` and `show report.json` through the command line: every option, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_helpers import MODEL, Done, assert_one_line, assert_refused, cli, done, snapshot, write_sources

from medyate_planner import survey

HOSTILE = """
import torch
from torch import nn


class Cell(nn.Linear):
    pass


Cell.__name__ = "=cmd|' /C calc'!A0"


class Escape(nn.Linear):
    pass


Escape.__name__ = "\\x1b[2J\\u202eknil"
NAMES = ("=1+1", "@SUM(A1)", "-2+3", "+1", "<script>alert(1)</script>", "[bold]", "[/x]", "\\x1b]0;owned\\x07")


class Hostile(nn.Module):
    input_shape = (4,)

    def __init__(self):
        super().__init__()
        self.cell, self.escape = Cell(4, 4), Escape(4, 4)
        for name in NAMES:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


def factory():
    torch.manual_seed(0)
    return Hostile()

"""
ARGUMENTS = ("report", MODEL, "--batch-size", 4)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u2028\u2029\u202a-\u202e]")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the tiny network and a hostile one."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    (tmp_path / "hostile.py").write_text(HOSTILE)
    return tmp_path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the tiny network as JSON."""
    place = tmp_path_factory.mktemp("plain")
    write_sources(place)
    return done("report", f"{place / MODEL}", "--batch-size", 4, "--json").out


def _json(*options: object) -> Any:
    return done(*ARGUMENTS, *options, "--json").json


def _shell(*arguments: object, **variables: str) -> Done:
    """Run `medyate` in a process of its own, with environment variables."""
    command = [sys.executable, "-m", "medyate_planner", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**kept, "OMP_NUM_THREADS": "1", **variables},
        timeout=600,
        check=False,
    )
    return Done(code=result.returncode, out=result.stdout, err=result.stderr)


def test_json_is_a_report_of_the_named_model() -> None:
    data = _json()
    assert (data["kind"], data["model"]["spec"], data["batch_size"], data["dtype"]) == ("report", MODEL, 4, "float32")
    assert data["regime"] == {
        "optimizer": "sgd", "norm": "frozen", "autocast": None, "accumulation": 1, "mode": "eval", "train": [],
    }  # fmt: skip
    jsonschema.validate(data, done("schema", "report").json, cls=jsonschema.Draft202012Validator)
    assert [step["name"] for step in data["steps"]] == ["inference", "full", "lean_full"]


def test_every_option_of_the_regime_changes_what_it_should() -> None:
    plain = _json()["full"]
    adam, norm = _json("--optimizer", "adamw")["full"], _json("--norm", "train")["full"]
    mixed, summed = _json("--autocast", "bfloat16")["full"], _json("--accumulation", 3)["full"]
    head, half = _json("--train", "fc.*", "*.bias")["full"], _json("--dtype", "bfloat16")
    assert adam["optimizer_bytes"] > 2 * plain["gradients_bytes"]
    assert norm["saved_bytes"] > plain["saved_bytes"]
    assert mixed["saved_bytes"] != plain["saved_bytes"]
    assert mixed["weights_bytes"] == plain["weights_bytes"]
    assert summed["training_bytes"] > plain["training_bytes"]
    assert head["gradients_bytes"] < plain["gradients_bytes"]
    assert half["dtype"] == "bfloat16"
    assert half["full"]["gradients_bytes"] * 2 == plain["gradients_bytes"]
    twice = done("report", MODEL, "--batch-size", 8, "--json").json["full"]
    assert twice["saved_bytes"] > 1.9 * plain["saved_bytes"]
    larger = _json("--input-shape", "3x32x32")["full"]
    assert larger["saved_bytes"] > 3 * plain["saved_bytes"]


@pytest.mark.parametrize("ending", [".json", ".csv", ".html", ".png", ".svg"])
def test_each_ending_is_written_and_nothing_else(folder: Path, ending: str) -> None:
    before = set(snapshot(folder))
    result = done(*ARGUMENTS, "-o", f"out/report{ending}")
    assert result.out == ""
    assert f"wrote out/report{ending}" in result.err
    assert set(snapshot(folder)) - before == {"out", f"out/report{ending}"}
    content = Path(f"out/report{ending}").read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>", ".json": b"{", ".csv": b"module,"}
    assert content[:20].lower().startswith(starts[ending].lower())
    assert_refused(folder, [*ARGUMENTS, "-o", f"out/report{ending}"], "--force")
    done(*ARGUMENTS, "-o", f"out/report{ending}", "--force")
    assert Path(f"out/report{ending}").read_bytes() == content


def test_json_on_stdout_and_a_file_at_once() -> None:
    result = done(*ARGUMENTS, "-o", "report.json", "--json")
    assert result.json == json.loads(Path("report.json").read_text())


def _modules(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if "by module" in line)
    rows = []
    for line in lines[start + 2 :]:
        if not re.search(r"\d%\s*$", line):
            break
        rows.append(re.split(r"\s{2,}", line.strip())[0])
    return rows


def test_depth_and_sort_choose_and_order_the_modules() -> None:
    assert _modules(done(*ARGUMENTS, "--depth", 0).out) == ["(model)"]
    order = _modules(done(*ARGUMENTS, "--depth", 1).out)
    assert order == ["(model)", "stem", "expand", "depthwise", "project", "fc"]  # the pool holds nothing
    by_name = _modules(done(*ARGUMENTS, "--depth", 1, "--sort", "name").out)
    assert by_name[1:] == sorted(order[1:])
    deep = _modules(done(*ARGUMENTS, "--depth", 9).out)
    assert len(deep) > len(order)
    report = _json()
    for key in ("saved", "weights", "gradients", "optimizer", "total", "parameters"):
        found = _modules(done(*ARGUMENTS, "--depth", 1, "--sort", key).out)[1:]
        assert sorted(found) == sorted(order[1:])
        figure = key if key == "parameters" else f"{key}_bytes"
        amounts = [_rolled_up(report, name, figure) for name in found]
        assert amounts == sorted(amounts, reverse=True), key


def _rolled_up(report: Any, name: str, figure: str) -> int:
    parts = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes")
    below = [m for m in report["modules"] if m["path"] == name or m["path"].startswith(f"{name}.")]
    return sum(sum(m[part] for part in parts) if figure == "total_bytes" else m[figure] for m in below)


def test_budget_finds_the_largest_batch() -> None:
    result = _json("--budget", "500kB")
    assert [row["step"] for row in result["largest_batch"]] == ["inference", "full", "lean_full"]
    for row in result["largest_batch"]:
        assert row["live_peak_bytes"] <= row["budget_bytes"] == 500_000
    full = result["largest_batch"][1]
    for batch, fits in ((full["batch_size"], True), (full["batch_size"] + 1, False)):
        peak = done("report", MODEL, "--batch-size", batch, "--json").json["full"]["live_peak_bytes"]
        assert (peak <= 500_000) is fits
    assert "none" in done(*ARGUMENTS, "--budget", "1kB").out


def test_a_plan_is_reported_beside_the_others(folder: Path) -> None:
    done("plan", MODEL, "--batch-size", 4, "--budget", "40kB", "-o", "plan.json")
    predicted = json.loads(Path("plan.json").read_text())["predicted"]
    step = _json("--plan", "plan.json")["steps"][-1]
    assert step["name"] == "plan"
    for figure in ("saved_bytes", "training_bytes", "live_peak_bytes"):
        assert step[figure] == predicted[figure]
    assert_refused(folder, ["report", MODEL, "--batch-size", 2, "--plan", "plan.json"], "--batch-size 4")
    assert_refused(folder, ["report", "tiny.py:four", "--batch-size", 4, "--plan", "plan.json"], "plan")
    assert_refused(folder, [*ARGUMENTS, "--plan", "absent.json"], "absent.json")


def test_measure_exits_zero_where_figures_agree() -> None:
    result = done(*ARGUMENTS, "--measure", "--optimizer", "adam", "--norm", "train")
    assert "Predicted against measured" in result.out
    data = _json("--measure")
    assert len(data["measured"]) == 7
    assert all(row["predicted_bytes"] == row["measured_bytes"] for row in data["measured"])
    assert all(step["allocator_peak_bytes"] > 0 for step in data["steps"])


def test_measure_exits_one_where_a_figure_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = survey._measure

    def off_by_one(*arguments: Any) -> Any:
        steps, rows = real(*arguments)
        first = rows[0].model_copy(update={"measured_bytes": rows[0].measured_bytes + 1})
        return steps, (first, *rows[1:])

    monkeypatch.setattr(survey, "_measure", off_by_one)
    result = cli(*ARGUMENTS, "--measure")
    assert result.code == 1
    assert "+1" in result.out
    assert cli(*ARGUMENTS, "--measure", "--json").code == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--optimizer", "lion"), ("lion", "adamw")),
        (("--norm", "batch"), ("batch", "frozen")),
        (("--autocast", "int8"), ("int8", "bfloat16")),
        (("--accumulation", "0"), ("accumulation", "0")),
        (("--sort", "size"), ("size", "saved")),
        (("-o", "report.pdf"), ("report.pdf", ".html")),
        (("-o", "report"), ("report", ".html")),
        (("-o", "."), ("folder",)),
        (("--train", "nothing.*"), ("nothing.*", "fc.bias")),
        (("--budget", "12"), ("budget", "unit")),
        (("--budget", "0kB"), ("budget",)),
        (("--dtype", "int8"), ("int8",)),
        (("--input-shape", "4x16x16"), ("4",)),
        (("--depth", "deep"), ("deep",)),
        (("--loss", "hinge"), ("hinge",)),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(folder: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(folder, [*ARGUMENTS, *options], *words)


def test_options_are_checked_before_any_work(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def work(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a step was run")

    monkeypatch.setattr(survey, "dry_ordinary", work)
    for options in (("--budget", "12"), ("--optimizer", "lion"), ("--sort", "size"), ("--plan", "absent.json")):
        assert_refused(folder, [*ARGUMENTS, *options])


def test_no_colour_where_nobody_wants_it_or_sees_it() -> None:
    for variables in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        result = _shell(*ARGUMENTS, **variables)
        assert result.code == 0, result.err
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", result.out), variables


def test_columns_is_the_width_also_without_a_terminal() -> None:
    lines = _shell(*ARGUMENTS, COLUMNS="100").out.splitlines()
    too_wide = [line for line in lines if len(line.rstrip()) > 100]
    assert [line for line in too_wide if re.search(r"\d", line)] == []


def test_hostile_names_are_harmless_on_the_terminal() -> None:
    result = done("report", "hostile.py:factory", "--depth", 5)
    assert CONTROL.findall(result.out) == []
    assert CONTROL.findall(result.err) == []
    for name in ("=1+1", "<script>alert(1)</script>", "[bold]", "[/x]"):
        assert name in result.out


def test_hostile_names_are_harmless_in_every_file() -> None:
    for ending in ("csv", "html", "svg", "png", "json"):
        done("report", "hostile.py:factory", "-o", f"report.{ending}")
    rows = list(csv.reader(Path("report.csv").read_text().splitlines()))
    for cell in (cell for row in rows for cell in row):
        assert not cell.startswith(("=", "+", "-", "@")), cell
    for ending in ("csv", "svg", "json", "html"):
        text = Path(f"report.{ending}").read_text()
        assert CONTROL.findall(text) == [], ending
    assert "<script>alert" not in Path("report.html").read_text()
    assert "<script>alert" not in Path("report.svg").read_text()
    shown = done("show", "report.json")
    assert CONTROL.findall(shown.out) == []


def test_hostile_names_are_harmless_in_an_error() -> None:
    result = cli("report", "hostile.py:factory", "--train", "nothing")
    assert result.code == 2
    assert CONTROL.findall(result.err) == []


def test_a_report_is_short_unless_all_is_asked_for() -> None:
    short, whole = done(*ARGUMENTS), done(*ARGUMENTS, "--all")
    assert "Live memory over one step" in short.out
    assert whole.out.startswith(short.out)
    for heading in ("by module", "Layers: what one input channel costs", "Accountings"):
        assert heading not in short.out
        assert heading in whole.out
    assert "--all" in short.err
    assert "--all" not in whole.err


def test_show_prints_what_report_printed() -> None:
    text = done(*ARGUMENTS, "--all").out
    done(*ARGUMENTS, "-o", "report.json")
    assert done("show", "report.json").out == text
    assert done("show", "report.json", "--json").json == json.loads(Path("report.json").read_text())


def _spoil(data: Any, where: tuple[Any, ...], value: Any) -> None:
    *path, last = where
    for key in path:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize("value", ["[/x]", "\x1b[31mred", "[bold]"])
@pytest.mark.parametrize(
    "where",
    [
        ("steps", 0, "title"), ("layers", 0, "kind"), ("regime", "optimizer"), ("accountings", 0, "of"),
        ("accountings", 0, "unit"), ("model", "spec"), ("modules", 1, "kind"), ("modules", 1, "path"), ("dtype",),
        ("capture_error",), ("steps", 1, "timeline", "operator", 3),
    ],
    ids=str,
)  # fmt: skip
def test_show_survives_a_report_of_somebody_elses(plain: str, where: tuple[Any, ...], value: str) -> None:
    data = json.loads(plain)
    _spoil(data, where, value)
    Path("report.json").write_text(json.dumps(data))
    result = cli("show", "report.json")
    assert result.code in (0, 2), result.err
    assert CONTROL.findall(result.out + result.err) == []


def test_show_refuses_a_broken_report_in_one_line(folder: Path) -> None:
    data = _json()
    for where, value in (
        (("schema_version",), 1),
        (("full", "saved_bytes"), "many"),
        (("steps", 1, "timeline", "peak_index"), 10**6),
        (("steps", 1, "timeline", "module"), []),
    ):
        broken = json.loads(json.dumps(data))
        _spoil(broken, where, value)
        Path("report.json").write_text(json.dumps(broken))
        assert_refused(folder, ["show", "report.json"], "report.json")
    Path("report.json").write_text(json.dumps(data)[:-20])
    assert_refused(folder, ["show", "report.json"], "not complete JSON")


def test_schema_prints_json_schemas_of_our_files() -> None:
    for kind in ("report", "plan", "frontier", "matrix", "bench", "results"):
        jsonschema.Draft202012Validator.check_schema(done("schema", kind).json)
    result = cli("schema", "nonsense")
    assert result.code == 2
    assert_one_line(result, "report, plan, frontier, matrix, bench or results")
