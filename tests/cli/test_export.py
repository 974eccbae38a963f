"""`medyate export` on real runs of a tiny network: final weights, deltas that make them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import (
    BATCH,
    DATA,
    MODEL,
    assert_refused,
    cli,
    done,
    make_plan,
    train_arguments,
    write_images,
    write_sources,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medyate_planner.training.delta import apply_delta

EPOCHS = 3
EPOCH_SAMPLES = 24 + 12  # of counted.py
PLANS: dict[str, tuple[object, ...]] = {
    "warmed": ("--importance", "imp.safetensors"),
    "plain": (),
    "scales": ("--norm-scales", "--max-quota", "2"),
    "head_by_channels": ("--importance", "imp.safetensors", "--head-by-channels", "--max-quota", "3"),
    "head_in_part": ("--head-by-channels", "--max-quota", "3"),
    "optimizer": ("--optimizer", "adamw", "--max-quota", "3"),
    "norms": ("--norm", "train", "--max-quota", "3"),
    "pool": ("--importance", "imp.safetensors", "--strategy", "trady", "--intervals", "2"),
    "boosted": ("--importance", "imp.safetensors", "--sampling", "weighted", "--boost", "0.5", "--max-quota", "2"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its original weights, and a finished run of each plan."""
    folder = tmp_path_factory.mktemp("prepared")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        for name, options in PLANS.items():
            make_plan(f"{name}.json", *options, budget="100kB")
            done(*train_arguments(f"{name}.json", name, epochs=EPOCHS))
        make_plan("five.json", "--num-classes", "5")
        done(*train_arguments("five.json", "five"))
        done("export", "warmed", "-o", "delta.safetensors", "--delta")
    save_file(tiny(folder).state_dict(), folder / "original.safetensors")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def tiny(folder: Path) -> nn.Module:
    """The user's own model before training."""
    names: dict[str, Any] = {}
    exec((folder / "tiny.py").read_text(), names)
    model: nn.Module = names["factory"]()
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names and bits."""
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_final_weights_are_the_runs(folder: Path, suffix: str) -> None:
    result = done("export", "warmed", "-o", f"out/final{suffix}")
    assert result.out == ""
    file = folder / "out" / f"final{suffix}"
    found = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    assert_same(found, load_file(folder / "warmed" / "model.safetensors"))
    tiny(folder).load_state_dict(found)
    assert f"{file.stat().st_size:,} B" in result.err


@pytest.mark.parametrize("name", PLANS)
def test_original_and_delta_make_the_final_weights(folder: Path, name: str) -> None:
    done("export", name, "-o", "d.safetensors", "--delta")
    done("export", "d.safetensors", "--onto", "original.safetensors", "-o", "made.safetensors")
    final, original = load_file(folder / name / "model.safetensors"), load_file(folder / "original.safetensors")
    assert_same(load_file(folder / "made.safetensors"), final)
    assert any(not torch.equal(tensor, original[key]) for key, tensor in final.items())
    model = tiny(folder)
    apply_delta(model, folder / "d.safetensors")
    assert_same(dict(model.state_dict()), final)


def test_delta_of_a_new_head_goes_onto_the_file_of_the_old_one(folder: Path) -> None:
    done("export", "five", "-o", "d.safetensors", "--delta")
    done("export", "d.safetensors", "--onto", "original.safetensors", "-o", "made.pt")
    made = torch.load(folder / "made.pt", weights_only=True)
    assert_same(made, load_file(folder / "five" / "model.safetensors"))
    assert made["fc.weight"].shape == (5, 48)


def test_delta_holds_only_what_was_trained(folder: Path) -> None:
    done("export", "scales", "-o", "d.safetensors", "--delta")
    plan = json.loads((folder / "scales" / "plan.json").read_text())
    drawn: dict[str, set[int]] = {}
    for line in (folder / "scales" / "selections.jsonl").read_text().splitlines():
        for name, channels in json.loads(line)["layers"].items():
            drawn.setdefault(name, set()).update(channels)
    tensors = load_file(folder / "d.safetensors")
    partly = {layer["name"]: drawn[layer["name"]] for layer in plan["layers"] if not layer["head"]}
    partly = {name: channels for name, channels in partly.items() if f"{name}.weight" not in tensors}
    assert partly
    assert {name: set(tensors[f"{name}.weight#channels"].tolist()) for name in partly} == partly
    halves = {f"{name}.weight#{half}" for name in partly for half in ("channels", "values")}
    full = {f"{layer['name']}.weight" for layer in plan["layers"] if layer["name"] not in partly}
    assert tensors.keys() == halves | full | {f"{name}.bias" for name in (*plan["biases"], "fc")}


def test_a_head_bought_by_channels_is_held_in_full_only_if_it_was_warmed(folder: Path) -> None:
    for name, in_full in (("head_by_channels", True), ("head_in_part", False)):
        done("export", name, "-o", f"{name}.safetensors", "--delta")
        assert ("fc.weight" in load_file(folder / f"{name}.safetensors")) == in_full


def test_delta_says_what_it_was_made_from(folder: Path) -> None:
    with safe_open(folder / "delta.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["medyate"])
    plan = json.loads((folder / "warmed" / "plan.json").read_text())
    assert (facts["kind"], facts["schema_version"]) == ("delta", 1)
    assert facts["fingerprint"] == plan["model"]["fingerprint"]
    assert facts["facts"] == {"finished": True, "model": MODEL}


def test_delta_can_be_shown(folder: Path) -> None:
    shown = done("show", "delta.safetensors", "--json").json
    tensors = load_file(folder / "delta.safetensors")
    assert (shown["kind"], shown["finished"], shown["model"]["spec"]) == ("delta", True, MODEL)
    assert shown["values_bytes"] == sum(t.nbytes for name, t in tensors.items() if not name.endswith("#channels"))
    parts = {entry["name"]: entry["channels"] for entry in shown["tensors"] if entry["channels"] is not None}
    assert parts == {n.removesuffix("#channels"): len(t) for n, t in tensors.items() if n.endswith("#channels")}
    text = done("show", "delta.safetensors").out
    assert all(f"{entry['name']} " in text for entry in shown["tensors"])
    assert f"{shown['values_bytes']:,} B" in text


def test_json_gives_the_sizes(folder: Path) -> None:
    result = done("export", "warmed", "-o", "d.safetensors", "--delta", "--json")
    weights = load_file(folder / "warmed" / "model.safetensors")
    assert result.json == {
        "schema_version": 1,
        "kind": "export",
        "file": "d.safetensors",
        "content": "delta",
        "finished": True,
        "file_bytes": (folder / "d.safetensors").stat().st_size,
        "weights_bytes": sum(tensor.nbytes for tensor in weights.values()),
    }
    applied = done("export", "d.safetensors", "--onto", "original.safetensors", "-o", "m.safetensors", "--json").json
    assert (applied["content"], applied["weights_bytes"]) == ("weights", result.json["weights_bytes"])


def test_same_run_gives_the_same_bytes(folder: Path) -> None:
    done("export", "warmed", "-o", "again.safetensors", "--delta")
    assert (folder / "again.safetensors").read_bytes() == (folder / "delta.safetensors").read_bytes()


@pytest.mark.parametrize("options", [(), ("--checkpoint-every", "2"), ("--checkpoint-every", "1", "--interval", "2")])
@pytest.mark.parametrize("name", ["warmed", "plain", "head_by_channels"])
def test_unfinished_run_is_exported_from_its_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...]
) -> None:
    """Stopped in the fifth step of the second epoch; in its middle channels of a new interval were trained."""
    warming = 2 * 24 if name == "plain" else 0
    monkeypatch.setenv("STOP_AT", str(warming + EPOCH_SAMPLES + 18))
    stopped = cli(*train_arguments(f"{name}.json", "new", *options, epochs=EPOCHS, data="counted.py:make"))
    assert stopped.code == 130
    whole = done("export", "new", "-o", "full.safetensors")
    delta = done("export", "new", "-o", "d.safetensors", "--delta", "--json")
    assert "not finished" in whole.err
    assert "not finished" in delta.err
    assert delta.json["finished"] is False
    applied = done("export", "d.safetensors", "--onto", "original.safetensors", "-o", "made.safetensors")
    assert "not finished" in applied.err
    full = load_file(folder / "full.safetensors")
    assert_same(load_file(folder / "made.safetensors"), full)
    assert full.keys() == load_file(folder / "original.safetensors").keys()
    checkpoint = load_file(folder / "new" / "checkpoint.safetensors")
    assert all(torch.equal(tensor, checkpoint[key]) for key, tensor in full.items())


def test_a_half_written_last_line_does_not_matter(folder: Path) -> None:
    with (folder / "warmed" / "selections.jsonl").open("a") as file:
        file.write('{"epoch": 3, "layers": {"stem.0": [0, ')
    done("export", "warmed", "-o", "again.safetensors", "--delta")
    assert (folder / "again.safetensors").read_bytes() == (folder / "delta.safetensors").read_bytes()


def test_run_is_left_as_it_is(folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "warmed").iterdir()}
    done("export", "warmed", "-o", "d.safetensors", "--delta")
    done("export", "warmed", "-o", "full.pt")
    assert {path: path.read_bytes() for path in (folder / "warmed").iterdir()} == before


def case(name: str, arguments: tuple[object, ...], *words: str) -> Any:
    """One mistake: the command, and what its error has to say."""
    return pytest.param(arguments, words, id=name)


ONTO = ("export", "delta.safetensors", "-o", "new.safetensors", "--onto")
MISTAKES = [
    case("no output", ("export", "warmed"), "export needs -o", "medyate export --help"),
    case("no run", ("export", "data", "-o", "new.safetensors"), "data: expected a run folder"),
    case("nothing there", ("export", "none", "-o", "new.safetensors"), "none: expected a run folder"),
    case("no checkpoint", ("export", "begun", "-o", "new.safetensors"), "begun: no checkpoint", "--resume"),
    case("delta without original", ("export", "delta.safetensors", "-o", "new.safetensors"), "--onto WEIGHTS"),
    case("run onto weights", ("export", "warmed", "-o", "new.safetensors", "--onto", "original.safetensors"), "--onto"),
    case("delta of a delta", (*ONTO, "original.safetensors", "--delta"), "leave out --delta"),
    case("unknown suffix", ("export", "warmed", "-o", "new.onnx"), ".safetensors or .pt or .pth", "'.onnx'"),
    case("delta as a torch file", ("export", "warmed", "-o", "new.pt", "--delta"), ".safetensors", "'.pt'"),
    case("file exists", ("export", "warmed", "-o", "delta.safetensors"), "--force"),
    case("into the run", ("export", "warmed", "-o", "warmed/model.safetensors", "--force"), "run's own files"),
    case("no such delta", ("export", "none.safetensors", *ONTO[2:], "original.safetensors"), "no such file"),
    case("no delta", ("export", "imp.safetensors", *ONTO[2:], "original.safetensors"), "kind delta, got 1 of import"),
    case("no such weights", (*ONTO, "none.safetensors"), "none.safetensors", "no such file"),
    case("other weights", (*ONTO, "other.safetensors"), "other.safetensors: stem.1.running_mean", "started from"),
    case("weights of another model", (*ONTO, "unfit.safetensors"), "unfit.safetensors: a is not in the model"),
    case("too few weights", (*ONTO, "few.safetensors"), "few.safetensors: lacks stem.1.running_mean"),
    case("cut delta", ("export", "cut.safetensors", *ONTO[2:], "original.safetensors"), "cut.safetensors", "read"),
    case("cut weights", ("export", "damaged", "-o", "new.safetensors"), "model.safetensors can not be read"),
    case("odd selections", ("export", "odd", "-o", "new.safetensors", "--delta"), "line 1 is not what a run writes"),
    case("model is gone", ("export", "moved", "-o", "new.safetensors", "--delta"), "there is no file gone.py"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistake_is_one_line_and_touches_nothing(
    folder: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    spoil(folder)
    assert_refused(folder, arguments, *words)


def spoil(folder: Path) -> None:
    """Files that are not what they should be."""
    original = load_file(folder / "original.safetensors")
    changed = {**original, "stem.1.running_mean": original["stem.1.running_mean"] + 1}
    save_file(changed, folder / "other.safetensors")
    save_file({n: t for n, t in original.items() if n != "stem.1.running_mean"}, folder / "few.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "unfit.safetensors")
    whole = (folder / "delta.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("begun", "damaged", "odd", "moved"):
        shutil.copytree(folder / "warmed", folder / name)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (folder / "begun" / name).unlink()
    (folder / "damaged" / "model.safetensors").write_bytes(b"nonsense")
    lines = (folder / "odd" / "selections.jsonl").read_text().splitlines()
    (folder / "odd" / "selections.jsonl").write_text("\n".join(['{"epoch": 0}', *lines]))
    plan = folder / "moved" / "plan.json"
    plan.write_text(plan.read_text().replace("tiny.py:", "gone.py:"))
