"""Mistakes: the right exit code, one line that says what to do (or one JSON object), and no file touched."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import (
    BATCH,
    DATA,
    MODEL,
    OUT,
    assert_one_line,
    assert_refused,
    cli,
    done,
    json_lines,
    make_plan,
    module_cli,
    snapshot,
    train_arguments,
    write_images,
    write_sources,
)
from safetensors.torch import load_file, save_file

RANK = ("rank", MODEL, *BATCH, *DATA, "-o", "new.safetensors")
PLAN = ("plan", MODEL, *BATCH, "--budget", "40kB", "-o", "new.json")
REPORT = ("report", MODEL, *BATCH, "-o", "new.json")
TRAIN = ("train", "plan.json", *DATA, "--epochs", "2", OUT, "new")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data sound and unsound, and one of each artefact."""
    folder = tmp_path_factory.mktemp("prepared")
    write_sources(folder)
    write_images(folder / "data")
    write_images(folder / "many", classes=4, train=4, test=1)
    write_images(folder / "grey", train=4, test=1, mode="L")
    write_images(folder / "corrupt", train=4, test=1)
    image = folder / "corrupt" / "train" / "c1" / "2.png"
    image.write_bytes(image.read_bytes()[:100])
    (folder / "empty").mkdir()
    write_arrays(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, *DATA, "-o", "imp.safetensors")
        done("rank", "tiny.py:four", *BATCH, *DATA, "-o", "other.safetensors")
        make_plan("plan.json", "--importance", "imp.safetensors")
        make_plan("plain.json")
        done("report", MODEL, *BATCH, "-o", "report.json")
        done(*train_arguments("plan.json", "run"))
    weights = load_file(folder / "run" / "model.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "unfit.safetensors")
    whole = (folder / "run" / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(weights, folder / "weights.pt")
    (folder / "cut.pt").write_bytes((folder / "weights.pt").read_bytes()[:500])
    return folder


def write_arrays(folder: Path) -> None:
    """Arrays with NaN everywhere, and in the test set alone."""
    labels = np.arange(24) % 3
    sound = np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype(np.float32)
    unsound = np.full_like(sound, np.nan)
    np.savez(folder / "nan.npz", x=unsound, y=labels)
    np.savez(folder / "nan_test.npz", x_train=sound, y_train=labels, x_test=unsound, y_test=labels)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


def case(name: str, arguments: tuple[object, ...], *words: str) -> Any:
    """One mistake: the command, and what its error has to say."""
    return pytest.param(arguments, words, id=name)


USAGE = [
    case("unknown command", ("nonsense",), "nonsense", "report, rank, plan", "--help"),
    case("unknown option", (*PLAN, "--nonsense"), "--nonsense", "medyate plan --help"),
    case("missing budget", ("plan", MODEL), "--budget (one plan)", "--budgets"),
    case(
        "both budgets", ("plan", MODEL, "--budget", "1MB", "--budgets", "1MB,2MB"), "--budget (one plan)", "--budgets"
    ),
    case("plans of one budget", (*PLAN, "--plans", "here"), "--plans belongs to --budgets"),
    case("missing data", ("rank", MODEL), "--data", "medyate rank --help"),
    case("missing epochs", ("train", "plan.json", *DATA), "--epochs", "medyate train --help"),
    case("missing model", ("report",), "MODEL", "medyate report --help"),
    case("not a number", (*PLAN, "--gap", "much"), "--gap", "much"),
]

MODELS = [
    case("misspelt model", ("report", "mcunet-5fp"), "mcunet-5fp", "did you mean mcunet-5fps"),
    case("no factory", ("report", "tiny.py:fabrik"), "tiny.py has no 'fabrik'", "factory"),
    case("no factory named", ("report", "tiny.py"), "tiny.py:FACTORY"),
    case("no such file", ("report", "none.py:factory"), "there is no file none.py"),
    case("weights missing", (*REPORT, "--weights", "none.safetensors"), "none.safetensors", "no such file"),
    case("weights unfit", (*REPORT, "--weights", "unfit.safetensors"), "do not fit", "stem.0.weight [8, 3, 3, 3]"),
    case("weights of another head", ("report", "tiny.py:four", "--weights", "weights.pt"), "--num-classes 3"),
    case("weights truncated", (*REPORT, "--weights", "cut.safetensors"), "cut.safetensors", "damaged"),
    case("torch file truncated", (*REPORT, "--weights", "cut.pt"), "cut.pt", "damaged"),
    case("weights of unknown kind", (*REPORT, "--weights", "tiny.py"), ".safetensors, .pt or .pth"),
    case("shape without sense", (*REPORT, "--input-shape", "3x"), "--input-shape '3x'", "3x128x128"),
    case("shape with a zero", (*REPORT, "--input-shape", "0x16x16"), "--input-shape", "positive"),
    case("shape of two", (*REPORT, "--input-shape", "3x128"), "Tiny", "check the input shape"),
    case("shape of one channel", (*REPORT, "--input-shape", "1x16x16"), "Tiny", "check the input shape"),
    case("no classes", (*REPORT, "--num-classes", "0"), "--num-classes 0", "at least 1"),
    case("batch of 0", (*REPORT[:2], "--batch-size", "0"), "--batch-size", "1 or more"),
    case("batch below 0", ("plan", MODEL, "--budget", "1MB", "--batch-size=-1"), "--batch-size", "1 or more"),
    case("unknown dtype", (*REPORT, "--dtype", "int4"), "int4", "float32 or bfloat16"),
    case("unknown loss", (*REPORT, "--loss", "hinge"), "hinge", "cross-entropy, next-token, mse, or module:factory"),
    case("loss of no module", (*REPORT, "--loss", "none:loss"), "none:loss", "can not import"),
    case("no such head", (*REPORT, "--head", "top"), "'top' matches no layer", "fc", "--head none"),
    case("unknown optimizer", (*REPORT, "--optimizer", "lion"), "lion", "sgd, momentum, adam, adamw"),
    case("unknown device", (*REPORT, "--device", "abacus"), "abacus", "cpu"),
    case("absent device", (*REPORT, "--device", "cuda:99"), "cuda:99"),
    case("unknown dropout", (*REPORT, "--dropout", "twice"), "twice", "keep"),
]

DATA_SETS = [
    case("empty folder", (*RANK[:4], "--data", "imagefolder:empty"), "imagefolder:empty", "train/CLASS/*.jpg"),
    case("missing folder", (*RANK[:4], "--data", "imagefolder:none"), "imagefolder:none", "no such folder"),
    case("missing tar", (*RANK[:4], "--data", "tar:none.tar"), "tar:none.tar", "no such file"),
    case("missing npz", (*RANK[:4], "--data", "npz:none.npz"), "npz:none.npz", "no such file"),
    case("no tar", (*RANK[:4], "--data", "tar:tiny.py"), "tar:tiny.py", "not a tar"),
    case("no kind", (*RANK[:4], "--data", "data"), "did you mean imagefolder:data"),
    case("corrupt image", (*RANK[:4], "--data", "imagefolder:corrupt"), "train/c1/2.png", "replace or remove it"),
    case("more classes than the head", (*RANK[:4], "--data", "imagefolder:many"), "4 classes", "--num-classes 4"),
    case("unknown augmentation", (*RANK, "--augment", "mix"), "mix", "flip+crop"),
    case("limit of 0", (*RANK, "--limit", "0"), "--limit 0", "at least 1"),
    case("too few means", (*RANK, "--mean", "0.5"), "3 channels", "--mean and --std"),
    case("deviation of 0", (*RANK, *["--std", "0"] * 3), "deviation", "above 0"),
    case("workers below 0", (*RANK, "--workers=-1"), "--workers"),
    case("share above 1", (*RANK, "--val-fraction", "2"), "--val-fraction"),
]

RANKING = [
    case("unknown metric", (*RANK, "--metric", "best"), "--metric 'best'", "sized, raw, rgn, lara"),
    case("rate of 0", (*RANK, "--lr", "0"), "--lr", "positive"),
    case("clip of 0", (*RANK, "--clip", "0"), "--clip", "positive"),
    case("output exists", (*RANK[:6], "-o", "imp.safetensors"), "imp.safetensors exists", "--force"),
    case("output below a file", (*RANK[:6], "-o", "tiny.py/new.safetensors"), "tiny.py/new", "can not be written"),
    case("batches of 0", (*RANK, "--batches", "0"), "--batches"),
    case("batches below 0", (*RANK, "--batches=-1"), "--batches"),
    case("head epochs below 0", (*RANK, "--head-epochs=-1"), "--head-epochs"),
    case("rate infinite", (*RANK, "--lr", "inf"), "--lr"),
    case("clip nan", (*RANK, "--clip", "nan"), "--clip"),
]

PLANNING = [
    case("budget without unit", (*PLAN[:4], "--budget", "512"), "'512' has no unit", "512kB"),
    case("budget of 0", (*PLAN[:4], "--budget", "0kB"), "'0kB'", "less than 1 byte", "512kB"),
    case("budget of 0 alone", (*PLAN[:4], "--budget", "0"), "'0'", "512kB"),
    case("budget below 0", (*PLAN[:4], "--budget=-5kB"), "'-5kB'", "512kB"),
    case("budget below 0, apart", (*PLAN[:4], "--budget", "-5kB"), "--budget"),
    case("budget in words", (*PLAN[:4], "--budget", "plenty"), "'plenty'", "512kB"),
    case("budget empty", (*PLAN[:4], "--budget", ""), "''", "512kB"),
    case("budget of unknown unit", (*PLAN[:4], "--budget", "5XB"), "'XB'", "512kB"),
    case("unknown scope", (*PLAN, "--scope", "all"), "'all'", "update, training"),
    case("unknown strategy", (*PLAN, "--strategy", "best"), "'best'", "optimal, greedy", "lara-medyate"),
    case("unknown objective", (*PLAN, "--objective", "loss"), "'loss'", "projection, norm, energy"),
    case("unknown metric", (*PLAN, "--metric", "best"), "'best'", "sized, raw, rgn, lara"),
    case("unknown place of weights", (*PLAN, "--weights-in", "rom"), "'rom'", "ram or flash"),
    case("margin that is no share", (*PLAN, "--margin", "much"), "--margin: 'much'", "10% or 0.1"),
    case("operations without a number", (*PLAN, "--max-flops", "few"), "--max-flops: 'few'", "800M, 1.2G, or 50%"),
    case("quotas that exclude all", (*PLAN, "--min-quota", "5", "--max-quota", "4"), "--max-quota 4", "--min-quota 5"),
    case("scheme without a file", (*PLAN, "--strategy", "sparse-update"), "--scheme FILE"),
    case("boost of uniform draws", (*PLAN, "--strategy", "trady", "--boost", "0.5"), "boost", "weighted"),
    case("boost of no weights", (*PLAN, "--boost", "0.5"), "--boost", "--sampling weighted"),
    case("draws without importance", (*PLAN, "--strategy", "medyate"), "--strategy medyate", "--importance FILE"),
    case("draws of their own", (*PLAN, "--strategy", "trady", "--sampling", "static"), "--sampling static", "trady"),
    case("scheme of another strategy", (*PLAN, "--scheme", "x.json"), "--scheme belongs to --strategy sparse-update"),
    case("flash without peak", (*PLAN, "--weights-in", "flash"), "--weights-in flash belongs to --scope peak"),
    case("too many intervals", (*PLAN, "--strategy", "trady", "--intervals", "100000"), "--intervals", "1000"),
    case("explanation of many", ("plan", MODEL, "--budgets", "1MB,2MB", "--explain"), "--explain belongs to --budget"),
    case("program of greedy", (*PLAN, "--strategy", "greedy", "--write-lp", "x.lp"), "--write-lp belongs to"),
    case("forbidden head", (*PLAN, "--forbid-layer", "fc"), "--forbid-layer fc forbids the head", "--head none"),
    case("unknown curve", (*PLAN, "--curve", "bent"), "'bent'", "uniform, weighted, top"),
    case("unknown sampling", (*PLAN, "--sampling", "lucky"), "'lucky'", "uniform, weighted, top, static"),
    case("unknown update", (*PLAN, "--update", "late"), "late", "choose fused or optimizer"),
    case("unknown optimizer", (*PLAN, "--optimizer", "lion"), "lion", "choose one of sgd, momentum, adam, adamw"),
    case("unknown norm", (*PLAN, "--norm", "batch"), "batch", "choose frozen or train"),
    case("adam in mode fused", (*PLAN, "--update", "fused", "--optimizer", "adam"), "adam", "update mode optimizer"),
    case("weighted without importance", (*PLAN, "--sampling", "weighted"), "--importance FILE", "medyate rank"),
    case("top without importance", (*PLAN, "--sampling", "top"), "--importance FILE", "medyate rank"),
    case("importance missing", (*PLAN, "--importance", "none.st"), "none.st", "medyate rank"),
    case("importance truncated", (*PLAN, "--importance", "cut.safetensors"), "cut.safetensors", "medyate rank"),
    case("importance is weights", (*PLAN, "--importance", "unfit.safetensors"), "importance", "medyate rank"),
    case("importance of another", (*PLAN, "--importance", "other.safetensors"), "another model", "medyate rank"),
    case("force no layer", (*PLAN, "--force-layer", "block*"), "'block*' matches no layer", "medyate report"),
    case("forbid no layer", (*PLAN, "--forbid-layer", "block*"), "'block*' matches no layer", "medyate report"),
    case("forbid all layers", (*PLAN, "--forbid-layer", "*"), "nothing to plan", "--forbid-layer"),
    case("no layers at most", (*PLAN, "--max-layers", "0"), "1 or more, got 0"),
    case("granularity of 0", (*PLAN, "--granularity", "0"), "1 or more, got 0"),
    case("output exists", (*PLAN[:6], "-o", "plan.json"), "plan.json exists", "--force"),
    case("report exists", (*REPORT[:4], "-o", "report.json"), "report.json exists", "--force"),
    case("output is a folder", (*PLAN[:6], "-o", "data", "--force"), "data", "can not be written"),
    case("output below a file", (*PLAN[:6], "-o", "tiny.py/new.json"), "tiny.py/new.json", "can not be written"),
    case("report below a file", (*REPORT[:4], "-o", "tiny.py/new.json"), "tiny.py/new.json", "can not be written"),
    case("more forced than allowed", (*PLAN, "--max-layers", "1", "--force-layer", "*.0"), "--max-layers"),
    case("gap below 0", (*PLAN, "--gap=-1"), "--gap"),
    case("time below 0", (*PLAN, "--time-limit=-1"), "--time-limit"),
    case("seed below 0", (*PLAN, "--seed=-1"), "--seed"),
    case("alpha nan", (*PLAN, "--alpha", "nan"), "--alpha"),
]  # fmt: skip

TRAINING = [
    case("plan missing", ("train", "none.json", *TRAIN[2:]), "none.json", "no such file"),
    case("plan is a report", ("train", "report.json", *TRAIN[2:]), "report.json", "medyate plan"),
    case("plan is a folder", ("verify", "data"), "data", "can not be read"),
    case("no epochs", (*TRAIN[:4], "--epochs", "0", OUT, "new"), "--epochs", "1 or more"),
    case("rate below 0", (*TRAIN, "--lr=-1"), "--lr", "positive"),
    case("data missing", ("train", "plan.json", "--data", "imagefolder:none", *TRAIN[4:]), "no such folder"),
    case("another importance", (*TRAIN, "--importance", "other.safetensors"), "other.safetensors", "plan again"),
    case("importance missing", (*TRAIN, "--importance", "none.st"), "none.st", "--importance FILE"),
    case("run exists", (*TRAIN[:6], OUT, "run"), "run holds a run already", "--resume", "--force"),
    case("resume another recipe", (*TRAIN[:6], OUT, "run", "--resume", "--lr", "0.5"), "another recipe"),
    case("resume longer", (*TRAIN[:4], "--epochs", "3", OUT, "run", "--resume"), "another recipe", "--force"),
    case("resume another plan", ("train", "plain.json", *TRAIN[2:6], OUT, "run", "--resume"), "another plan"),
    case("resume nothing", (*TRAIN, "--resume"), "new holds no run to go on with"),
    case("resume nothing, advice", (*TRAIN, "--resume"), "--resume"),
    case("batch of another plan", ("verify", "plan.json", "--batch-size", "2"), "--batch-size 2", "plan again"),
    case("output below a file", (*TRAIN[:6], OUT, "tiny.py/run"), "tiny.py", "can not be written"),
    case("output is a file", (*TRAIN[:6], OUT, "tiny.py"), "tiny.py", "can not be written"),
    case("decay below 0", (*TRAIN, "--weight-decay=-1"), "--weight-decay"),
    case("warm-up below 0", (*TRAIN, "--warmup-epochs=-1"), "--warmup-epochs"),
    case("workers below 0", (*TRAIN, "--workers=-1"), "--workers"),
    case("more classes", ("train", "plan.json", "--data", "imagefolder:many", *TRAIN[4:]), "4 classes"),
    case("more classes, advice", ("train", "plan.json", "--data", "imagefolder:many", *TRAIN[4:]), "plan"),
    case("less than a batch", (*TRAIN, "--limit", "3"), "batch"),
]  # fmt: skip

SHOWING = [
    case("nothing there", ("show", "none"), "none: no such file"),
    case("no JSON", ("show", "tiny.py"), "tiny.py: not complete JSON"),
    case("weights", ("show", "unfit.safetensors"), "unfit.safetensors", "importance"),
    case("no run", ("show", "data"), "data/plan.json", "no such file"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), [*USAGE, *MODELS, *DATA_SETS, *RANKING, *PLANNING, *TRAINING, *SHOWING]
)
def test_mistake_is_one_line_and_touches_nothing(
    folder: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    assert_refused(folder, arguments, *words)


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], str]:
    """An edit that sets the value at a path of keys."""
    *path, key, value = path_and_value

    def edit(data: dict[str, Any]) -> str:
        place: Any = data
        for part in path:
            place = place[part]
        place[key] = value
        return json.dumps(data)

    return edit


PLANS = [
    pytest.param(lambda data: json.dumps(data)[:300], ("not complete JSON", "medyate plan"), id="truncated"),
    pytest.param(lambda _: "", ("not complete JSON", "medyate plan"), id="empty"),
    pytest.param(lambda _: "[]", ("expected a plan", "medyate plan"), id="a list"),
    pytest.param(put("schema_version", 2), ("schema version 1, got 2", "medyate plan"), id="schema version"),
    pytest.param(put("layers", 0, "quota", 99), ("stem.0", "quota 99", "3 channels"), id="quota above channels"),
    pytest.param(put("layers", 0, "quota", 0), ("layers.0.quota", "got 0"), id="quota of 0"),
    pytest.param(put("extra", 1), ("extra",), id="unknown key"),
    pytest.param(put("model", "spec", "tiny.py:four"), ("another model", "medyate plan"), id="another model's spec"),
    pytest.param(put("model", "fingerprint", "0" * 64), ("another model", "medyate plan"), id="another fingerprint"),
    pytest.param(put("model", "spec", "none.py:f"), ("no file none.py",), id="model gone"),
    pytest.param(put("model", "spec", None), ("names no model", "medyate_planner.prepare"), id="no model"),
    pytest.param(put("model", "weights", "/none.pt"), ("/none.pt", "no such file"), id="weights gone"),
    pytest.param(put("loss", "hinge"), ("hinge", "cross-entropy"), id="unknown loss"),
    pytest.param(put("model", "inputs", 0, "dtype", "float7"), ("float7",), id="dtype"),
    pytest.param(put("device", "abacus"), ("abacus",), id="unknown device"),
    pytest.param(put("sampling", "seed", -1), ("seed",), id="seed below 0"),
    pytest.param(
        put("layers", 0, "channels", 50), ("stem.0", "50", "medyate plan"), id="channels",
    ),
]  # fmt: skip


@pytest.mark.parametrize("command", ["verify", "train"])
@pytest.mark.parametrize(("edit", "words"), PLANS)
def test_damaged_plan_is_one_line_and_touches_nothing(
    folder: Path, edit: Callable[[dict[str, Any]], str], words: tuple[str, ...], command: str
) -> None:
    Path("bad.json").write_text(edit(json.loads(Path("plan.json").read_text())))
    arguments = ("verify", "bad.json") if command == "verify" else ("train", "bad.json", *TRAIN[2:])
    assert_refused(folder, arguments, *words)


@pytest.mark.parametrize(
    "arguments",
    [("verify", "bad.json"), pytest.param(("train", "bad.json", *TRAIN[2:]))],
)
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(put("layers", 0, "name", "ghost"), ("'ghost'",), id="unknown layer"),
        pytest.param(put("biases", ["stem.0"]), ("stem.0", "no bias"), id="bias that is not there"),
    ],
)
def test_plan_that_names_what_is_not_there_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], str], words: tuple[str, ...], arguments: tuple[object, ...]
) -> None:
    Path("bad.json").write_text(edit(json.loads(Path("plan.json").read_text())))
    assert_refused(folder, arguments, *words)


