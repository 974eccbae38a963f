"""A tiny network, tiny pictures, and ways to run the command line on them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from medyate_planner.cli import main

MODEL = "tiny.py:factory"
BATCH = ("--batch-size", "4")
DATA = ("--data", "imagefolder:data")
BUDGET_BYTES = 40_000
OUT = "--out"
PROGRESS = re.compile(
    r"(model|preprocessing|data|importance|epoch \d+/\d+): |wrote |resuming |the plan has no importance "
)

TINY = """
import torch
from torch import nn


def conv(inputs, outputs, kernel, stride=1, groups=1):
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class Tiny(nn.Module):
    input_shape = (3, 16, 16)

    def __init__(self, classes):
        super().__init__()
        self.stem = conv(3, 8, 3, 2)
        self.expand = conv(8, 16, 1)
        self.depthwise = conv(16, 16, 3, 1, 16)
        self.project = nn.Conv2d(16, 48, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(48, classes)

    def forward(self, x):
        x = self.project(self.depthwise(self.expand(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


def factory():
    torch.manual_seed(0)
    return Tiny(3)


def four():
    torch.manual_seed(0)
    return Tiny(4)
"""

COUNTED = '''
"""24 training and 12 test samples; at call STOP_AT it raises KeyboardInterrupt, or says so and waits for a signal."""
import os
import time
from pathlib import Path

import torch

calls = 0


class Counted(torch.utils.data.Dataset):
    classes = ("a", "b", "c")

    def __init__(self, count, seed):
        self.x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        global calls
        calls += 1
        if calls == int(os.environ.get("STOP_AT", "0")):
            if os.environ.get("STOP_HOW") != "wait":
                raise KeyboardInterrupt
            Path("reached").touch()
            time.sleep(120)
        return self.x[index], index % 3


def make():
    return Counted(24, 0), Counted(12, 1)
'''


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as strict JSON: NaN and Infinity are not allowed."""
        return strict_json(self.out)


def strict_json(text: str) -> Any:
    """Parse JSON as other languages do, without NaN and Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def cli(*arguments: object) -> Done:
    """Run `medyate` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # test_interrupt_is_returned asks for a return
            code = int(stop.code or 0)
    return Done(code=code, out=out.getvalue(), err=err.getvalue())


def done(*arguments: object) -> Done:
    """Run `medyate` in this process and expect it to succeed."""
    result = cli(*arguments)
    assert result.code == 0, result.err
    return result


def environment(**more: str) -> dict[str, str]:
    """Environment of a subprocess: one thread, as in this process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def module_cli(*arguments: object) -> Done:
    """Run `python -m medyate_planner` in a process of its own."""
    command = [sys.executable, "-m", "medyate_planner", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600, check=False)
    return Done(code=result.returncode, out=result.stdout, err=result.stderr)


def assert_one_line(result: Done, *words: str) -> str:
    """The last line of stderr is the error, the only one; before it there is progress and nothing else."""
    assert "Traceback" not in result.err
    assert result.err.endswith("\n")
    *before, last = result.err.splitlines()
    assert last.startswith("medyate: "), result.err
    assert [line for line in before if not PROGRESS.match(line)] == []
    for word in words:
        assert word in last
    return last.removeprefix("medyate: ")


def assert_refused(folder: Path, arguments: Sequence[object], *words: str, code: int = 2) -> dict[str, Any]:
    """A command fails with this code, in one line or one JSON object, and no file or folder is other than before."""
    before = snapshot(folder)
    result = cli(*arguments)
    assert result.code == code, result.err
    assert result.out == ""
    text = assert_one_line(result, *words)
    assert snapshot(folder) == before
    result = cli(*arguments, "--json")
    assert result.code == code
    assert "medyate:" not in result.err
    facts: dict[str, Any] = result.json
    assert {"error", "message", "exit_code"} <= facts.keys()
    assert facts["exit_code"] == code
    assert " ".join(facts["message"].split()) == text
    assert snapshot(folder) == before
    return facts


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their bytes, and all folders; without Python's caches."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def write_sources(folder: Path) -> None:
    """The model and the data set that live in a file."""
    (folder / "tiny.py").write_text(TINY)
    (folder / "counted.py").write_text(COUNTED)


def write_images(folder: Path, *, classes: int = 3, train: int = 8, test: int = 4, mode: str = "RGB") -> None:
    """Noise with one channel at its largest, as train/CLASS/N.png and test/CLASS/N.png."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            place = folder / split / f"c{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                pixels[..., label % 3] = 255
                Image.fromarray(pixels).convert(mode).save(place / f"{number}.png")


def make_plan(output: str, *options: object, budget: str = f"{BUDGET_BYTES}B", model: str = MODEL) -> Done:
    """`medyate plan` of the tiny network."""
    return done("plan", model, *BATCH, "--budget", budget, "-o", output, *options)


def train_arguments(plan: str, folder: str, *options: object, epochs: int = 2, data: str = DATA[1]) -> list[object]:
    """Arguments of `medyate train`."""
    return ["train", plan, "--data", data, "--epochs", epochs, OUT, folder, *options]


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Objects of a .jsonl file, as strict JSON."""
    return [strict_json(line) for line in file.read_text().splitlines()]
