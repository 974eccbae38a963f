"""report.json against its schema: the committed one, the printed one, and what a broken file is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from cli_helpers import cli
from example_report import example_report
from oddities import Answers, Named
from torch import nn

from medyate_planner import plan, report
from medyate_planner.bench.matrix import read_matrix, tomllib
from medyate_planner.errors import InputError
from medyate_planner.reporting.report_text import render_report
from medyate_planner.reporting.view import MemoryReport, read_report

REPORTS_FOLDER = Path(__file__).parents[2] / "reports"
COMMITTED = REPORTS_FOLDER / "report.schema.json"
MATRIX = REPORTS_FOLDER / "bench" / "mobile.toml"


def _schema() -> dict[str, Any]:
    return cli("schema", "report").json


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def _with_everything() -> MemoryReport:
    model, x = _model(), torch.zeros(2, 3, 8, 8)
    decided = plan(model, x, budget="20kB")
    return report(
        model, x, plan=decided, optimizer="adamw", norm="train", autocast="bfloat16", accumulation=2,
        train=("0.*", "4.*"), budget="1MB", measure=True,
    )  # fmt: skip


REPORTS: dict[str, Callable[[], MemoryReport]] = {
    "plain": lambda: report(_model(), torch.zeros(2, 3, 8, 8)),
    "everything": _with_everything,
    "uncapturable": lambda: report(Answers(), torch.zeros(2, 6)),
    "named_inputs": lambda: report(Named(), {"tokens": torch.zeros(2, 7, dtype=torch.int64), "mask": torch.ones(2, 7)}),
    "by_hand": lambda: example_report(hostile=True),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_valid_and_reads_back(name: str) -> None:
    schema, made = _schema(), REPORTS[name]()
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    jsonschema.validate(data, schema, cls=jsonschema.Draft202012Validator)
    assert read_report(data, where="here") == made


def test_the_committed_schema_is_what_the_command_prints() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == cli("schema", "report").out


def test_the_schema_refuses_what_the_reader_refuses() -> None:
    good = REPORTS["plain"]().to_dict()
    for change in (
        lambda data: data.pop("steps"),
        lambda data: data.update(extra=1),
        lambda data: data.update(schema_version=1),
        lambda data: data["full"].update(saved_bytes="many"),
        lambda data: data["steps"][0].update(name="dream"),
    ):
        data = copy.deepcopy(good)
        change(data)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, _schema(), cls=jsonschema.Draft202012Validator)
        with pytest.raises(InputError, match=r"here: .*medyate report"):
            read_report(data, where="here")


@lru_cache
def _plain() -> str:
    return json.dumps(REPORTS["plain"]().to_dict())


def _line(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["steps"][1]["timeline"]
    return found


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "peak_index beyond the end": lambda data: _line(data).update(peak_index=10**6),
    "peak_index not at the peak": lambda data: _line(data).update(peak_index=0),
    "a column too short": lambda data: _line(data)["module"].pop(),
    "an amount missing": lambda data: _line(data)["live_bytes"][_line(data)["peak_index"]].pop(),
    "an unknown category": lambda data: _line(data)["categories"].__setitem__(0, "aether"),
    "a category twice": lambda data: _line(data)["categories"].__setitem__(0, _line(data)["categories"][1]),
    "a negative amount": lambda data: _line(data)["live_bytes"][0].__setitem__(0, -1),
    "a measurement of a step that is not there": lambda data: data.update(
        measured=[{"step": "plan", "name": "saved", "predicted_bytes": 1, "measured_bytes": 1}]
    ),
    "the same step twice": lambda data: data["steps"].append(data["steps"][1]),
    "no step at all": lambda data: data.update(steps=[]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_whose_parts_do_not_fit_together_is_refused(name: str) -> None:
    data = json.loads(_plain())
    BROKEN[name](data)
    with pytest.raises(InputError):
        list(render_report(read_report(data, where="here")))


def test_an_unknown_kind_of_schema_is_refused() -> None:
    result = cli("schema", "run")
    assert result.code == 2
    assert "report, plan, frontier, matrix, bench or results" in result.err


@pytest.mark.parametrize("kind", ["matrix", "bench", "results"])
def test_every_field_of_a_benchmark_is_described(kind: str) -> None:
    schema = cli("schema", kind).json
    jsonschema.Draft202012Validator.check_schema(schema)
    parts = {"": schema, **schema["$defs"]}
    fields = {
        f"{part}.{name}": facts for part, found in parts.items() for name, facts in found.get("properties", {}).items()
    }
    assert len(fields) > 20
    assert [name for name, facts in fields.items() if not facts.get("description")] == []
    assert ".folder" not in fields


def test_the_matrix_schema_takes_our_matrix_and_refuses_what_the_reader_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = cli("schema", "matrix").json
    text = MATRIX.read_text(encoding="utf-8")
    monkeypatch.setenv("MEDYATE_ASSETS", "here")
    jsonschema.validate(tomllib.loads(text), schema, cls=jsonschema.Draft202012Validator)
    assert read_matrix(MATRIX).name == "mobile networks"
    for old, new in (
        ("epochs = 4", "epochs = 0"),
        ("epochs = 4", "epoch = 4"),
        ("of_full = 0.01", "of_full = 2"),
        ('kind = "full"', 'kind = "whole"'),
        ('strategy = "head-only"', 'strategy = "heads-only"'),
        ('chosen_by = "optimal"', ""),
        ("aim = 0.99", "aim = 0"),
        ('name = "optimal"', 'name = "two words"'),
    ):
        assert old in text
        (tmp_path / "wrong.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text.replace(old, new, 1)), schema, cls=jsonschema.Draft202012Validator)
        with pytest.raises(InputError):
            read_matrix(tmp_path / "wrong.toml")