def test_quota_above_channels_says_what_to_do(folder: Path) -> None:
    Path("bad.json").write_text(put("layers", 0, "quota", 99)(json.loads(Path("plan.json").read_text())))
    assert_refused(folder, ("verify", "bad.json"), "quota 99", "medyate plan")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(put("full", "saved_bytes", "much"), id="wrong value"),
        pytest.param(put("schema_version", 3), id="schema version"),
        pytest.param(lambda data: json.dumps(data)[:300], id="truncated"),
    ],
)
def test_damaged_report_is_one_line(folder: Path, edit: Callable[[dict[str, Any]], str]) -> None:
    Path("bad.json").write_text(edit(json.loads(Path("report.json").read_text())))
    assert_refused(folder, ("show", "bad.json"), "bad.json")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.json", "{", ("recipe.json", "remove it")),
        ("recipe.json", "{}", ("was started with another recipe", "--force")),
        pytest.param("recipe.json", "[]", ("recipe.json",)),
        ("plan.json", "{", ("run/plan.json", "not complete JSON")),
        ("checkpoint.safetensors", "x", ("checkpoint", "--force")),
    ],
)
def test_damaged_run_is_not_resumed(folder: Path, name: str, content: str, words: tuple[str, ...]) -> None:
    (folder / "run" / name).write_text(content)
    assert_refused(folder, (*train_arguments("plan.json", "run"), "--resume"), *words)


