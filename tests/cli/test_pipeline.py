"""report → rank → plan → verify → train on a tiny network: documented keys, real bytes, interruption, seeds."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import (
    BATCH,
    BUDGET_BYTES,
    DATA,
    MODEL,
    OUT,
    cli,
    done,
    environment,
    json_lines,
    make_plan,
    module_cli,
    snapshot,
    strict_json,
    train_arguments,
    write_images,
    write_sources,
)
from safetensors.torch import load_file

from medyate_planner.cli import main

EPOCHS = 3
KNOWN = ("--importance", "imp.safetensors", "--objective", "norm", "--metric", "raw")  # some channels of many layers
TRAIN_SAMPLES, TEST_SAMPLES = 24, 12
EPOCH_SAMPLES = TRAIN_SAMPLES + TEST_SAMPLES
WARMING_SAMPLES = 2 * TRAIN_SAMPLES
KEYS: Mapping[str, set[str]] = {
    "report": {"schema_version", "model", "batch_size", "dtype", "full", "inference", "layers"},
    "report.model": {"spec", "fingerprint", "num_parameters"},
    "report.full": {"weights_bytes", "gradients_bytes", "saved_bytes", "optimizer_bytes", "live_peak_bytes"},
    "report.inference": {"live_peak_bytes"},
    "report.layers": {
        "name", "kind", "channels", "weight_bytes", "gradient_bytes_per_channel", "saved_bytes_per_channel",
        "passthrough_bytes",
    },
    "plan": {
        "schema_version", "model", "budget_bytes", "scope", "strategy", "update", "status", "gap_ratio", "objective",
        "predicted", "layers", "biases", "sampling",
    },
    "plan.predicted": {
        "update_bytes", "training_bytes", "live_peak_bytes", "saved_bytes", "gradients_bytes", "optimizer_bytes",
        "passthrough_bytes", "loss_bytes", "elements",
    },
    "plan.layers": {"name", "kind", "channels", "quota"},
    "plan.sampling": {"method", "seed", "interval", "pool"},
    "verify": {"ok", "categories", "budget_bytes", "scope"},
    "verify.categories": {"name", "predicted_bytes", "measured_bytes"},
    "metrics": {
        "epoch", "train_loss", "test_accuracy", "measured_training_bytes", "measured_live_peak_bytes", "seconds",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the whole pipeline: every artefact, with and without an importance file."""
    folder = tmp_path_factory.mktemp("prepared")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("report", MODEL, *BATCH, "-o", "report.json")
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        make_plan("plan.json", *KNOWN)
        make_plan("plain.json")
        done(*train_arguments("plan.json", "run", epochs=EPOCHS))
        for plan in ("plan", "plain"):
            done(*counted(f"{plan}.json", f"whole_{plan}"))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def counted(plan: str, folder: str, *options: object) -> list[object]:
    """Arguments of a training that can be stopped at a sample."""
    return train_arguments(plan, folder, *options, epochs=EPOCHS, data="counted.py:make")


def assert_keys(data: Mapping[str, Any], kind: str) -> None:
    """All keys of DESIGN section 10 are there, in nested objects and in every entry of a list."""
    assert KEYS[kind] <= data.keys()
    for key, value in data.items():
        for entry in value if isinstance(value, list) else [value]:
            if f"{kind}.{key}" in KEYS:
                assert_keys(entry, f"{kind}.{key}")


def test_report_has_the_documented_keys(folder: Path) -> None:
    result = done("report", MODEL, *BATCH, "--json")
    assert_keys(result.json, "report")
    assert result.json == strict_json((folder / "report.json").read_text())
    assert result.json["model"]["spec"] == MODEL
    assert [layer["channels"] for layer in result.json["layers"]] == [3, 8, 16, 16, 48]


