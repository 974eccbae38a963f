"""Boosted plans for real: draws find the true distribution, bytes stay as predicted, a run goes on bit for bit."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_importance
from cli_helpers import (
    BATCH,
    BUDGET_BYTES,
    DATA,
    MODEL,
    cli,
    done,
    json_lines,
    make_plan,
    train_arguments,
    write_images,
    write_sources,
)
from networks import subject as network
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import Plan, plan, prepare
from medyate_planner.api import open_session, planned_draws, train, verify
from medyate_planner.errors import InputError
from medyate_planner.importance.energy import Importance
from medyate_planner.importance.gradients import probe
from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.plan import Sampling
from medyate_planner.planning.request import StrategySettings
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.loop import Batches, Epoch, Recipe
from medyate_planner.training.measure import StepMeasurement, measure_step
from medyate_planner.training.progress import Checkpoint, Progress
from medyate_planner.training.run import RunFolder
from medyate_planner.training.session import Session

EPOCHS, STEPS = 4, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3, groups=10), nn.ReLU(), nn.Conv2d(10, 12, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(4)


def made() -> Subject:
    return subject_of(net(), X)


def wrong_importance(subject: Subject) -> Importance:
    return random_importance(subject.graph, 3, zeros=0.0)


def boosted(subject: Subject, quota: int = 3, **sampling: Any) -> Plan:
    """`quota` channels of each layer but the first."""
    base = plan(subject, budget=10**9, strategy="full")
    layers = tuple(
        layer if layer.head else layer.model_copy(update={"quota": min(quota, layer.channels)}) for layer in base.layers
    )
    chosen = Sampling(**{"method": "weighted", "seed": 2, "boost": 0.5, **sampling})
    return base.model_copy(update={"layers": layers, "sampling": chosen, "biases": ()})


@pytest.mark.parametrize("metric", ["raw", "rgn", "lara"])
def test_draws_find_the_true_distribution(metric: str) -> None:
    """From a wrong importance, with weights held still: in the end the draws are those of the measured importance."""
    subject = made()
    decided = boosted(subject, metric=metric, boost=0.8, alpha=0.3)
    truth = probe(subject.model, subject.graph, [(X, TARGET)], functional.cross_entropy)
    with open_session(subject, decided, wrong_importance(subject)) as session:
        session.set_lr(0.0)
        assert session.boosting is not None
        start = session.boosting
        early = [start.draw(i) for i in range(1000, 1200)]
        for interval in range(400):
            session.resample(interval)
            functional.cross_entropy(session(X), TARGET).backward()  # type: ignore[no-untyped-call]
        session.resample(400)
        late = [session.boosting.draw(i) for i in range(1000, 1200)]
    true = [planned_draws(decided, truth)(i) for i in range(1000, 1200)]
    assert agreement(early, true) < 0.8
    assert agreement(late, true) > 0.97


def agreement(found: Sequence[Mapping[str, list[int]]], true: Sequence[Mapping[str, list[int]]]) -> float:
    """Share of the drawn channels that both have, where there is a choice at all."""
    shares = [
        len(set(a[name]) & set(channels)) / len(channels)
        for a, b in zip(found, true, strict=True)
        for name, channels in b.items()
        if name != "0"  # all of its three channels
    ]
    return float(np.mean(shares))


def test_the_users_own_loop_draws_as_train_does() -> None:
    subject = made()
    decided = boosted(subject)
    importance = wrong_importance(subject)
    model = net()
    own = []
    with prepare(model, decided, importance) as session:
        for epoch in range(3):
            own.append(session.resample(epoch))
            session.set_lr(0.05, clip=5.0)
            functional.cross_entropy(session(X), TARGET).backward()  # type: ignore[no-untyped-call]
    batches = Batches(train=lambda _epoch: [(X, TARGET)], test=lambda: [(X, TARGET)], steps_per_epoch=1)
    recipe = Recipe(epochs=3, lr=0.05, warmup_epochs=0)
    assert own[0] == planned_draws(decided, importance)(0)
    assert own[1:] != [planned_draws(decided, importance)(i) for i in (1, 2)]
    first = [dict(epoch.selection) for epoch in train(subject, decided, batches, recipe, importance=importance)]
    again = [dict(epoch.selection) for epoch in train(made(), decided, batches, recipe, importance=importance)]
    assert first == again
    assert first[:2] == own[:2]  # the schedule lowers the rate from the second epoch on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seeing_changes_neither_bytes_nor_weights(dtype: torch.dtype) -> None:
    """A boosted step against the same step without: measured alike to the byte, weights alike to the bit."""
    x = X.to(dtype)
    subject = subject_of(net().to(dtype), x)
    found: list[tuple[StepMeasurement, dict[str, Tensor]]] = []
    for boost in (0.0, 0.5):
        decided = boosted(subject, boost=boost)
        model = copy.deepcopy(subject.model)
        with prepare(model, decided, wrong_importance(subject)) as session:
            session.set_lr(0.05, clip=5.0)
            found.append((measure_step(session, (x,), {}, TARGET, functional.cross_entropy), model.state_dict()))
        if boost:
            assert session.boosting is not None
            assert max(float(t.max()) for name, t in session.boosting.state().items() if name.startswith("seen/")) > 0
    (plain, before), (seen, after) = found
    assert plain == seen
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.assets
@pytest.mark.parametrize("strategy", ["optimal", "medyate", "lara-medyate"])
def test_measured_bytes_are_the_predicted_ones_in_every_interval(strategy: str) -> None:
    subject = network("mcunet-5fps", 8)
    importance = random_importance(subject.graph, 0)
    settings = StrategySettings(intervals=3, boost=0.5)
    decided = plan(
        subject, budget="512kB", importance=importance, strategy=strategy,
        sampling=Sampling(method="weighted", boost=0.5), request={"settings": settings},
    )  # fmt: skip
    assert decided.sampling.boosted
    assert (decided.sampling.draws is not None) == (strategy != "optimal")
    (x,), _ = subject.traced.examples(8, seed=1)
    target = torch.arange(8) % 10
    assert verify(subject, decided).ok
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    try:
        with open_session(subject, decided, importance) as session:
            session.set_lr(0.01, clip=5.0)
            for interval in range(3):
                drawn = session.resample(interval)
                assert {name: len(channels) for name, channels in drawn.items()} == decided.quotas(interval)
                if interval:
                    assert drawn != planned_draws(decided, importance)(interval)
                assert_as_predicted(session, subject, decided, interval, x, target)
    finally:
        subject.model.load_state_dict(before)


def assert_as_predicted(
    session: Session, subject: Subject, plan: Plan, interval: int, x: Tensor, target: Tensor
) -> None:
    """Closed form = dry run = a real step that is observed, and within the budget."""
    updates = plan.updates(interval)
    expected = footprint(subject.memory, updates)
    dry = dry_run(subject.traced, subject.graph, updates, subject.loss.function, subject.loss.make_target)
    measured = measure_step(session, (x,), {}, target, subject.loss.function)
    for figure in ("training_bytes", "saved_bytes", "selected_bytes", "index_bytes", "update_bytes"):
        assert getattr(measured, figure) == getattr(dry, figure) == getattr(expected, figure), (interval, figure)
    assert measured.live_peak_bytes == dry.live_peak_bytes
    assert measured.training_bytes <= plan.budget_bytes


class Killed(BaseException):
    """What no handler expects."""


def batches() -> Batches:
    """Three batches an epoch, other ones in each."""

    def of(epoch: int) -> list[tuple[Tensor, Tensor]]:
        source = torch.Generator().manual_seed(epoch)
        return [(torch.randn(4, 3, 12, 12, generator=source), TARGET) for _ in range(STEPS)]

    return Batches(train=of, test=lambda: [(X, TARGET)], steps_per_epoch=STEPS)


def run_to(folder: Path, decided: Plan, *, stop: str = "", resume: bool = False) -> None:
    """Train into a run folder, from the last checkpoint with `resume`; `stop` says where it is killed."""
    subject, recipe = made(), Recipe(epochs=EPOCHS, lr=0.05)
    run = RunFolder(folder)
    checkpoint = run.resume(subject.model) if resume else None
    if not resume:
        run.start(decided, recipe, {}, force=False)

    def on_epoch(epoch: Epoch) -> None:
        now = f"{epoch.metrics.epoch}"
        if stop == f"before {now}":
            raise Killed
        if stop == f"within {now}":
            run.save = killed  # type: ignore[method-assign]
        run.record(epoch, subject.model)
        if stop == f"after {now}":
            raise Killed

    def killed(*_: object) -> None:
        raise Killed

    def on_step(epoch: int, step: int, _loss: float) -> None:
        if stop == f"step {epoch}.{step}":
            raise Killed

    train(
        subject, decided, batches(), recipe, importance=wrong_importance(subject), resume=checkpoint,
        on_epoch=on_epoch, on_step=on_step,
    )  # fmt: skip
    run.finish(subject.model)


def assert_same_run(found: Path, expected: Path) -> None:
    assert (found / "selections.jsonl").read_bytes() == (expected / "selections.jsonl").read_bytes()
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    seconds = [[{**line, "seconds": 0} for line in json_lines(f / "metrics.jsonl")] for f in (found, expected)]
    assert seconds[0] == seconds[1]


@pytest.mark.parametrize(
    "stop", ["step 0.1", "before 0", "within 0", "after 0", "step 1.2", "within 1", "after 1", "after 2", "step 3.0"]
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, stop: str) -> None:
    decided = boosted(made())
    run_to(tmp_path / "whole", decided)
    with pytest.raises(Killed):
        run_to(tmp_path / "killed", decided, stop=stop)
    run_to(tmp_path / "killed", decided, resume=True)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_the_checkpoint_holds_the_sampler_and_the_final_weights_do_not(tmp_path: Path) -> None:
    run_to(tmp_path / "run", boosted(made()))
    checkpoint, final = (load_file(tmp_path / "run" / f"{n}.safetensors") for n in ("checkpoint", "model"))
    assert set(final) == set(net().state_dict())
    sampler = {name for name in checkpoint if name not in final}
    assert {name.removeprefix(".sampler/") for name in sampler} == {
        "interval", *(f"{kind}/{layer}" for kind in ("importance", "seen", "steps") for layer in ("0", "2", "4")),
    }  # fmt: skip
    run_to(tmp_path / "plain", boosted(made(), boost=0.0))
    assert set(load_file(tmp_path / "plain" / "checkpoint.safetensors")) == set(final)


def test_going_on_without_the_samplers_state_is_refused() -> None:
    done = Checkpoint(progress=Progress(epoch=1, steps_done=STEPS, interval=0))
    with pytest.raises(InputError, match="sampler state: does not fit the plan"):
        train(made(), boosted(made()), batches(), Recipe(epochs=2), importance=wrong_importance(made()), resume=done)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network of the command line tests with its importance, a boosted plan, and one of a pool."""
    folder = tmp_path_factory.mktemp("boosted")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        known = ("--importance", "imp.safetensors", "--boost", "0.5")
        make_plan("weighted.json", *known, "--sampling", "weighted", "--objective", "norm", "--metric", "raw")
        make_plan("pool.json", *known, "--strategy", "medyate", "--intervals", "3")
    return folder