def test_run_with_half_a_line_can_be_shown(folder: Path) -> None:
    with (folder / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tra')
    assert len(done("show", "run", "--json").json["metrics"]) == 2


def test_importance_missing_beside_the_plan_is_named(folder: Path) -> None:
    (folder / "imp.safetensors").unlink()
    assert_refused(folder, TRAIN, "imp.safetensors", "--importance FILE")


def test_importance_changed_beside_the_plan_is_refused(folder: Path) -> None:
    shutil.copy(folder / "other.safetensors", folder / "imp.safetensors")
    assert_refused(folder, TRAIN, "imp.safetensors", "SHA-256", "plan again")


@pytest.mark.parametrize("options", [(), ("--head-epochs", "0")])
def test_nan_inputs_stop_the_ranking(folder: Path, options: tuple[str, ...]) -> None:
    arguments = ("rank", MODEL, *BATCH, "--data", "npz:nan.npz", "-o", "new.safetensors", *options)
    assert_refused(folder, arguments, "nan", "check the data", code=1)


@pytest.mark.parametrize(
    ("options", "data", "code", "words"),
    [
        pytest.param(("--lr", "1e12", "--clip", "1e12"), DATA[1], 1, ("lr 1e+12", "lower --lr"), id="diverging"),
        pytest.param((), "npz:nan.npz", 1, ("epoch 0, step 0", "check the data"), id="nan inputs"),
        pytest.param((), "imagefolder:corrupt", 2, ("train/c1/2.png", "replace or remove"), id="corrupt image"),
    ],
)
def test_training_that_fails_leaves_a_begun_run_without_weights(
    folder: Path, options: tuple[str, ...], data: str, code: int, words: tuple[str, ...]
) -> None:
    before = snapshot(folder)
    result = cli(*train_arguments("plan.json", "new", *options, data=data))
    assert result.code == code
    assert_one_line(result, *words)
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"new", "new/plan.json", "new/recipe.json"}
    facts = cli(*train_arguments("plan.json", "new", *options, "--force", "--json", data=data)).json
    assert facts["exit_code"] == code
    assert code == 2 or {"epoch", "step", "lr"} <= facts.keys()