def test_rank_json_orders_all_layers_but_the_head(folder: Path) -> None:
    result = done("rank", MODEL, *BATCH, *DATA, "-o", "again.safetensors", "--json").json
    assert {layer["name"] for layer in result["layers"]} == {"stem.0", "expand.0", "depthwise.0", "project"}
    scores = [layer["score"] for layer in result["layers"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(layer["share"] for layer in result["layers"]) == pytest.approx(1)
    assert (folder / "again.safetensors").read_bytes() == (folder / "imp.safetensors").read_bytes()


def test_plan_has_the_documented_keys(folder: Path) -> None:
    printed = make_plan("again.json", *KNOWN, "--json").json
    assert_keys(printed, "plan")
    assert printed == strict_json((folder / "plan.json").read_text())
    assert printed["budget_bytes"] == BUDGET_BYTES
    assert printed["predicted"]["training_bytes"] <= BUDGET_BYTES
    assert printed["model"]["fingerprint"] == strict_json((folder / "report.json").read_text())["model"]["fingerprint"]


@pytest.mark.usefixtures("folder")
def test_nothing_but_json_is_printed_by_a_process() -> None:
    """Neither by a library that writes past Python."""
    printed = module_cli("plan", MODEL, *BATCH, "--budget", f"{BUDGET_BYTES}B", *KNOWN, "--json")
    assert printed.code == 0
    assert_keys(strict_json(printed.out), "plan")


@pytest.mark.parametrize("plan", ["plan.json", "plain.json"])
def test_verify_agrees_in_every_category(folder: Path, plan: str) -> None:
    before = snapshot(folder)
    result = done("verify", plan, "--json").json
    assert_keys(result, "verify")
    assert result["ok"]
    assert all(row["predicted_bytes"] == row["measured_bytes"] for row in result["categories"])
    assert snapshot(folder) == before


@pytest.mark.parametrize(("key", "value"), [("training_bytes", 1), ("saved_bytes", 10**6)])
def test_verify_of_a_wrong_prediction_exits_with_1(folder: Path, key: str, value: int) -> None:
    text = (folder / "plan.json").read_text()
    right = strict_json(text)["predicted"][key]
    (folder / "wrong.json").write_text(text.replace(f'"{key}": {right}', f'"{key}": {value}'))
    result = cli("verify", "wrong.json", "--json")
    assert result.code == 1
    assert result.json["ok"] is False


def test_train_measures_what_was_predicted(folder: Path) -> None:
    predicted = strict_json((folder / "plan.json").read_text())["predicted"]
    metrics = json_lines(folder / "run" / "metrics.jsonl")
    assert [line["epoch"] for line in metrics] == list(range(EPOCHS))
    for line in metrics:
        assert_keys(line, "metrics")
        assert line["measured_training_bytes"] == predicted["training_bytes"] <= BUDGET_BYTES
        assert line["measured_saved_bytes"] == predicted["saved_bytes"]


def test_train_measures_the_predicted_live_peak(folder: Path) -> None:
    predicted = strict_json((folder / "plan.json").read_text())["predicted"]
    for line in json_lines(folder / "run" / "metrics.jsonl"):
        assert line["measured_live_peak_bytes"] == predicted["live_peak_bytes"]


def test_train_json_is_the_run(folder: Path) -> None:
    result = done(*train_arguments("plan.json", "new", "--json", epochs=EPOCHS))
    assert without_seconds(result.json["metrics"]) == without_seconds(json_lines(folder / "run" / "metrics.jsonl"))


def test_selections_fill_the_quotas_and_differ(folder: Path) -> None:
    plan = strict_json((folder / "plan.json").read_text())
    quotas = {layer["name"]: layer for layer in plan["layers"] if layer["name"] != "fc"}
    lines = json_lines(folder / "run" / "selections.jsonl")
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    for line in lines:
        assert line["layers"].keys() == quotas.keys()
        for name, chosen in line["layers"].items():
            assert len(set(chosen)) == len(chosen) == quotas[name]["quota"]
            assert set(chosen) <= set(range(quotas[name]["channels"]))
    open_layers = [name for name, layer in quotas.items() if layer["quota"] < layer["channels"]]
    assert any(lines[0]["layers"][name] != lines[1]["layers"][name] for name in open_layers)


def test_static_selections_stay(folder: Path) -> None:
    make_plan("static.json", "--sampling", "static")
    done(*train_arguments("static.json", "new"))
    first, second = json_lines(folder / "new" / "selections.jsonl")
    assert first["layers"] == second["layers"]


@pytest.mark.parametrize(("plan", "run"), [("plan.json", "run"), ("plain.json", "whole_plain")])
def test_only_what_was_selected_has_changed(folder: Path, plan: str, run: str) -> None:
    start, end = initial_weights(folder), load_file(folder / run / "model.safetensors")
    assert end.keys() == start.keys()
    planned = strict_json((folder / plan).read_text())
    chosen: dict[str, set[int]] = {}
    for line in json_lines(folder / run / "selections.jsonl"):
        for name, channels in line["layers"].items():
            chosen.setdefault(name, set()).update(channels)
    free = {f"{name}.bias" for name in planned["biases"]} | {"fc.weight", "fc.bias"}
    for name, before in start.items():
        layer = name.removesuffix(".weight")
        if layer in chosen:
            changed = changed_channels(before, end[name], depthwise=layer.startswith("depthwise"))
            assert changed
            assert changed <= chosen[layer], name
        elif name not in free:
            assert torch.equal(before, end[name]), name
    assert not torch.equal(start["fc.weight"], end["fc.weight"])


def initial_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The user's own state dict before training."""
    names: dict[str, Any] = {}
    exec((folder / "tiny.py").read_text(), names)
    return dict(names["factory"]().state_dict())


def changed_channels(before: torch.Tensor, after: torch.Tensor, *, depthwise: bool) -> set[int]:
    """Input channels of a weight in which a bit differs."""
    differs = before.ne(after).flatten(2).any(2)
    return set(differs.any(1 if depthwise else 0).nonzero().flatten().tolist())


def test_same_seed_gives_the_same_bytes(folder: Path) -> None:
    make_plan("again.json", *KNOWN)
    assert (folder / "again.json").read_bytes() == (folder / "plan.json").read_bytes()
    done(*train_arguments("again.json", "again", epochs=EPOCHS))
    assert_same_run(folder / "again", folder / "run")


def test_another_seed_gives_another_run(folder: Path) -> None:
    done(*train_arguments("plan.json", "again", "--seed", "1", epochs=EPOCHS))
    assert (folder / "again" / "model.safetensors").read_bytes() != (folder / "run" / "model.safetensors").read_bytes()


def test_train_leaves_plan_importance_and_sources_alone(folder: Path) -> None:
    before = snapshot(folder)
    done(*train_arguments("plan.json", "new"))
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".part")]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("report.json", ("depthwise.0", MODEL)),
        ("plan.json", ("40,000 B", "fc (head, in full)")),
        ("imp.safetensors", ("depthwise.0", "share")),
        ("run", ("40,000 B", "epoch", "test accuracy")),
    ],
)
def test_show_needs_the_file_alone(folder: Path, tmp_path: Path, file: str, words: tuple[str, ...]) -> None:
    (folder / "tiny.py").unlink()
    text = done("show", file)
    assert all(word in text.out for word in words)
    assert text.err == ""
    assert done("show", file, "--json").json["kind"] in ("report", "plan", "importance", "run")
    assert tmp_path in folder.parents


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(3, id="first epoch"),
        pytest.param(TRAIN_SAMPLES + 5, id="first test"),
        pytest.param(EPOCH_SAMPLES + 1, id="second epoch begins"),
        pytest.param(EPOCH_SAMPLES + 10, id="second epoch"),
        pytest.param(EPOCHS * EPOCH_SAMPLES, id="last sample"),
    ],
)
def test_interrupted_run_goes_on_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    interrupt_and_resume(folder, monkeypatch, "plan", call)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(5, id="warming the head"),
        pytest.param(WARMING_SAMPLES + 3, id="first epoch"),
        pytest.param(WARMING_SAMPLES + EPOCH_SAMPLES + 3, id="second epoch"),
    ],
)
def test_interrupted_run_without_importance_goes_on_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    interrupt_and_resume(folder, monkeypatch, "plain", call)


