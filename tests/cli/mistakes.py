"""Mistakes that a new user makes, each as a command in a prepared folder. The tests hold what they print, and
reports/mistakes.py lists it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import BATCH, DATA, MODEL, OUT, done, make_plan, train_arguments, write_images, write_sources

PLAN = ("plan", MODEL, *BATCH)
BUDGET = ("--budget", "40kB")
RANK = ("rank", MODEL, *BATCH)
TRAIN = ("train", "plan.json", *DATA, "--epochs", "2", OUT)
FILE_BYTES = 2000  # the most that a file may hold on the full disk; a plan and a checkpoint have more

SAMPLES = """
import torch


class Samples(torch.utils.data.Dataset):
    def __init__(self, channels, classes):
        self.channels, self.labels = channels, classes

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((self.channels, 16, 16), float(index)), index % self.labels


def far():
    return Samples(3, 7), Samples(3, 7)


def grey():
    return Samples(1, 3), Samples(1, 3)
"""

World = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """What is typed, what it has to say, and the world it is typed in."""

    title: str
    command: tuple[object, ...]
    words: tuple[str, ...]
    code: int = 2
    world: World = nullcontext


def prepare(folder: Path) -> None:
    """A model, data, a plan and damaged ones, a finished run, in `folder`, which is the working directory."""
    write_sources(folder)
    (folder / "samples.py").write_text(SAMPLES)
    write_images(folder / "data")
    write_images(folder / "many", classes=4, train=4, test=1)
    (folder / "empty").mkdir()
    (folder / "evil.pt").write_bytes(pickle.dumps({"stem.0.weight": print}))
    random = np.random.default_rng(0)
    np.savez(folder / "many.npz", x=random.random((24, 3, 16, 16), dtype=np.float32), y=np.arange(24) % 7)
    make_plan("plan.json", "--objective", "norm", "--metric", "raw")  # some of every layer
    make_plan("other.json", "--objective", "norm", "--metric", "raw", "--forbid-layer", "stem.0")
    done(*train_arguments("plan.json", "run"))
    text = (folder / "plan.json").read_text()
    (folder / "cut.json").write_text(text[:300])
    for name, edit in EDITS.items():
        data = json.loads(text)
        edit(data)
        (folder / name).write_text(json.dumps(data, indent=2))


def _edit(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, key, value = path_and_value

    def edit(data: dict[str, Any]) -> None:
        place: Any = data
        for part in path:
            place = place[part]
        place[key] = value

    return edit


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "version.json": _edit("schema_version", 2),
    "four.json": _edit("model", "spec", "tiny.py:four"),
    "ghost.json": _edit("layers", 0, "name", "stm.0"),
    "quota.json": _edit("layers", 0, "quota", 99),
    "headless.json": lambda data: data["layers"].pop(),
    "heads.json": _edit("layers", 0, {"name": "stem.0", "kind": "conv", "channels": 3, "quota": 3, "head": True}),
    "bias.json": _edit("biases", ["stem.0"]),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a few bytes: every writer, of text and of tensors, meets the real error of the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_space_left() -> Iterator[None]:
    """The last bytes do not reach the disk."""

    def refuse(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


@contextmanager
def no_permission() -> Iterator[None]:
    """Folders that may not be written to, as the system tells whoever is not root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        yield


def without(*packages: str) -> World:
    """A world in which these packages are not installed."""

    @contextmanager
    def world() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in list(sys.modules):
                if name.split(".")[0] in packages:
                    patch.setitem(sys.modules, name, None)
            for name in packages:
                patch.setitem(sys.modules, name, None)
            yield

    return world


def interrupted_at(call: int) -> World:
    """A world in which Ctrl-C is pressed when this sample is read."""

    @contextmanager
    def world() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STOP_AT", str(call))
            yield

    return world


def _mistake(
    title: str, command: tuple[object, ...], *words: str, code: int = 2, world: World = nullcontext
) -> Mistake:
    return Mistake(title=title, command=command, words=words, code=code, world=world)


