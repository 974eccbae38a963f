"""The same plan, byte for byte, from the same input: twice, and on one thread and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU6()]
    for _ in range(4):
        layers += [nn.Conv2d(24, 96, 1), nn.ReLU6(), nn.Conv2d(96, 96, 3, padding=1, groups=96), nn.Conv2d(96, 24, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
"""
STRATEGIES = {
    "optimal": ("--gap", "0"),
    "evolutionary": ("--generations", "5"),
    "greedy": (),
    "lara-trady": ("--intervals", "3"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_is_the_same_twice_and_on_one_and_two_threads(tmp_path: Path, strategy: str) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    made = [plan(tmp_path, strategy, run, threads) for run, threads in ((0, 1), (1, 1), (2, 2))]
    assert made[0] == made[1]
    assert made[0] == made[2]


def plan(folder: Path, strategy: str, run: int, threads: int) -> bytes:
    """The plan file that a process of its own writes."""
    out = folder / f"plan-{run}.json"
    arguments = ["plan", "model.py:factory", "--input-shape", "3x32x32", "--batch-size", "4", "--budget", "120kB"]
    arguments += ["--strategy", strategy, *STRATEGIES[strategy], "-o", str(out)]
    subprocess.run(
        [sys.executable, "-m", "medyate_planner", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
    )
    return out.read_bytes()