def test_interrupt_is_returned_and_said_as_any_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", "3")
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()):
        assert main([str(argument) for argument in counted("plan.json", "new")]) == 130
    assert (folder / "new" / "plan.json").is_file()
    assert err.getvalue().count("interrupted") == 1


def test_interrupt_is_an_object_with_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", "3")
    result = cli(*counted("plan.json", "new", "--json"))
    assert (folder / "new" / "plan.json").is_file()
    assert result.json["exit_code"] == 130


def interrupt_and_resume(folder: Path, monkeypatch: pytest.MonkeyPatch, plan: str, call: int) -> None:
    """Stop a training at a sample, resume it, and compare with the one that was never stopped."""
    monkeypatch.setenv("STOP_AT", str(call))
    result = cli(*counted(f"{plan}.json", "new"))
    assert_interrupted(result.code, result.err, folder / "new")
    monkeypatch.delenv("STOP_AT")
    done(*counted(f"{plan}.json", "new", "--resume"))
    assert_same_run(folder / "new", folder / f"whole_{plan}")


def assert_interrupted(code: int, err: str, run: Path) -> None:
    """Exit code 130, no traceback, advice, whole epochs only and no weights yet."""
    assert code == 130, err
    assert "Traceback" not in err
    assert f"--resume --out {run.name}" in err or "head" in err
    assert not (run / "model.safetensors").exists()
    assert not list(run.glob(".*.part"))


