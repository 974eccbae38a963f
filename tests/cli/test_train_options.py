"""`medyate train` with draws other than the plan's, intervals of steps, checkpoints within an epoch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import (
    BATCH,
    DATA,
    MODEL,
    assert_refused,
    cli,
    done,
    environment,
    json_lines,
    make_plan,
    strict_json,
    train_arguments,
    write_images,
    write_sources,
)

KNOWN = ("--importance", "imp.safetensors", "--objective", "norm", "--metric", "raw")  # some channels of many layers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        make_plan("plan.json", *KNOWN)
        make_plan("plain.json")
        make_plan("static.json", *KNOWN, "--sampling", "static")
        make_plan("pool.json", *KNOWN, "--strategy", "medyate", "--intervals", "3")
        done(*train_arguments("plan.json", "run"))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


def same_bytes(first: str, second: str, *names: str) -> bool:
    return all(Path(first, name).read_bytes() == Path(second, name).read_bytes() for name in names)


@pytest.mark.parametrize(
    "options",
    [
        ("--interval", "2"),
        ("--sampling", "weighted", "--alpha", "0.5"),
        ("--sampling", "weighted", "--boost", "0.5", "--interval", "4"),
        ("--sampling", "top"),
        ("--sampling", "static"),
    ],
)
def test_draws_given_to_train_are_those_given_to_plan(folder: Path, options: tuple[str, ...]) -> None:
    make_plan("asked.json", *KNOWN, *options)
    done(*train_arguments("asked.json", "planned"))
    done(*train_arguments("plan.json", "given", *options))
    assert same_bytes("planned", "given", "plan.json", "recipe.json", "selections.jsonl", "model.safetensors")
    assert not same_bytes("run", "given", "selections.jsonl")
    assert (folder / "plan.json").read_bytes() != (folder / "given" / "plan.json").read_bytes()
    predicted = strict_json(Path("plan.json").read_text())["predicted"]
    for line in json_lines(Path("given/metrics.jsonl")):
        assert line["measured_training_bytes"] == predicted["training_bytes"]


@pytest.mark.usefixtures("folder")
def test_the_interval_is_in_the_plan_and_its_text() -> None:
    shown = make_plan("steps.json", *KNOWN, "--interval", "5")
    assert strict_json(Path("steps.json").read_text())["sampling"]["interval"] == 5
    assert "channels are redrawn every 5 steps" in shown.out
    assert "redrawn every" not in done("show", "plan.json").out
    changes = done("show", "--diff", "plan.json", "steps.json").out
    assert "sampling.interval" in changes


def test_selections_have_a_line_for_each_interval(folder: Path) -> None:
    done(*train_arguments("plan.json", "new", "--interval", "4"))
    lines = json_lines(folder / "new" / "selections.jsonl")
    assert [(line["epoch"], line["interval"], line["step"]) for line in lines] == [(0, 0, 0), (0, 1, 4), (1, 2, 8)]
    by_epoch = json_lines(folder / "run" / "selections.jsonl")
    assert [(line["epoch"], line["interval"], line["step"]) for line in by_epoch] == [(0, 0, 0), (1, 1, 6)]


def test_a_run_is_resumed_with_its_own_draws_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("run")
    options: dict[str, Any] = {"data": "counted.py:make"}
    monkeypatch.setenv("STOP_AT", "17")
    asked = ("--interval", "2", "--checkpoint-every", "3")
    assert cli(*train_arguments("plan.json", "run", *asked, **options)).code == 130
    monkeypatch.delenv("STOP_AT")
    resumed = train_arguments("plan.json", "run", "--resume", **options)
    assert_refused(folder, resumed, "another sampling", "interval 2, not epoch", "--force")
    assert_refused(folder, [*resumed, "--interval", "3"], "another sampling")
    result = done(*resumed, "--interval", "2")
    assert "resuming after epoch 0 and 3 steps of the next" in result.err
    done(*train_arguments("plan.json", "whole", "--interval", "2", **options))
    assert same_bytes("run", "whole", "model.safetensors", "selections.jsonl", "checkpoint.safetensors")


ENDS_AFTER_8_STEPS = """
import os, sys
from medyate_planner.cli import main
from medyate_planner.training.run import RunFolder

real = RunFolder.save

def save(self, checkpoint, model):
    real(self, checkpoint, model)
    if checkpoint.progress.steps_done == 8:
        os._exit(9)

