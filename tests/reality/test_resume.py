"""A run that stops after any step and goes on is the run that never stopped, bit for bit; intervals of steps."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_importance
from cli_helpers import json_lines
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import Plan, plan
from medyate_planner.api import planned_draws, train
from medyate_planner.errors import DivergenceError, InputError
from medyate_planner.importance.energy import Importance
from medyate_planner.losses import Loss, named_loss
from medyate_planner.planning.plan import Sampling
from medyate_planner.planning.request import StrategySettings
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.loop import Batches, Recipe
from medyate_planner.training.progress import Checkpoint, Epoch
from medyate_planner.training.run import RunFolder

EPOCHS, BATCHES = 3, 5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 10, 3, groups=10), nn.ReLU(),
        nn.Conv2d(10, 12, 1), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(4)


def made(norm: str = "frozen") -> Subject:
    """Dropout draws from torch's own generator."""
    return subject_of(net(), X, dropout="keep", norm=norm)


def importance_of(subject: Subject) -> Importance:
    return random_importance(subject.graph, 3, zeros=0.0)


def planned(subject: Subject, sampling: Sampling, **mode: Any) -> Plan:
    """At most three channels of each layer, and all biases."""
    full = plan(subject, budget=10**9, strategy="full", **mode)
    layers = tuple(
        layer if layer.head else layer.model_copy(update={"quota": min(3, layer.channels)}) for layer in full.layers
    )
    return full.model_copy(update={"layers": layers, "sampling": sampling})


