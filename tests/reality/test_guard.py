"""`--enforce`: a loss that really keeps more than the planned one stops training within a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import cli, done, json_lines, make_plan, train_arguments, write_images, write_sources
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from medyate_planner import Plan, plan
from medyate_planner.api import open_session, train
from medyate_planner.errors import BudgetExceededError
from medyate_planner.planning.plan import Sampling
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.guard import Guard
from medyate_planner.training.loop import Batches, Recipe, fit
from medyate_planner.training.progress import Checkpoint
from medyate_planner.training.run import RunFolder

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(4)
BATCHES, GREEDY_FROM = 4, 6  # the seventh step: epoch 1, step 2
WIDE_BYTES = 4 * 4 * 5 * 400


class Wide(nn.Module):
    """Becomes greedy after so many steps: then it keeps a wide copy of the logits, in forward or within backward."""

    def __init__(self, greedy_from: int, *, within_backward: bool) -> None:
        super().__init__()
        self.greedy_from, self.within_backward = greedy_from, within_backward
        self.steps = 0

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs, target)
        if isinstance(outputs, torch._subclasses.FakeTensor) or not outputs.requires_grad:
            return loss
        self.steps += 1
        if self.steps <= self.greedy_from:
            return loss
        return loss + (recomputed(wide, outputs, use_reentrant=True) if self.within_backward else wide(outputs))


def wide(outputs: Tensor) -> Tensor:
    return 1e-3 * outputs.repeat(1, 400).exp().mean()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 12, 1), nn.ReLU(), nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def made(loss: Any = "cross-entropy", norm: str = "frozen") -> Subject:
    return subject_of(net(), X, loss=loss, dropout="keep", norm=norm)


def tight(subject: Subject, scope: str = "training", **options: Any) -> Plan:
    """Three channels of each layer, all biases, and a budget of exactly what they need. Redrawn before the seventh."""
    asked = {"max_quota": 3, "scope": scope}
    free = plan(subject, budget=10**9, request=asked, sampling=Sampling(interval=3), **options)
    assert [layer.quota for layer in free.layers if not layer.head] == [3, 3]
    needed = free.predicted.live_peak_bound_bytes if scope == "peak" else free.used_bytes
    return plan(subject, budget=needed or 0, request=asked, sampling=Sampling(interval=3), **options)


def batches() -> Batches:
    def of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for place in range(BATCHES):
            yield X + 0.1 * torch.randn(()) + 0.01 * (epoch + place), TARGET

    return Batches(train=of, test=lambda: [(X, TARGET)], steps_per_epoch=BATCHES)


RECIPE = Recipe(epochs=3, lr=0.05)


def run(subject: Subject, decided: Plan, folder: Path, *, enforce: bool, resume: bool = False, every: int = 1) -> None:
    kept = RunFolder(folder)
    at = kept.resume(subject.model) if resume else None
    if not resume:
        kept.start(decided, RECIPE, {}, force=False)
    train(
        subject, decided, batches(), RECIPE, resume=at, enforce=enforce, checkpoint_every=every,
        on_checkpoint=lambda made: kept.save(made, subject.model),
        on_epoch=lambda epoch: kept.record(epoch, subject.model),
    )  # fmt: skip
    kept.finish(subject.model)


def assert_same(found: Path, expected: Path) -> None:
    for name in ("selections.jsonl", "model.safetensors", "checkpoint.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    lines = [[{**line, "seconds": 0} for line in json_lines(f / "metrics.jsonl")] for f in (found, expected)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("scope", ["training", "update", "peak"])
@pytest.mark.parametrize("mode", [{}, {"optimizer": "momentum"}])
def test_training_within_the_budget_is_left_alone(tmp_path: Path, scope: str, mode: dict[str, Any]) -> None:
    """Guarded, at a budget without a byte to spare, to the same bits as unguarded."""
    decided = tight(made(), scope, **mode)
    assert scope == "peak" or decided.used_bytes == decided.budget_bytes
    for enforce in (False, True):
        run(made(), decided, tmp_path / str(enforce), enforce=enforce)
    assert_same(tmp_path / "True", tmp_path / "False")


@pytest.mark.parametrize("scope", ["training", "update", "peak"])
def test_a_byte_less_is_noticed(scope: str) -> None:
    """The measured figure of the scope against its own value, and one less."""
    subject = made()
    decided = tight(subject, scope)
    guard = Guard.of(decided.model_copy(update={"budget_bytes": decided.used_bytes}))
    for budget_bytes, stops in ((guard.budget_bytes, False), (guard.budget_bytes - 1, True)):
        strict = Guard(budget_bytes=budget_bytes, scope=scope)
        with open_session(made(), decided) as session:
            steps = fit(session, batches(), subject.loss, Recipe(epochs=1), guard=strict)
            if not stops:
                assert len(list(steps)) == 1
                continue
            with pytest.raises(BudgetExceededError) as caught:
                list(steps)
            assert caught.value.measured_bytes == guard.budget_bytes


def test_weights_in_flash_are_not_counted() -> None:
    subject = made()
    decided = tight(subject, "peak")
    resident = sum(t.nbytes for t in [*subject.model.parameters(), *subject.model.buffers()])
    guard = Guard(budget_bytes=decided.used_bytes - resident, scope="peak", weights_in_flash_bytes=resident)
    with open_session(subject, decided) as session:
        assert len(list(fit(session, batches(), subject.loss, Recipe(epochs=1), guard=guard))) == 1


def test_a_greedy_loss_stops_before_its_first_update(tmp_path: Path) -> None:
    """The seventh step exceeds the budget in its forward: nothing of it is applied, and the run goes on from there."""
    decided = tight(made())
    greedy = Wide(GREEDY_FROM, within_backward=False)
    with pytest.raises(BudgetExceededError, match=r"epoch 1, step 2 held .* before it updated anything") as caught:
        run(made(greedy), decided, tmp_path / "run", enforce=True, every=10**6)
    assert greedy.steps == GREEDY_FROM + 1
    facts = caught.value.to_dict()
    assert (facts["budget_bytes"], facts["epoch"], facts["step"], facts["exit_code"]) == (
        decided.budget_bytes, 1, 2, 1,
    )  # fmt: skip
    assert decided.budget_bytes < facts["measured_bytes"] <= decided.budget_bytes + 2 * WIDE_BYTES
    stopped = RunFolder(tmp_path / "run").resume(net())
    assert stopped is not None
    assert (stopped.progress.epoch, stopped.progress.step) == (1, 2)
    run(made(), decided, tmp_path / "whole", enforce=False)
    run(made(), decided, tmp_path / "run", enforce=True, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_greedy_backward_stops_after_one_step(tmp_path: Path) -> None:
    """Recomputation hides from the forward what backward keeps: one step exceeds the budget, no second one."""
    decided = tight(made())
    greedy = Wide(GREEDY_FROM, within_backward=True)
    with pytest.raises(BudgetExceededError, match=r"epoch 1, step 2 held .* stopped after it") as caught:
        run(made(greedy), decided, tmp_path / "run", enforce=True)
    assert greedy.steps == GREEDY_FROM + 1
    assert caught.value.measured_bytes > decided.budget_bytes
    stopped = RunFolder(tmp_path / "run").resume(net())
    assert stopped is not None
    assert (stopped.progress.epoch, stopped.progress.step) == (1, 2)
    run(made(), decided, tmp_path / "whole", enforce=False)
    run(made(), decided, tmp_path / "run", enforce=True, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_without_the_guard_the_greedy_loss_trains_on(tmp_path: Path) -> None:
    """The exceedance is real, and it is the guard that stops it."""
    decided = tight(made())
    greedy = Wide(BATCHES, within_backward=False)
    run(made(greedy), decided, tmp_path / "run", enforce=False)
    measured = [line["measured_training_bytes"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert measured[0] == decided.budget_bytes
    assert min(measured[1:]) > decided.budget_bytes


@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("every", [1, None])
def test_the_kept_checkpoint_is_of_the_state_before(norm: str, every: int | None) -> None:
    """Also where a forward updates running statistics, and where it is the very first step that exceeds."""
    for greedy_from in (0, GREEDY_FROM):
        greedy = Wide(greedy_from, within_backward=False)
        subject, states = made(greedy, norm), []
        decided = tight(made(norm=norm))

        def note(made: Checkpoint, subject: Subject = subject, states: list[Any] = states) -> None:
            weights = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
            states.append((made.progress, weights))

        with pytest.raises(BudgetExceededError):
            train(
                subject, decided, batches(), RECIPE, enforce=True, checkpoint_every=every, on_checkpoint=note,
                on_epoch=lambda epoch, note=note: note(epoch.checkpoint),
            )  # fmt: skip
        progress, weights = states[-1]
        exact = norm == "frozen" or every is not None or greedy_from == 0
        assert progress.steps_done == (greedy_from if exact else BATCHES)
        again = made(norm=norm)
        taken = [{name: tensor.clone() for name, tensor in again.model.state_dict().items()}]
        train(
            again, decided, batches(), RECIPE, checkpoint_every=1,
            on_checkpoint=lambda _made, again=again, taken=taken: taken.append(
                {name: tensor.clone() for name, tensor in again.model.state_dict().items()}
            ),
        )  # fmt: skip
        assert all(torch.equal(tensor, taken[progress.steps_done][name]) for name, tensor in weights.items())


LOSS = """
import torch
from torch.nn import functional

