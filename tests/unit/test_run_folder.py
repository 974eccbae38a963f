"""The run folder and the checkpoint file: what is kept, what is dropped, what is refused."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medyate_planner import Plan, plan
from medyate_planner.errors import InputError
from medyate_planner.training.checkpoint import load_weights, read_checkpoint, weights_of, write_checkpoint
from medyate_planner.training.progress import Checkpoint, Epoch, EpochMetrics, Interval, Measured, Progress
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.run import RunFolder

PROGRESS = Progress(
    epoch=2, step=3, steps_done=19, interval=6, loss_sum=0.1 + 0.2, lr=1 / 3, seconds=1.5,
    measured=Measured(training_bytes=7, saved_bytes=6, live_peak_bytes=9),
)  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def decided() -> Plan:
    return plan(net().eval(), torch.zeros(2, 3), budget="1MB")


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, train_loss=1.0, test_accuracy=None, test_loss=None, measured_training_bytes=1,
        measured_saved_bytes=1, measured_live_peak_bytes=1, lr=0.1, seconds=0.5,
    )  # fmt: skip


def drawn(*numbers: int) -> tuple[Interval, ...]:
    return tuple(Interval(epoch=n // 2, interval=n, step=3 * n, layers={"0": [n, n + 1]}) for n in numbers)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.start(decided(), Recipe(epochs=4), {"data": "x"}, force=False)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("progress", [Progress(), PROGRESS])
def test_a_checkpoint_reads_back(tmp_path: Path, progress: Progress) -> None:
    model, state = net(), {"a/exp_avg": torch.randn(3), "a/step": torch.tensor(3.0)}
    written = Checkpoint(
        progress=progress, optimizer=state, sampler={"seen/0": torch.randn(2)}, random={"torch": torch.get_rng_state()}
    )
    write_checkpoint(tmp_path / "c.safetensors", model, written)
    weights, found = read_checkpoint(tmp_path / "c.safetensors")
    assert found.progress == progress
    for part in ("optimizer", "sampler", "random"):
        mine, theirs = getattr(written, part), getattr(found, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    load_weights(other, weights)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_same_checkpoint_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_checkpoint(tmp_path / name, net(), Checkpoint(progress=PROGRESS, sampler={"x": torch.ones(2)}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "metadata", [{}, {"progress": "{"}, {"progress": "{}"}, {"progress": '{"measured": null, "epochs": 1}'}]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "c", metadata=metadata)
    with pytest.raises(InputError, match=r"c: can not be read .*--force"):
        read_checkpoint(tmp_path / "c")


def test_resuming_drops_what_is_later_than_the_checkpoint(run: RunFolder) -> None:
    model = net()
    run.save(Checkpoint(progress=Progress(step=2, steps_done=2, interval=0), drawn=drawn(0)), model)
    at = Checkpoint(progress=Progress(epoch=1, steps_done=5, interval=1), drawn=drawn(1))
    run.record(Epoch(metrics=metrics(0), selection={}, checkpoint=at), model)
    with run.metrics_file.open("a") as file:
        file.write(json.dumps(metrics(1).to_dict()) + "\n" + '{"epoch": 2, "tra')
    with run.selections_file.open("a") as file:
        file.writelines(json.dumps(interval.to_dict()) + "\n" for interval in drawn(2, 3))
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator, union-attr]
    found = run.resume(model)
    assert found is not None
    assert found.progress == at.progress
    assert torch.equal(model[0].weight, net()[0].weight)  # type: ignore[index]
    assert [line["epoch"] for line in lines(run.metrics_file)] == [0]
    assert lines(run.selections_file) == [interval.to_dict() for interval in drawn(0, 1)]


def test_lines_come_before_the_checkpoint_that_counts_on_them(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between leaves lines that resuming drops, never a checkpoint without its lines."""
    run.save(Checkpoint(progress=Progress(step=1, steps_done=1, interval=0), drawn=drawn(0)), net())

    def killed(*_: object) -> None:
        raise SystemError

    monkeypatch.setattr("medyate_planner.training.run.write_checkpoint", killed)
    with pytest.raises(SystemError):
        run.save(Checkpoint(progress=Progress(step=3, steps_done=3, interval=1), drawn=drawn(1)), net())
    assert len(lines(run.selections_file)) == 2
    found = run.resume(net())
    assert found is not None
    assert found.progress.steps_done == 1
    assert len(lines(run.selections_file)) == 1


def test_without_a_checkpoint_a_run_begins_anew(run: RunFolder) -> None:
    run.metrics_file.write_text(json.dumps(metrics(0).to_dict()) + "\n")
    assert run.resume(net()) is None
    assert lines(run.metrics_file) == []


def test_what_kills_left_of_files_is_removed_and_nothing_else(run: RunFolder) -> None:
    left = [".checkpoint.safetensors.x8_f.part", ".metrics.jsonl.abc.part", ".tmpAb3dE9"]
    others = [".mine.part", ".tmp", ".tmpdir12345", "notes.part", ".model.safetensors"]
    for name in (*left, *others):
        (run.path / name).write_text("x")
    run.resume(net())
    assert {path.name for path in run.path.iterdir()} == {"plan.json", "recipe.json", *others}


def test_a_folder_that_is_not_ours_keeps_what_looks_like_a_part(tmp_path: Path) -> None:
    (tmp_path / ".tmpAb3dE9").write_text("precious")
    RunFolder(tmp_path).start(decided(), Recipe(epochs=1), {}, force=False)
    assert (tmp_path / ".tmpAb3dE9").read_text() == "precious"


def test_a_kill_before_the_plan_was_written_is_got_over(run: RunFolder) -> None:
    (run.path / "plan.json").unlink()
    assert run.plan(decided()) == decided()
    assert Plan.load(run.path / "plan.json") == decided()
    run.save(Checkpoint(progress=Progress()), net())
    (run.path / "plan.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        run.plan(decided())


def test_a_checkpoint_of_another_model_is_refused(run: RunFolder) -> None:
    run.save(Checkpoint(progress=Progress()), nn.Sequential(nn.Linear(3, 5)))
    with pytest.raises(InputError, match=r"weights: 0.* does not fit the model"):
        run.resume(net())


def test_weights_under_two_names_are_stored_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert weights_of(model).keys() == {"0.weight", "0.bias", "1.bias"}


FULL_DISK = """
import sys, torch
from pathlib import Path
from torch import nn
from medyate_planner.errors import InputError
from medyate_planner.training.checkpoint import write_checkpoint
from medyate_planner.training.progress import Checkpoint, Progress

try:
    write_checkpoint(Path(sys.argv[1]), nn.Linear(300, 300), Checkpoint(progress=Progress()))
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """A process that may not write files of more than 100 kB."""
    file = tmp_path / "c.safetensors"
    write_checkpoint(file, nn.Linear(3, 3), Checkpoint(progress=PROGRESS))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", FULL_DISK, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert "c.safetensors: can not be written" in result.stdout, result.stderr
    assert read_checkpoint(file)[1].progress == PROGRESS
    assert list(tmp_path.iterdir()) == [file]
