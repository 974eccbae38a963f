"""`medyate train --cache-prefix`: the same run with fewer samples loaded, also after a kill; refusals."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import (
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

EPOCHS = 3
CACHED = "--cache-prefix"
SHORT = (
    "--forbid-layer",
    "stem.0",
    "expand.0",
    "stem.1",
    "expand.1",
    "--max-quota",
    "4",
    "--objective",
    "norm",
    "--metric",
    "raw",
)
SAMPLES, TEST_SAMPLES = 24, 12
EDGE_BYTES = 16 * 8 * 8 * 4  # the depthwise convolution's input


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, images, a plan that leaves the first layers alone, and a run of it."""
    folder = tmp_path_factory.mktemp("prepared")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_plan("plan.json", *SHORT)
        done(*train_arguments("plan.json", "run", epochs=EPOCHS))
        done(*train_arguments("plan.json", "counted", epochs=EPOCHS, data="counted.py:make"))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def assert_same_run(run: Path, other: Path) -> None:
    """The same weights, draws and figures, but for seconds; and never more live."""
    for name in ("model.safetensors", "selections.jsonl", "plan.json", "recipe.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (json_lines(place / "metrics.jsonl") for place in (run, other))
    for a, b in zip(ours, theirs, strict=True):
        assert a["measured_live_peak_bytes"] <= b["measured_live_peak_bytes"]
        differing = {"seconds", "measured_live_peak_bytes"}
        assert {k: v for k, v in a.items() if k not in differing} == {k: v for k, v in b.items() if k not in differing}


def test_run_is_the_same_and_says_what_it_needs(folder: Path) -> None:
    result = done(*train_arguments("plan.json", "new", CACHED, epochs=EPOCHS))
    assert_same_run(folder / "new", folder / "run")
    assert f"{EDGE_BYTES:,} B per sample x {SAMPLES} samples = {EDGE_BYTES * SAMPLES:,} B in new/prefix" in result.err
    assert "not used" not in result.err
    assert not (folder / "new" / "prefix").exists()
    predicted = strict_json((folder / "plan.json").read_text())["predicted"]
    lines = json_lines(folder / "new" / "metrics.jsonl")
    assert {line["measured_training_bytes"] for line in lines} == {predicted["training_bytes"]}
    assert lines[0]["measured_live_peak_bytes"] == predicted["live_peak_bytes"] > lines[1]["measured_live_peak_bytes"]


def test_workers_load_the_same(folder: Path) -> None:
    done(*train_arguments("plan.json", "new", CACHED, "--workers", "1", epochs=2))
    done(*train_arguments("plan.json", "other", "--workers", "1", epochs=2))
    assert_same_run(folder / "new", folder / "other")


@pytest.mark.usefixtures("folder")
def test_samples_of_later_epochs_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside two epochs of the head and the first, one batch of four for comparison."""
    before = 2 * SAMPLES + SAMPLES + TEST_SAMPLES + 4 + (EPOCHS - 1) * TEST_SAMPLES
    for call, code in ((before + 1, 0), (before, 130)):
        monkeypatch.setenv("STOP_AT", str(call))
        result = cli(*train_arguments("plan.json", "new", CACHED, "--force", epochs=EPOCHS, data="counted.py:make"))
        assert result.code == code, result.err


def test_cache_is_kept_on_demand_and_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = train_arguments("plan.json", "new", CACHED, "--keep-prefix", epochs=EPOCHS, data="counted.py:make")
    done(*arguments)
    kept = folder / "new" / "prefix"
    assert sum(file.stat().st_size for file in kept.glob("*.bin")) == SAMPLES * (EDGE_BYTES + 8)  # targets too
    monkeypatch.setenv("STOP_AT", str(2 * SAMPLES + 4 + EPOCHS * TEST_SAMPLES + 1))
    again = done(*arguments, "--force")
    assert f"{SAMPLES} samples kept before" in again.err
    assert_same_run(folder / "new", folder / "counted")


@pytest.mark.parametrize("call", [SAMPLES * 2 + 10, SAMPLES * 3 + TEST_SAMPLES + 2, SAMPLES * 3 + TEST_SAMPLES + 8])
def test_interrupted_run_goes_on_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    arguments = train_arguments("plan.json", "new", CACHED, epochs=EPOCHS, data="counted.py:make")
    monkeypatch.setenv("STOP_AT", str(call))
    assert cli(*arguments).code == 130
    monkeypatch.delenv("STOP_AT")
    done(*arguments, "--resume")
    assert_same_run(folder / "new", folder / "counted")
    assert not (folder / "new" / "prefix").exists()


def test_killed_run_goes_on_bit_for_bit(folder: Path) -> None:
    arguments = train_arguments("plan.json", "new", epochs=EPOCHS, data="counted.py:make")
    command = [sys.executable, "-c", KILLED, *map(str, arguments), CACHED, "--checkpoint-every", "2"]
    killed = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "new" / "prefix").exists()
    done(*arguments, "--resume", "--checkpoint-every", "2", CACHED)
    assert_same_run(folder / "new", folder / "counted")


KILLED = """
import os, signal, sys
from medyate_planner.cli import main
from medyate_planner.training.prefix_cache import PrefixCache

real, count = PrefixCache.read, 0

def read(*arguments):
    global count
    count += 1
    if count == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

PrefixCache.read = read
main(sys.argv[1:])
"""


def test_cache_of_other_weights_is_made_again(folder: Path) -> None:
    done(*train_arguments("plan.json", "new", CACHED, "--keep-prefix", epochs=EPOCHS))
    source = (folder / "tiny.py").read_text().replace("torch.manual_seed(0)", "torch.manual_seed(1)")
    (folder / "tiny.py").write_text(source)
    result = done(*train_arguments("plan.json", "new", CACHED, "--force", epochs=EPOCHS))
    assert "kept for other weights, data or layers; made again" in result.err
    done(*train_arguments("plan.json", "other", epochs=EPOCHS))
    assert_same_run(folder / "new", folder / "other")


@pytest.mark.parametrize(
    ("plan", "options", "words"),
    [
        ("plan.json", (CACHED, "--augment", "flip"), ("--cache-prefix", "--augment flip")),
        ("plan.json", ("--keep-prefix",), ("--keep-prefix", "needs --cache-prefix")),
        ("norm.json", (CACHED,), ("frozen norms", "--norm train")),
        ("pool.json", (CACHED,), ("fixed set of layers",)),
    ],
)
def test_what_can_not_be_kept_is_refused(
    folder: Path, plan: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    make_plan("norm.json", "--norm", "train", budget="100kB")
    make_plan("pool.json", "--strategy", "random", "--intervals", "2")
    assert_refused(folder, train_arguments(plan, "new", *options), *words)


def test_a_reach_from_the_inputs_is_refused(folder: Path) -> None:
    make_plan("whole.json", "--force-layer", "stem.0")
    result = cli(*train_arguments("whole.json", "new", CACHED))
    assert result.code == 2
    assert "begins at the model's inputs" in result.err
    assert not (folder / "new" / "prefix").exists()


def test_a_plan_for_all_that_is_live_holds_from_the_cache_too(folder: Path) -> None:
    make_plan("peak.json", "--scope", "peak", *SHORT, budget="150kB")
    done(*train_arguments("peak.json", "new", CACHED, "--enforce", epochs=EPOCHS))
    done(*train_arguments("peak.json", "other", epochs=EPOCHS))
    assert_same_run(folder / "new", folder / "other")