@pytest.mark.parametrize("name", ["weighted", "pool"])
def test_the_command_line_runs_boosted_plans(
    ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(ranked, folder)
    monkeypatch.chdir(folder)
    decided = Plan.load(Path(f"{name}.json"))
    assert decided.sampling.boosted
    assert done("verify", f"{name}.json", "--json").json["ok"]
    options = {"epochs": EPOCHS, "data": "counted.py:make"}
    done(*train_arguments(f"{name}.json", "whole", **options))
    monkeypatch.setenv("STOP_AT", str(36 + 10))
    assert cli(*train_arguments(f"{name}.json", "run", **options)).code == 130
    monkeypatch.delenv("STOP_AT")
    done(*train_arguments(f"{name}.json", "run", "--resume", **options))
    assert_same_run(Path("run"), Path("whole"))
    for line in json_lines(Path("run/metrics.jsonl")):
        predicted = footprint(memory_of(decided), decided.updates(line["epoch"])).training_bytes
        assert line["measured_training_bytes"] == predicted <= BUDGET_BYTES
    lines = json_lines(Path("run/selections.jsonl"))
    for line in lines:
        assert {n: len(channels) for n, channels in line["layers"].items()} == decided.quotas(line["epoch"])
    importance = Importance.load(Path("imp.safetensors"))
    assert lines[0]["layers"] == planned_draws(decided, importance)(0)
    assert any(line["layers"] != planned_draws(decided, importance)(line["epoch"]) for line in lines)


def memory_of(decided: Plan) -> Any:
    from medyate_planner.subject import subject_for

    names: dict[str, Any] = {}
    exec(Path("tiny.py").read_text(), names)
    return subject_for(names["factory"](), decided).memory