def test_nan_in_the_test_set_leaves_valid_json(folder: Path) -> None:
    result = cli(*train_arguments("plan.json", "new", "--json", data="npz:nan_test.npz"))
    assert result.code in (0, 1)
    assert result.json
    assert all(line["test_loss"] is None for line in json_lines(folder / "new" / "metrics.jsonl"))


def test_grey_images_suit_a_colour_network(folder: Path) -> None:
    done("rank", MODEL, *BATCH, "--data", "imagefolder:grey", "-o", "grey.safetensors")
    done(*train_arguments("plan.json", "new", data="imagefolder:grey"))
    assert (folder / "new" / "model.safetensors").is_file()


def test_train_keeps_foreign_files(folder: Path) -> None:
    (folder / "mine").mkdir()
    for name in ("model.safetensors", "metrics.jsonl"):
        (folder / "mine" / name).write_text("precious")
    assert_refused(folder, train_arguments("plan.json", "mine"), "mine", "pass another --out")
    assert_refused(folder, train_arguments("plan.json", "mine", "--force"), "mine", "pass another --out")


def test_resume_with_other_data_is_refused(folder: Path) -> None:
    assert_refused(folder, train_arguments("plan.json", "run", "--resume", data="imagefolder:grey"), "data", "--force")


def test_force_overwrites(folder: Path) -> None:
    Path("plan.json").write_text("old")
    make_plan("plan.json", "--force")
    assert json.loads(Path("plan.json").read_text())["kind"] == "plan"
    done(*train_arguments("plan.json", "run", "--force"))
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("options", [(), ("--scope", "update"), ("--strategy", "full"), ("--strategy", "head-only")])
def test_smallest_budget_is_exact(folder: Path, options: tuple[str, ...]) -> None:
    assert_smallest_budget(folder, MODEL, (*BATCH, *options), too_small="100B")