RunFolder.save = save
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("folder")
def test_a_run_with_loading_workers_goes_on_within_an_epoch() -> None:
    """Real images, decoded, flipped and moved by two processes."""
    options = ("--checkpoint-every", "4", "--augment", "flip+crop", "--workers", "2")
    done(*train_arguments("plan.json", "whole", *options))
    command = [sys.executable, "-c", ENDS_AFTER_8_STEPS, *map(str, train_arguments("plan.json", "new", *options))]
    assert subprocess.run(command, capture_output=True, env=environment(), check=False).returncode == 9
    result = done(*train_arguments("plan.json", "new", *options, "--resume"))
    assert "resuming after epoch 1 and 2 steps of the next" in result.err
    assert same_bytes("new", "whole", "model.safetensors", "selections.jsonl", "checkpoint.safetensors")


WRONG = {
    "interval": ("plan.json", ("--interval", "0"), ("--interval: expected epoch",)),
    "no interval": ("plan.json", ("--interval", "soon"), ("--interval: expected epoch",)),
    "sampling": ("plan.json", ("--sampling", "best"), ("--sampling 'best' is unknown", "weighted")),
    "no importance": ("plain.json", ("--sampling", "weighted"), ("weighted", "--importance FILE")),
    "boost of uniform": ("plan.json", ("--boost", "0.5"), ("--boost", "--sampling weighted")),
    "boost": ("plan.json", ("--sampling", "weighted", "--boost", "2"), ("--boost: expected",)),
    "alpha of uniform": ("plan.json", ("--alpha", "2"), ("--alpha", "--sampling weighted")),
    "alpha": ("plan.json", ("--sampling", "weighted", "--alpha", "nan"), ("--alpha: expected",)),
    "interval of static": ("static.json", ("--interval", "3"), ("--interval", "static never does")),
    "sampling of a pool": ("pool.json", ("--sampling", "uniform"), ("strategy medyate has draws of its own", "leave")),
    "alpha of a pool": ("pool.json", ("--alpha", "2"), ("strategy medyate has draws of its own",)),
    "momentum": ("plan.json", ("--momentum", "0.5"), ("--momentum belongs to", "sgd")),
    "checkpoints": ("plan.json", ("--checkpoint-every", "0"), ("--checkpoint-every: expected 1 or more",)),
    "head": ("plan.json", ("--head-epochs=-1",), ("--head-epochs",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_would_be_ignored_or_are_wrong_are_refused(folder: Path, name: str) -> None:
    plan, options, words = WRONG[name]
    assert_refused(folder, train_arguments(plan, "new", *options), *words)


@pytest.mark.parametrize(
    "options", [("--sampling", "static"), ("--strategy", "paca"), ("--strategy", "rgn"), ("--strategy", "trady-static")]
)
def test_an_interval_of_draws_for_good_is_refused_by_plan(folder: Path, options: tuple[str, ...]) -> None:
    arguments = ("plan", MODEL, *BATCH, "--budget", "40kB", *KNOWN, "--interval", "3", *options)
    assert_refused(folder, arguments, "--interval", "draws once, for good")


def test_a_pool_takes_another_interval_and_boosting(folder: Path) -> None:
    done(*train_arguments("pool.json", "new", "--interval", "2", "--boost", "0.5"))
    lines = json_lines(folder / "new" / "selections.jsonl")
    draws = strict_json(Path("pool.json").read_text())["sampling"]["draws"]
    assert len(lines) == 6
    for line in lines:
        found = {name: len(channels) for name, channels in line["layers"].items() if channels}
        assert found == draws[line["interval"] % 3]


def test_a_plan_under_autocast_is_trained_so(folder: Path) -> None:
    shown = make_plan("cast.json", *KNOWN, "--autocast", "bfloat16")
    assert "autocast bfloat16" in shown.out
    written = strict_json(Path("cast.json").read_text())
    assert written["autocast"] == "bfloat16"
    done("verify", "cast.json")
    done(*train_arguments("cast.json", "cast"))
    for line in json_lines(folder / "cast" / "metrics.jsonl"):
        assert line["measured_training_bytes"] == written["predicted"]["training_bytes"]
    assert not same_bytes("cast", "run", "model.safetensors")
    assert_refused(folder, ["plan", MODEL, *BATCH, "--budget", "40kB", "--autocast", "int8"], "int8", "bfloat16")
    assert_refused(folder, ["plan", MODEL, *BATCH, "--budget", "40kB", "--autocast", "float16"], "loss scaled")