def assert_same_run(run: Path, other: Path) -> None:
    """Weights and selections are the same bytes, metrics the same but for the seconds."""
    for name in ("model.safetensors", "selections.jsonl", "plan.json", "recipe.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert without_seconds(json_lines(run / "metrics.jsonl")) == without_seconds(json_lines(other / "metrics.jsonl"))


def without_seconds(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Epochs without the one figure that is never twice the same."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_in_the_second_epoch_loses_no_bit(folder: Path, number: signal.Signals) -> None:
    process = start_waiting(EPOCH_SAMPLES + 10)
    try:
        wait_for(lambda: (folder / "reached").exists(), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert_interrupted(process.returncode, err, folder / "new")
    assert len(json_lines(folder / "new" / "metrics.jsonl")) == 1
    done(*counted("plan.json", "new", "--resume"))
    assert_same_run(folder / "new", folder / "whole_plan")


def start_waiting(call: int) -> subprocess.Popen[str]:
    """A training in a process of its own that stops at a sample and waits for a signal."""
    command = [sys.executable, "-m", "medyate_planner", *map(str, counted("plan.json", "new"))]
    more = environment(STOP_AT=str(call), STOP_HOW="wait")
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=more, preexec_fn=hear_interrupts
    )


def hear_interrupts() -> None:
    """A shell's background job inherits that SIGINT is ignored; a person's terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened, but no longer than the process lives."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


KILLED_WHILE_SAVING = """
import os, signal, sys
import medyate_planner.training.checkpoint as run
from medyate_planner.cli import main

real, count = run.save_file, 0

def save_half(state, path, metadata):
    global count
    count += 1
    real(state, path, metadata=metadata)
    if count == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

run.save_file = save_half
main(sys.argv[1:])
"""


def test_kill_while_the_checkpoint_is_written_loses_no_bit(folder: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, *map(str, counted("plan.json", "new"))]
    killed = subprocess.run(command, capture_output=True, env=environment(), timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(json_lines(folder / "new" / "metrics.jsonl")) == 2
    done(*counted("plan.json", "new", "--resume"))
    assert_same_run(folder / "new", folder / "whole_plan")


def test_half_written_lines_are_dropped_on_resuming(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", str(EPOCH_SAMPLES + 10))
    assert cli(*counted("plan.json", "new")).code == 130
    monkeypatch.delenv("STOP_AT")
    for name in ("metrics.jsonl", "selections.jsonl"):
        with (folder / "new" / name).open("a") as file:
            file.write('{"epoch": 1, "tr')
    done(*counted("plan.json", "new", "--resume"))
    assert_same_run(folder / "new", folder / "whole_plan")


def test_resuming_a_finished_run_changes_nothing(folder: Path) -> None:
    before = snapshot(folder)
    done(*train_arguments("plan.json", "run", "--resume", epochs=EPOCHS))
    assert snapshot(folder) == before


def test_process_gives_the_same_run(folder: Path) -> None:
    result = module_cli(*train_arguments("plan.json", "again", "--json", epochs=EPOCHS))
    assert result.code == 0, result.err
    assert result.json["folder"] == "again"
    assert_same_run(folder / "again", folder / "run")


def test_run_folder_can_be_named_anywhere(folder: Path) -> None:
    done("train", "plan.json", *DATA, "--epochs", "1", OUT, "a/b/run")
    assert (folder / "a" / "b" / "run" / "model.safetensors").is_file()