steps = 0


def make():
    def loss(outputs, target):
        global steps
        found = functional.cross_entropy(outputs, target)
        if isinstance(outputs, torch._subclasses.FakeTensor) or not outputs.requires_grad:
            return found
        steps += 1
        return found + 1e-3 * outputs.repeat(1, 4000).exp().mean() if steps == 8 else found

    return loss
"""


def test_the_command_line_stops_with_1_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eighth step exceeds the budget, and no other: a resumed process counts anew."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    write_images(tmp_path / "data")
    Path("loss.py").write_text(LOSS)
    make_plan("plan.json", "--loss", "loss.py:make")
    arguments = ("--head-epochs", "0", "--lr", "0.01")
    done(*train_arguments("plan.json", "whole", *arguments))
    result = cli(*train_arguments("plan.json", "run", "--enforce", "--json", *arguments))
    assert result.code == 1
    assert {"budget_bytes", "measured_bytes", "epoch", "step"} <= result.json.keys()
    assert result.json["error"] == "BudgetExceededError"
    assert (result.json["epoch"], result.json["step"]) == (1, 1)
    assert result.json["measured_bytes"] > json.loads(Path("plan.json").read_text())["budget_bytes"]
    assert not Path("run/model.safetensors").exists()
    resumed = done(*train_arguments("plan.json", "run", "--enforce", "--resume", *arguments))
    assert "resuming after epoch 1 and 1 steps of the next" in resumed.err
    assert len(json_lines(Path("run/metrics.jsonl"))) == 2