MISTAKES = (
    _mistake("zoo model misspelt", ("report", "mcunet-5fsp"), "did you mean mcunet-5fps?"),
    _mistake("torchvision model misspelt", ("report", "torchvision:resnet81"), "did you mean torchvision:resnet18"),
    _mistake("timm model misspelt", ("plan", "timm:mobilnetv2_100", *BUDGET), "did you mean timm:mobilenetv2_100"),
    _mistake("bare model name misspelt", ("plan", "resnt18", *BUDGET), "did you mean torchvision:resnet18"),
    _mistake("factory misspelt", ("report", "tiny.py:fatcory"), "has no 'fatcory'", "factory"),
    _mistake("layer pattern misspelt", (*PLAN, *BUDGET, "--force-layer", "stm.*"), "did you mean stem.*", "report"),
    _mistake(
        "layer pattern misspelt, of a zoo network",
        ("plan", "mcunet-5fps", "--budget", "1MB", "--force-layer", "blok*"),
        "did you mean blocks.*",
    ),
    _mistake("forbidden layer misspelt", (*PLAN, *BUDGET, "--forbid-layer", "dephtwise.0"), "did you mean depthwise.0"),
    _mistake("head misspelt", ("report", MODEL, "--head", "fcc"), "did you mean fc?", "--head none"),
    _mistake("parameter pattern misspelt", ("report", MODEL, "--train", "fc.wieght"), "did you mean fc.weight"),
    _mistake("command misspelt", ("plann", MODEL), "no command 'plann'", "did you mean plan?", "medyate --help"),
    _mistake("option misspelt", ("plan", MODEL, "--bugdet", "1MB"), "--bugdet", "did you mean --budget?"),
    _mistake("option of another command", ("report", MODEL, "--data", "x"), "report has no option --data"),
    _mistake("required option misspelt", ("rank", MODEL, "--dta", "x"), "needs --data", "did you mean --data"),
    _mistake("option without its value", ("plan", MODEL, "--budget"), "--budget needs a value"),
    _mistake("two models", ("plan", MODEL, MODEL, *BUDGET), "is more than plan takes", "medyate plan --help"),
    _mistake("no model", ("plan",), "expected a MODEL", "medyate plan --help"),
    _mistake(
        "word for a number", (*PLAN[:2], "--batch-size", "four", *BUDGET), "--batch-size: expected a whole number"
    ),
    _mistake("strategy misspelt", (*PLAN, *BUDGET, "--strategy", "optimla"), "did you mean optimal?", "lara-medyate"),
    _mistake("scope misspelt", (*PLAN, *BUDGET, "--scope", "trainig"), "did you mean training?", "update, training"),
    _mistake("metric misspelt", (*PLAN, *BUDGET, "--metric", "lora"), "did you mean lara?", "sized, raw, rgn, lara"),
    _mistake("optimizer misspelt", (*PLAN, *BUDGET, "--optimizer", "Admw"), "did you mean adamw?", "sgd, momentum"),
    _mistake("sampling misspelt", (*PLAN, *BUDGET, "--sampling", "wheighted"), "did you mean weighted?"),
    _mistake("objective misspelt", (*PLAN, *BUDGET, "--objective", "enregy"), "did you mean energy?"),
    _mistake("loss misspelt", ("report", MODEL, "--loss", "cross_entropy"), "did you mean cross-entropy?"),
    _mistake("no budget", PLAN, "--budget (one plan)", "--budgets"),
    _mistake("budget without a unit", (*PLAN, "--budget", "512"), "no unit", "write 512kB"),
    _mistake("budget in K", (*PLAN, "--budget", "512K"), "may mean two things", "512kB", "512KiB"),
    _mistake("budget with a decimal comma", (*PLAN, "--budget", "0,5MB"), "write 0.5MB"),
    _mistake("budget of 0", (*PLAN, "--budget", "0kB"), "less than 1 byte", "512kB"),
    _mistake("negative budget", (*PLAN, "--budget", "-5kB"), "not below 0", "'-5kB'"),
    _mistake("negative budget, after =", (*PLAN, "--budget=-5kB"), "below 0", "512kB"),
    _mistake(
        "budget too small", (*PLAN, "--budget", "1kB"), "smallest possible one is 1,356 B", "--budget 1356B", code=3
    ),
    _mistake("input shape without channels", (*PLAN, *BUDGET, "--input-shape", "16x16"), "is made for 3x16x16"),
    _mistake("input shape of another colour", (*PLAN, *BUDGET, "--input-shape", "1x16x16"), "is made for 3x16x16"),
    _mistake(
        "input shape too small",
        ("report", "torchvision:alexnet", "--input-shape", "3x8x8"),
        "too small",
        "is made for 3x224x224",
    ),
    _mistake("more classes than the head", (*RANK, "--data", "imagefolder:many"), "4 classes", "--num-classes 4"),
    _mistake("labels out of range, in a file", (*RANK, "--data", "npz:many.npz"), "7 classes", "--num-classes 7"),
    _mistake(
        "labels out of range, seen while training",
        (*RANK, "--data", "samples.py:far"),
        "is out of range",
        "labels are 0 to 2",
        "--num-classes",
    ),
    _mistake(
        "grey samples for a colour network", (*RANK, "--data", "samples.py:grey"), "(4, 1, 16, 16)", "(3, 16, 16)"
    ),
    _mistake("no such data folder", (*RANK, "--data", "imagefolder:dat"), "no such folder", "did you mean data?"),
    _mistake(
        "data folder without images", (*RANK, "--data", "imagefolder:empty"), "no images found", "train/CLASS/*.jpg"
    ),
    _mistake("kind of data left out", (*RANK, "--data", "data"), "did you mean imagefolder:data?"),
    _mistake("plan file misspelt", ("verify", "plam.json"), "no such file", "did you mean plan.json"),
    _mistake("plan of another schema version", ("verify", "version.json"), "schema version 1, got 2", "medyate plan"),
    _mistake("plan cut off", ("verify", "cut.json"), "not complete JSON", "medyate plan"),
    _mistake("plan of another model", ("verify", "four.json"), "made for another model", "medyate plan"),
    _mistake(
        "edited plan, layer misspelt", ("plan", "--check", "ghost.json"), "no layer 'stm.0'", "did you mean stem.0"
    ),
    _mistake("edited plan, quota too large", ("plan", "--check", "quota.json"), "quota 99", "expected 1 to 3"),
    _mistake(
        "edited plan, head taken out", ("plan", "--check", "headless.json"), "the head (fc) is missing", "put it back"
    ),
    _mistake("edited plan, two heads", ("plan", "--check", "heads.json"), "stem.0 is marked as head", "head is fc"),
    _mistake("edited plan, bias that is not there", ("plan", "--check", "bias.json"), "stem.0 has no bias"),
    _mistake("output exists", (*PLAN, *BUDGET, "-o", "plan.json"), "plan.json exists", "--force"),
    _mistake("output is a device", (*PLAN, *BUDGET, "-o", "/dev/full", "--force"), "no ordinary file", "-o"),
    _mistake(
        "no write permission",
        (*PLAN, *BUDGET, "-o", "locked/plan.json"),
        "not a folder that may be written to",
        "another -o",
        world=no_permission,
    ),
    _mistake(
        "disk full, writing a plan",
        (*PLAN, *BUDGET, "-o", "new.json"),
        "new.json: can not be written",
        "make room",
        world=full_disk,
    ),
    _mistake(
        "disk full, writing the importance",
        (*RANK, *DATA, "-o", "new.safetensors"),
        "new.safetensors: can not be written",
        "make room",
        world=full_disk,
    ),
    _mistake(
        "disk full, exporting a torch file",
        ("export", "run", "-o", "new.pt"),
        "new.pt: can not be written",
        "is the disk full?",
        world=full_disk,
    ),
    _mistake("disk full, training", (*TRAIN, "new"), "can not be written", "make room", world=full_disk),
    _mistake(
        "disk full at the last byte",
        (*PLAN, *BUDGET, "-o", "new.json"),
        "No space left on device",
        "make room",
        world=no_space_left,
    ),
    _mistake(
        "matplotlib is not installed",
        ("report", MODEL, "-o", "new.png"),
        "pip install 'medyate-planner[report]'",
        world=without("matplotlib"),
    ),
    _mistake(
        "torchvision is not installed",
        ("report", "torchvision:resnet18"),
        "torchvision is not installed",
        "pip install 'medyate-planner[models]'",
        world=without("torchvision"),
    ),
    _mistake(
        "bare name, and neither is installed",
        ("plan", "resnet18", *BUDGET),
        "pip install 'medyate-planner[models]'",
        world=without("torchvision", "timm"),
    ),
    _mistake("pickle in place of weights", ("report", MODEL, "--weights", "evil.pt"), "never read", "state_dict()"),
    _mistake(
        "weights file misspelt", ("report", MODEL, "--weights", "evil.pth"), "no such file", "did you mean evil.pt?"
    ),
    _mistake("run is there already", (*TRAIN, "run"), "holds a run already", "--resume", "--force"),
    _mistake("resume with more epochs", (*TRAIN[:5], "3", OUT, "run", "--resume"), "epochs 2, not 3", "--force"),
    _mistake(
        "resume with another plan", ("train", "other.json", *TRAIN[2:], "run", "--resume"), "another plan", "--force"
    ),
    _mistake("resume nothing", (*TRAIN, "empty", "--resume"), "no run to go on with", "leave out --resume"),
    _mistake(
        "Ctrl-C while training",
        ("train", "plan.json", "--data", "counted.py:make", "--epochs", "2", "--head-epochs", "0", OUT, "new"),
        "interrupted",
        "--resume --out new",
        code=130,
        world=interrupted_at(30),
    ),
    _mistake(
        "Ctrl-C while ranking", (*RANK, "--data", "counted.py:make"), "interrupted", code=130, world=interrupted_at(5)
    ),
)
