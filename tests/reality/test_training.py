"""Real training on real photographs: accurate inside 512 kB, measured every epoch; a callable in anybody's loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks import loaded, subject
from torch import nn
from torch.nn import functional

from medyate_planner import InputError, plan, prepare
from medyate_planner.cli import main
from medyate_planner.errors import PlanMismatchError, StepOrderError

BUDGET_BYTES = 512_000


def run(folder: Path, data: str, seed: int) -> list[dict[str, float]]:
    """rank, plan and train as a user would; returns the epochs."""
    importance, plan_file, out = folder / "importance.safetensors", folder / "plan.json", folder / "run"
    common = ["--num-classes", "10", "--seed", str(seed)]
    assert main(["rank", "mcunet-5fps", "--data", data, "-o", str(importance), *common]) == 0
    asked = ["--budget", "512kB", "--importance", str(importance), "-o", str(plan_file), *common]
    assert main(["plan", "mcunet-5fps", *asked]) == 0
    trained = ["train", str(plan_file), "--data", data, "--epochs", "4", "--out", str(out), "--seed", str(seed)]
    assert main(trained) == 0
    predicted = json.loads(plan_file.read_text())["predicted"]
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for epoch in epochs:
        assert epoch["measured_training_bytes"] == predicted["training_bytes"] <= BUDGET_BYTES
        assert epoch["measured_saved_bytes"] == predicted["saved_bytes"]
        assert epoch["measured_live_peak_bytes"] == predicted["live_peak_bytes"]
    return epochs


@pytest.mark.assets
@pytest.mark.slow
def test_mcunet_learns_sign_digits_in_512_kb(tmp_path: Path, sign_digits: str) -> None:
    last = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        epochs = run(tmp_path / str(seed), sign_digits, seed)
        assert len(epochs) == 4
        last.append(epochs[-1]["test_accuracy"])
    assert sum(last) / 3 >= 0.97, last


@pytest.mark.assets
def test_a_plan_works_in_the_users_own_loop() -> None:
    made = subject("mcunet-5fps", 8)
    model = loaded("mcunet-5fps").model
    decided = plan(made, budget="300kB")
    x = torch.randn(8, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    target = torch.arange(8)
    losses = []
    with prepare(model, decided) as session:
        session.set_lr(0.01, clip=5.0)
        assert session.parameters() == []
        for epoch in range(6):
            session.resample(epoch)
            loss = functional.cross_entropy(session(x), target)
            loss.backward()
            losses.append(loss.item())
        assert torch.equal(session.eval()(x), model(x))
    assert losses[-1] < losses[0]


def test_a_second_forward_before_backward_is_refused() -> None:
    model, decided = _tiny()
    x = torch.randn(4, 3, 12, 12)
    with prepare(model, decided) as session:
        kept = session(x).sum()
        with pytest.raises(StepOrderError, match="second forward before backward"):
            session(x)
        kept.backward()
        session(x).sum().backward()
        dropped = session(x)
        del dropped
        session(x).sum().backward()


def test_redrawing_between_forward_and_backward_is_refused() -> None:
    model, decided = _tiny()
    with prepare(model, decided) as session:
        output = session(torch.randn(4, 3, 12, 12)).sum()
        session.resample(1)
        with pytest.raises(StepOrderError, match="redrawn between forward and backward"):
            output.backward()


def test_a_plan_refuses_another_model() -> None:
    _, decided = _tiny()
    other = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 100, 5))
    with pytest.raises(PlanMismatchError, match="made for another model"):
        prepare(other, decided)


def test_weighted_sampling_without_importance_is_refused() -> None:
    model, decided = _tiny()
    weighted = decided.model_copy(update={"sampling": decided.sampling.model_copy(update={"method": "weighted"})})
    with pytest.raises(InputError, match="importance"):
        prepare(model, weighted)


def _tiny() -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    decided = plan(model, torch.zeros(4, 3, 12, 12), budget="1MB")
    partial = tuple(layer if layer.head else layer.model_copy(update={"quota": 2}) for layer in decided.layers)
    return model, decided.model_copy(update={"layers": partial})
