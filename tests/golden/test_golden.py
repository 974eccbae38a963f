"""Reports of two tiny networks, as they were when somebody last looked at them, and sums that must hold in each file.

MEDYATE_UPDATE_GOLDEN=1 writes the files anew; a wrong table can not be blessed, because its parts must still sum up.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from medyate_planner import plan, report
from medyate_planner.memory.moments import Category
from medyate_planner.reporting.export import report_csv
from medyate_planner.reporting.report_text import render_report
from medyate_planner.reporting.view import MemoryReport, read_report

HERE = Path(__file__).parent
WIDTH = 100
CATEGORY_OF = {category.meaning.replace(" ", ""): category.value for category in Category}


class Small(nn.Module):
    """A convolution, a norm, an activation in place, a depthwise convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(self.stem(x))).mean((2, 3)))


class Attending(nn.Module):
    """Tokens, attention, a residual branch, a norm, a head; its output is no type that torch.export knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> _Output:
        x = self.embed(tokens)
        query, key, value = self.qkv(x).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(query, key, value)
        return _Output(self.head(self.norm(x).mean(1)))


class _Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def _small() -> MemoryReport:
    torch.manual_seed(0)
    model, x = Small(), torch.zeros(4, 3, 16, 16)
    decided = plan(model, x, budget="12kB")
    return report(model, x, optimizer="momentum", plan=decided, budget="1MB", spec="small")


def _attending() -> MemoryReport:
    torch.manual_seed(0)
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    return report(Attending(), tokens, optimizer="adamw", accumulation=2, train=("qkv.*", "head.*"), spec="attending")


REPORTS: dict[str, Callable[[], MemoryReport]] = {"small": _small, "attending": _attending}
each_report = pytest.mark.parametrize("name", REPORTS)


@lru_cache
def _made(name: str) -> MemoryReport:
    """The report, without what may change: lines of this file, torch's own words, the fingerprint of torch's graph."""
    data = REPORTS[name]().to_dict()
    if data["capture_error"]:
        data["capture_error"] = data["capture_error"].partition(": RuntimeError")[0]
    data["model"]["fingerprint"] = data["model"]["fingerprint"] and "0" * 64
    text = re.sub(r"test_golden\.py:\d+", "test_golden.py:LINE", json.dumps(data))
    return read_report(json.loads(text), where=name)


def _text(made: MemoryReport) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    for part in render_report(made, depth=9):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


FORMS: dict[str, Callable[[MemoryReport], str]] = {
    "json": lambda made: json.dumps(made.to_dict(), indent=1) + "\n",
    "txt": _text,
    "csv": report_csv,
}


@each_report
@pytest.mark.parametrize("form", FORMS)
def test_the_report_is_as_it_was(name: str, form: str) -> None:
    file, text = HERE / f"{name}.{form}", FORMS[form](_made(name))
    if os.environ.get("MEDYATE_UPDATE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), (
        f"look at the difference; MEDYATE_UPDATE_GOLDEN=1 writes {file.name}"
    )


@each_report
def test_the_parts_of_the_json_file_sum_to_its_totals(name: str) -> None:
    data = json.loads((HERE / f"{name}.json").read_text())
    made = read_report(data, where=name)
    for step in made.steps:
        line = step.timeline
        assert line.peak_bytes == max(map(sum, line.live_bytes)) == step.live_peak_bytes
        assert all(amount >= 0 for moment in line.live_bytes for amount in moment)
        assert sum(line.at_peak.values()) == step.live_peak_bytes
        assert step.name == "inference" or step.training_bytes >= step.saved_bytes
    for figure in ("weights_bytes", "gradients_bytes", "saved_bytes", "optimizer_bytes"):
        assert sum(getattr(module, figure) for module in made.modules) == getattr(made.full, figure)
    assert sum(module.parameters for module in made.modules) == made.model.num_parameters
    full, line = made.full, made.steps[1].timeline
    at_loss = dict(zip(line.categories, line.live_bytes[_last(line.phase, "loss")], strict=True))
    assert at_loss["kept"] + at_loss["kept_loss"] == full.saved_bytes + full.loss_bytes
    assert (full.training_bytes, full.live_peak_bytes) == (made.steps[1].training_bytes, made.steps[1].live_peak_bytes)
    assert full.training_bytes >= full.gradients_bytes + full.optimizer_bytes
    assert made.inference.live_peak_bytes == made.steps[0].live_peak_bytes


def _last(phases: tuple[str, ...], phase: str) -> int:
    return max(index for index, found in enumerate(phases) if found == phase)


@each_report
def test_the_parts_of_the_csv_file_sum_to_the_totals(name: str) -> None:
    full = json.loads((HERE / f"{name}.json").read_text())["full"]
    rows = list(csv.DictReader((HERE / f"{name}.csv").read_text().splitlines()))
    parts = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes")
    for figure in parts:
        assert sum(int(row[figure]) for row in rows) == full[figure]
    assert all(int(row["total_bytes"]) == sum(int(row[figure]) for figure in parts) for row in rows)


def _tables(name: str) -> dict[str, list[str]]:
    """The lines below each title of the text file."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in (HERE / f"{name}.txt").read_text().splitlines():
        if re.match(
            r"(One step|Where|Live at the peak|Full fine-tuning in PyTorch by|Layers: |Accountings|Largest batch)", line
        ):
            title = re.split("[,:]", line)[0] if not line.startswith("Full") else "modules"
            found[title] = []
        elif title:
            found[title].append(line)
    return found


