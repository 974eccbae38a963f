"""Models that torch.export can not capture are reported all the same; those that nothing can run are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from cli_helpers import assert_one_line, module_cli
from oddities import Answers
from oracles import Setting, Step, tracked_peak
from torch import Tensor, nn

from medyate_planner import plan, report
from medyate_planner.errors import InputError, TraceError

SOURCE = """
import torch
from torch import nn


class Undecided(nn.Module):
    input_shape = (6,)

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        x = self.body(x)
        if x.sum() > 0:  # here
            x = x * 2
        return x


class Broken(Undecided):
    def forward(self, x):
        raise RuntimeError("\\x1b[31mthe model's own\\nsecond line")


class Hidden(Undecided):
    def forward(self, x):
        return type("Answer", (), {"logits": self.body(x)})()
"""


class Sequence(nn.Module):
    """Python's random numbers choose its layers, and no torch type holds its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)]), nn.Linear(6, 5)
        self.generator = random.Random(0)

    def forward(self, x: Tensor) -> _Opaque:
        for layer in self.layers:
            if self.generator.random() < 2:  # always, but nobody can know
                x = torch.relu(layer(x))
        return _Opaque(self.head(x))


class _Opaque:
    """An output of no type that torch knows."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Undecided(nn.Module):
    """Branches on a value of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.sum() > 0:  # the branch
            x = x * 2
        return x


class Selecting(Undecided):
    """A shape that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        kept = x[x[:, 0] > 0]  # the selection
        return kept.sum(0, keepdim=True).expand(len(x), 5) + x[: int(kept.shape[0])].sum()


class Iterating(Undecided):
    """Reads numbers out of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * x.sum().item()  # the reading


def _line_of(comment: str) -> int:
    lines: Iterable[str] = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, text in enumerate(lines, start=1) if text.endswith(f"  # {comment}"))


@pytest.mark.parametrize(("build", "cause"), [(Sequence, "_Opaque"), (Answers, "Answer")])
@pytest.mark.parametrize("setting", [Setting(), Setting(optimizer="adam", accumulation=2, train=("head.*",))])
def test_an_uncapturable_model_is_reported_with_the_cause(
    build: Callable[[], nn.Module], cause: str, setting: Setting
) -> None:
    x = torch.zeros(3, 6)
    options = {"optimizer": setting.optimizer, "accumulation": setting.accumulation, "train": setting.train}
    made = report(build(), x, measure=True, **options)  # type: ignore[arg-type]
    assert made.capture_error is not None
    assert cause in made.capture_error
    assert len(made.capture_error.splitlines()) == 1
    assert (made.layers, made.model.fingerprint) == ((), None)
    assert [step.name for step in made.steps] == ["inference", "full"]
    assert made.agrees
    step = Step(build(), x, setting)
    assert made.full.live_peak_bytes == tracked_peak(step)
    assert made.full.saved_bytes == step.saved_bytes()
    assert made.full.optimizer_bytes == step.state_bytes()
    assert sum(module.saved_bytes for module in made.modules) == made.full.saved_bytes


def test_an_uncapturable_meta_model_is_reported_as_the_real_one() -> None:
    with torch.device("meta"):
        ghost = Sequence()
    assert report(ghost, torch.zeros(3, 6), budget="1MB") == report(Sequence(), torch.zeros(3, 6), budget="1MB")


def test_an_uncapturable_model_has_no_plan_to_report() -> None:
    captured = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    decided = plan(captured, torch.zeros(2, 6), budget="1MB")
    with pytest.raises(InputError, match="can not be captured"):
        report(Answers(), torch.zeros(2, 6), plan=decided)


@pytest.mark.parametrize(
    ("model", "line"),
    [(Undecided(), "the branch"), (Selecting(), "the selection"), (Iterating(), "the reading")],
)
def test_a_model_that_nothing_can_run_without_data_is_refused_with_its_line(model: nn.Module, line: str) -> None:
    before = [module.training for module in model.modules()]
    with pytest.raises(TraceError) as caught:
        report(model, torch.zeros(2, 6))
    message = caught.value.message
    assert f"test_uncapturable.py:{_line_of(line)}" in message
    assert len(message.splitlines()) == 1
    assert [module.training for module in model.modules()] == before


def test_inputs_of_the_wrong_shape_are_refused_with_the_operator() -> None:
    with pytest.raises(TraceError, match=r"mm|mat1|linear"):
        report(nn.Linear(6, 5), torch.zeros(2, 7))


def test_what_the_model_itself_raises_is_refused_with_its_text() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 5)

        def forward(self, _x: Tensor) -> Tensor:
            raise ValueError("only on Sundays")

    with pytest.raises(TraceError, match="only on Sundays"):
        report(Raises(), torch.zeros(2, 6))


def test_a_model_that_can_not_be_copied_is_refused_by_name() -> None:
    class Locked(Answers):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("cannot pickle this")

    with pytest.raises(TraceError, match=r"Locked.*cannot pickle this"):
        report(Locked(), torch.zeros(2, 6))


@pytest.mark.parametrize(("factory", "word"), [("Undecided", "models.py:15"), ("Broken", "the model's own")])
def test_the_command_line_refuses_in_one_line(
    factory: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(SOURCE)
    result = module_cli("report", f"models.py:{factory}", "--batch-size", "2")
    assert result.code == 2
    assert_one_line(result, word)
    assert "\x1b" not in result.err
    assert result.out == ""


def test_the_command_line_reports_what_can_not_be_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(SOURCE)
    result = module_cli("report", "models.py:Hidden", "--batch-size", "2")
    assert result.code == 0, result.err
    assert "No layers and no plan" in result.out
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["model", "modules and layers"], result.err