@pytest.mark.assets
def test_smallest_budget_is_exact_for_mcunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_smallest_budget(tmp_path, "mcunet-5fps", (), too_small="1kB")


def test_budget_of_1kb_can_not_be_met(folder: Path) -> None:
    facts = assert_refused(folder, ("plan", MODEL, *BATCH, "--budget", "1kB"), "1,000 B", "--budget", code=3)
    assert facts["error"] == "InfeasibleBudgetError"
    assert facts["budget_bytes"] == 1000
    assert facts["minimum_bytes"] > 1000


def assert_smallest_budget(folder: Path, model: str, options: tuple[str, ...], *, too_small: str) -> None:
    """`minimum_bytes` can be planned with, one byte less can not, and says the same number."""
    arguments = ("plan", model, *options, "-o", "smallest.json", "--budget")
    facts = assert_refused(folder, (*arguments, too_small), "can not be met", "pass --budget", code=3)
    minimum_bytes = facts["minimum_bytes"]
    less = assert_refused(folder, (*arguments, f"{minimum_bytes - 1}B"), f"--budget {minimum_bytes}B", code=3)
    assert less["minimum_bytes"] == minimum_bytes
    assert less["budget_bytes"] == minimum_bytes - 1
    plan = done(*arguments, f"{minimum_bytes}B", "--json").json
    assert plan["predicted"][f"{plan['scope']}_bytes"] == plan["budget_bytes"] == minimum_bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(("--budget", "much"), ("'much'", "512kB"), id="budget"),
        pytest.param(("--size", "0"), ("--size",), id="size"),
        pytest.param(("--threads=-1",), ("--threads",), id="threads"),
        pytest.param(("--batch-size", "0"), ("--batch-size",), id="batch"),
        pytest.param(("--epochs", "0"), ("--epochs",), id="epochs"),
    ],
)
def test_demo_checks_its_options_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = importlib.import_module("medyate_planner.cli.demo")._Stage
    for step in ("report", "rank", "plan", "verify", "train", "full"):
        monkeypatch.setattr(stage, step, lambda *_: pytest.fail("the work has begun"))
    assert_refused(tmp_path, ("demo", *options), *words)


def test_debug_shows_the_traceback(folder: Path) -> None:
    assert folder.is_dir()
    result = module_cli(*PLAN[:4], "--budget", "512", "--debug")
    assert result.code != 0
    assert "Traceback" in result.err


def test_process_ends_with_the_same_code_and_line(folder: Path) -> None:
    before = snapshot(folder)
    arguments = (*PLAN[:4], "--budget", "1kB", "-o", "new.json")
    result = module_cli(*arguments)
    assert (result.code, result.out) == (3, "")
    assert result == cli(*arguments)
    assert_one_line(result, "1,000 B")
    assert snapshot(folder) == before