def noisy_batches(*, passes_over: bool = False) -> Batches:
    """Batches that draw from every global generator while they are loaded, as a user's augmentation may; those that a
    resumed run has seen are loaded again, or passed over."""

    def load(epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        for place in range(done, BATCHES):
            noise = torch.randn(()) + float(np.random.normal()) + random.gauss(0, 1)
            yield X + 0.1 * noise + 0.01 * epoch + 0.1 * place, TARGET

    return Batches(
        train=lambda epoch: load(epoch, 0),
        test=lambda: [(X, TARGET)],
        steps_per_epoch=BATCHES,
        train_from=load if passes_over else None,
    )


MODES: dict[str, dict[str, Any]] = {
    "fused": {},
    "momentum": {"optimizer": "momentum"},
    "adamw": {"optimizer": "adamw"},
    "adamw, 2 passes": {"optimizer": "adamw", "accumulation": 2},
    "train norms": {"optimizer": "momentum", "norm": "train"},
}
SAMPLINGS = {
    "epoch": Sampling(seed=2),
    "2 steps": Sampling(seed=2, interval=2),
    "boosted, 3 steps": Sampling(method="weighted", seed=2, boost=0.5, interval=3),
    "boosted": Sampling(method="weighted", seed=2, boost=0.5),
}


class Case:
    """One way to train, as often as asked for."""

    def __init__(self, mode: str, sampling: str) -> None:
        options = dict(MODES[mode])
        self.batches = noisy_batches(passes_over=mode == "fused")
        self.norm = options.pop("norm", "frozen")
        self.accumulation = options.get("accumulation", 1)
        self.plan = planned(made(self.norm), SAMPLINGS[sampling], **options)
        self.steps = -(-BATCHES // self.accumulation)

    def run(self, folder: Path, *, resume: bool = False, copies: Path | None = None) -> None:
        """Train into a folder; `copies` takes the folder as it is after every checkpoint."""
        subject = made(self.norm)
        recipe = Recipe(epochs=EPOCHS, lr=0.05, weight_decay=0.01, accumulation=self.accumulation)
        run = RunFolder(folder)
        checkpoint = run.resume(subject.model) if resume else None
        if not resume:
            run.start(self.plan, recipe, {}, force=False)

        def keep() -> None:
            if copies is not None:
                shutil.copytree(folder, copies / str(len(list(copies.iterdir()))))

        def on_checkpoint(checkpoint: Checkpoint) -> None:
            run.save(checkpoint, subject.model)
            keep()

        def on_epoch(epoch: Epoch) -> None:
            run.record(epoch, subject.model)
            keep()

        train(
            subject, self.plan, self.batches, recipe, importance=importance_of(subject), resume=checkpoint,
            checkpoint_every=1 if copies is not None else None, on_epoch=on_epoch, on_checkpoint=on_checkpoint,
        )  # fmt: skip
        run.finish(subject.model)


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("selections.jsonl", "model.safetensors", "checkpoint.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    lines = [[{**line, "seconds": 0} for line in json_lines(f / "metrics.jsonl")] for f in (found, expected)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "sampling"),
    [
        ("fused", "epoch"), ("fused", "2 steps"), ("fused", "boosted, 3 steps"), ("momentum", "2 steps"),
        ("adamw", "boosted, 3 steps"), ("adamw", "epoch"), ("adamw, 2 passes", "boosted"), ("train norms", "epoch"),
    ],
)  # fmt: skip
def test_going_on_after_any_step_is_never_having_stopped(tmp_path: Path, mode: str, sampling: str) -> None:
    case = Case(mode, sampling)
    case.run(tmp_path / "whole")
    (tmp_path / "copies").mkdir()
    case.run(tmp_path / "often", copies=tmp_path / "copies")
    assert_same_run(tmp_path / "often", tmp_path / "whole")
    copies = sorted((tmp_path / "copies").iterdir(), key=lambda path: int(path.name))
    assert len(copies) == EPOCHS * (case.steps + 1)
    start, end = net().state_dict(), load_file(tmp_path / "whole" / "model.safetensors")
    assert any(not torch.equal(tensor, end[name]) for name, tensor in start.items())
    for stopped in copies:
        with (stopped / "selections.jsonl").open("a") as file:
            file.write('{"epoch": 2, "interval": 99, "step": 99, "layers": {}}\n{"epo')
        case.run(stopped, resume=True)
        assert_same_run(stopped, tmp_path / "whole")


def test_a_checkpoint_within_an_epoch_holds_all_states(tmp_path: Path) -> None:
    case = Case("adamw", "boosted")
    (tmp_path / "copies").mkdir()
    case.run(tmp_path / "run", copies=tmp_path / "copies")
    within = load_file(tmp_path / "copies" / "1" / "checkpoint.safetensors")
    assert {name.split("/")[0] for name in within if name.startswith(".")} == {".optimizer", ".rng", ".sampler"}
    assert {name for name in within if name.startswith(".rng/")} == {".rng/torch", ".rng/numpy", ".rng/python"}
    assert {".optimizer/0.weight/exp_avg", ".optimizer/10.bias/exp_avg_sq"} <= within.keys()
    between = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert not [name for name in between if name.startswith(".rng")]
    assert {name for name in between if not name.startswith(".")} == net().state_dict().keys()


def run_once(case: Case, recipe: Recipe | None = None, batches: Batches | None = None) -> tuple[list[Epoch], nn.Module]:
    subject = made(case.norm)
    recipe = recipe or Recipe(epochs=EPOCHS, lr=0.05)
    epochs = train(subject, case.plan, batches or noisy_batches(), recipe, importance=importance_of(subject))
    return epochs, subject.model


def test_an_interval_of_n_steps_draws_every_n_steps(tmp_path: Path) -> None:
    case = Case("fused", "2 steps")
    case.run(tmp_path / "run")
    lines = json_lines(tmp_path / "run" / "selections.jsonl")
    draws = planned_draws(case.plan)
    assert [(line["interval"], line["step"], line["epoch"]) for line in lines] == [
        (0, 0, 0), (1, 2, 0), (2, 4, 0), (3, 6, 1), (4, 8, 1), (5, 10, 2), (6, 12, 2), (7, 14, 2),
    ]  # fmt: skip
    assert [line["layers"] for line in lines] == [draws(i) for i in range(8)]
    assert lines[0]["layers"] != lines[1]["layers"]


def test_an_interval_of_an_epochs_steps_is_an_epoch() -> None:
    case = Case("fused", "epoch")
    _, by_epoch = run_once(case)
    case.plan = case.plan.model_copy(update={"sampling": Sampling(seed=2, interval=BATCHES)})
    _, by_steps = run_once(case)
    found = by_steps.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in by_epoch.state_dict().items())


def test_boosting_follows_the_interval() -> None:
    """Draws differ from the planned ones within the first epoch, once something was seen."""
    case = Case("fused", "boosted, 3 steps")
    case.plan = case.plan.model_copy(update={"sampling": case.plan.sampling.model_copy(update={"interval": 1})})
    epochs, _ = run_once(case)
    drawn, planned = epochs[0].checkpoint.drawn, planned_draws(case.plan, importance_of(made()))
    assert [interval.interval for interval in drawn] == [0, 1, 2, 3, 4]
    assert drawn[0].layers == planned(0)
    assert any(interval.layers != planned(interval.interval) for interval in drawn)


def test_pools_follow_the_interval(tmp_path: Path) -> None:
    subject = made()
    case = Case("fused", "2 steps")
    case.plan = plan(
        subject, budget="14kB", strategy="lara-trady", sampling=Sampling(seed=5, interval=2),
        request={"settings": StrategySettings(intervals=3)},
    )  # fmt: skip
    assert case.plan.sampling.interval == 2
    assert len({tuple(case.plan.quotas(i).items()) for i in range(3)}) > 1
    case.run(tmp_path / "run")
    lines = json_lines(tmp_path / "run" / "selections.jsonl")
    assert len(lines) == 8
    for line in lines:
        drawn = {name: len(channels) for name, channels in line["layers"].items() if channels}
        assert drawn == case.plan.quotas(line["interval"])
    for line in json_lines(tmp_path / "run" / "metrics.jsonl"):
        assert line["measured_training_bytes"] <= case.plan.predicted.training_bytes <= 14_000


def test_accumulated_steps_are_those_of_plain_pytorch() -> None:
    """Two batches a step, five an epoch: the last step of an epoch has one. Against torch's own loop."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 5))
    reference = copy.deepcopy(model)
    decided = plan(model, X, budget="1GB", strategy="full", optimizer="momentum", accumulation=2)
    batches = noisy_batches().train
    data = [list(batches(epoch)) for epoch in range(2)]
    source = Batches(train=lambda epoch: data[epoch], test=lambda: [(X, TARGET)], steps_per_epoch=BATCHES)
    recipe = Recipe(epochs=2, lr=0.05, clip=None, accumulation=2, momentum=0.8)
    epochs = train(model, decided, source, recipe)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.8)
    for step, group in enumerate(data[epoch][first : first + 2] for epoch in range(2) for first in (0, 2, 4)):
        optimizer.param_groups[0]["lr"] = recipe.lr_at(step, 3)
        for x, target in group:
            (functional.cross_entropy(reference(x), target) / len(group)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert [epoch.checkpoint.progress.steps_done for epoch in epochs] == [3, 6]
    assert {epoch.metrics.measured_training_bytes for epoch in epochs} == {decided.predicted.training_bytes}
    assert {epoch.metrics.measured_live_peak_bytes for epoch in epochs} == {decided.predicted.live_peak_bytes}


def test_more_accumulation_than_planned_is_refused() -> None:
    with pytest.raises(InputError, match="plan again with --accumulation 4"):
        run_once(Case("adamw, 2 passes", "epoch"), Recipe(epochs=1, accumulation=4))
    with pytest.raises(InputError, match="the plan was made for 1"):
        run_once(Case("fused", "epoch"), Recipe(epochs=1, accumulation=2))


def test_data_that_end_early_are_an_error_and_more_than_said_are_left() -> None:
    case = Case("fused", "epoch")
    few = Batches(train=lambda _epoch: [(X, TARGET)] * 2, test=lambda: (), steps_per_epoch=3)
    with pytest.raises(InputError, match="ended early in epoch 0, step 2: expected 3 batches"):
        run_once(case, batches=few)
    loaded = []

    def many(_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(9):
            loaded.append(number)
            yield X, TARGET

    run_once(case, batches=Batches(train=many, test=lambda: (), steps_per_epoch=3))
    assert loaded == [0, 1, 2] * EPOCHS


def test_divergence_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    case, subject = Case("fused", "2 steps"), made()
    run, recipe = RunFolder(tmp_path / "run"), Recipe(epochs=1, lr=0.05)
    run.start(case.plan, recipe, {}, force=False)
    calls = 0

    def exploding(outputs: Any, target: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return functional.cross_entropy(outputs, target) * (float("nan") if calls == 4 else 1.0)

    known = named_loss("cross-entropy")
    subject = Subject(
        model=subject.model, traced=subject.traced, graph=subject.graph, memory=subject.memory, dropout="keep",
        loss=Loss(name="exploding", function=exploding, make_target=known.make_target),
    )  # fmt: skip
    with pytest.raises(DivergenceError, match=r"epoch 0, step 3") as caught:
        train(
            subject, case.plan, noisy_batches(), recipe, checkpoint_every=1,
            on_checkpoint=lambda checkpoint: run.save(checkpoint, subject.model),
        )  # fmt: skip
    assert caught.value.facts["step"] == 3
    kept = run.resume(net())
    assert kept is not None
    assert (kept.progress.epoch, kept.progress.step, kept.progress.steps_done) == (0, 3, 3)
    state = load_file(run.checkpoint_file)
    assert all(torch.equal(tensor, state[name]) for name, tensor in subject.model.state_dict().items())


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    generators = (lambda: torch.rand(1).item(), lambda: float(np.random.random()), random.random)
    found = []
    for trains in (False, True):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        case = Case("fused", "epoch") if trains else None
        torch.manual_seed(7)
        if case is not None:
            subject = made()
            torch.manual_seed(7)
            train(subject, case.plan, noisy_batches(), Recipe(epochs=1), importance=importance_of(subject))
        found.append([draw() for draw in generators])
    assert found[0] == found[1]