def _amounts(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*(?![\w.%])", text)]


def _rows(lines: list[str]) -> list[tuple[str, list[int]]]:
    """Label without spaces, and amounts; a label too long for its column goes on below, where no amounts are."""
    found: list[tuple[str, list[int]]] = []
    for line in lines:
        label = re.split(r"\s{2,}", line)[0].replace(" ", "")
        if _amounts(line):
            found.append((label, _amounts(line)))
        elif found and line and not line.startswith(" "):
            found[-1] = (found[-1][0] + label, found[-1][1])
    return found


@each_report
def test_the_parts_of_the_text_file_sum_to_the_totals(name: str) -> None:
    made, tables = read_report(json.loads((HERE / f"{name}.json").read_text()), where=name), _tables(name)
    steps = [(label, amounts[:3]) for label, amounts in _rows(tables["One step"]) if len(amounts) >= 3]
    for step, (label, amounts) in zip(made.steps, steps, strict=True):
        assert label.startswith({"full": "PyTorch(", "lean_full": "lean(", "plan": "plan("}.get(step.name, step.name))
        assert amounts == [step.saved_bytes, step.training_bytes, step.live_peak_bytes]
    *parts, (last, sums) = _rows(tables["Live at the peak"])
    assert (last, sums) == ("sum", [step.live_peak_bytes for step in made.steps])
    assert sum(sum(amounts) for _, amounts in parts) == sum(sums)
    for label, amounts in parts:
        expected = [step.timeline.at_peak.get(CATEGORY_OF[label], 0) for step in made.steps]
        assert amounts == [amount for amount in expected if amount]


@each_report
def test_the_modules_of_the_text_file_sum_to_the_totals(name: str) -> None:
    made = read_report(json.loads((HERE / f"{name}.json").read_text()), where=name)
    rows = [line for line in _tables(name)["modules"] if re.search(r"\d%$", line)]
    root = _amounts(rows[0])
    assert root == [
        made.model.num_parameters, made.full.weights_bytes, made.full.gradients_bytes, made.full.optimizer_bytes,
        made.full.saved_bytes, sum(module.total_bytes for module in made.modules),
    ]  # fmt: skip
    for row in rows:
        *_, weights, gradients, state, saved, total = _amounts(row)
        assert total == weights + gradients + state + saved
    own = next(module for module in made.modules if not module.path)
    top = [_amounts(row)[-1] for row in rows[1:] if re.match(r"  \S", row)]
    assert sum(top) + own.total_bytes == root[-1]


@each_report
def test_no_line_of_the_text_file_is_wider_than_the_terminal(name: str) -> None:
    for line in (HERE / f"{name}.txt").read_text().splitlines():
        assert len(line) <= WIDTH or line.startswith(("Layers: ", "Full fine-tuning"))
