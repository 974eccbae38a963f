"""`medyate train` killed with SIGKILL at 20 random moments ends with the bits of one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_helpers import BATCH, MODEL, OUT, done, environment, json_lines, make_plan, write_sources

from medyate_planner.training.checkpoint import read_checkpoint
from medyate_planner.training.run import RunFolder

KILLS, EPOCHS, STEPS = 20, 6, 8
DATA_FACTORY = '''
"""32 training and 8 test samples, augmented from every global generator; says when the first one is asked for."""
import random
from pathlib import Path

import numpy as np
import torch


class Noisy(torch.utils.data.Dataset):
    classes = ("a", "b", "c")

    def __init__(self, count, seed, noise):
        self.x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        Path("begun").touch()
        drawn = torch.randn(()) + float(np.random.normal()) + random.gauss(0, 1)
        return self.x[index] + self.noise * drawn, index % 3


def make():
    return Noisy(32, 0, 0.1), Noisy(8, 1, 0.0)
'''
SERVER = """
import json, os, sys
from medyate_planner.cli import main

main(["verify", sys.argv[1]])  # imports all that a run needs: what is forked begins at once
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        with open("log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            code = main(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: the signal that killed it, or 0; its exit code; seconds since its first sample."""

    signal: int
    code: int
    seconds: float


class Server:
    """Processes that run the command line, forked from one that has imported everything."""

    def __init__(self, plan: str) -> None:
        command = [sys.executable, "-c", SERVER, plan]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(),
        )  # fmt: skip
        while self._line() != "ready":
            pass

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server is gone"
        return line.strip()

    def run(self, arguments: list[object], kill_after: float | None = None) -> Ended:
        """Run a command in a process of its own, and kill it so many seconds after it asked for its first sample."""
        assert self.process.stdin is not None
        Path("begun").unlink(missing_ok=True)
        print(json.dumps([str(a) for a in arguments]), file=self.process.stdin, flush=True)
        child = int(self._line())
        while not Path("begun").exists() and Path(f"/proc/{child}").exists():
            time.sleep(0.0005)
        began = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self._line())
        return Ended(signal=os.WTERMSIG(status), code=os.WEXITSTATUS(status), seconds=time.monotonic() - began)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A folder with a network, data, importance and plans as working directory, and a server for runs in it."""
    folder = tmp_path_factory.mktemp("killed")
    write_sources(folder)
    (folder / "noisy.py").write_text(DATA_FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("rank", MODEL, *BATCH, "--data", "noisy.py:make", "-o", "imp.safetensors")
        known = (
            "--importance",
            "imp.safetensors",
            "--objective",
            "norm",
            "--metric",
            "raw",
        )  # some channels of many layers
        make_plan("boosted.json", *known, "--sampling", "weighted", "--boost", "0.5", "--interval", "3")
        make_plan("adamw.json", *known, "--optimizer", "adamw", budget="120kB")
        make_plan("momentum.json", *known, "--optimizer", "momentum", "--accumulation", "2", budget="120kB")
        server = Server("boosted.json")
        yield server
        server.process.kill()
        server.process.communicate()


def arguments(plan: str, folder: str, every: int, *options: object) -> list[object]:
    common = ["train", f"{plan}.json", "--data", "noisy.py:make", "--epochs", EPOCHS, "--checkpoint-every", every]
    return [*common, OUT, folder, *options]


def position(folder: Path) -> int:
    """Steps in the checkpoint of a run."""
    file = RunFolder(folder).checkpoint_file
    return read_checkpoint(file)[1].progress.steps_done if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "every"), [("boosted", 1), ("adamw", 2), ("momentum", 1)])
def test_killed_at_20_random_moments_it_ends_with_the_same_bits(prepared: Server, plan: str, every: int) -> None:
    whole = Path(f"{plan}-whole")
    alone = prepared.run(arguments(plan, str(whole), every))
    assert (alone.signal, alone.code) == (0, 0), Path("log").read_text()
    moments = random.Random(f"{plan} {every}")
    runs, places, kills, torn = [Path(f"{plan}-0")], [], 0, 0
    while kills < KILLS:
        resume = ["--resume"] if (runs[-1] / "recipe.json").exists() else []
        ended = prepared.run(
            arguments(plan, str(runs[-1]), every, *resume), kill_after=moments.uniform(0, alone.seconds / 6)
        )
        if ended.signal == signal.SIGKILL:
            kills += 1
            places.append(position(runs[-1]))
            torn += bool(list(runs[-1].glob(".*")))
        else:
            assert (ended.signal, ended.code) == (0, 0), Path("log").read_text()
            runs.append(Path(f"{plan}-{len(runs)}"))  # it was done before it could be killed: kill another one
    if (runs[-1] / "recipe.json").exists():
        last = prepared.run(arguments(plan, str(runs[-1]), every, "--resume"))
        assert (last.signal, last.code) == (0, 0), Path("log").read_text()
    else:
        runs.pop()
    print(f"{plan}: {len(runs)} runs, killed after steps {places} of their checkpoints, {torn} while writing a file")
    assert any(0 < place < EPOCHS * STEPS for place in places)
    for run in runs:
        assert_same_run(run, whole)


def assert_same_run(run: Path, whole: Path) -> None:
    for name in ("model.safetensors", "checkpoint.safetensors", "selections.jsonl", "plan.json", "recipe.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = ([{**line, "seconds": 0} for line in json_lines(f / "metrics.jsonl")] for f in (run, whole))
    assert found == expected
    assert len(found) == EPOCHS
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
