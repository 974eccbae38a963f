"""Made-up results of a small matrix, for tests of what is said about them."""

from __future__ import annotations

import random
from typing import Any

from medyate_planner.bench.jobs import digest_of, jobs_of
from medyate_planner.bench.matrix import Matrix

NAME = "<img src=x onerror=window.harmed=1>|`*"
FACTS: dict[str, Any] = {
    "name": NAME,
    "seeds": [0, 1, 2],
    "networks": [{"name": "n", "spec": "n"}],
    "tasks": [{"name": "t", "data": "d", "epochs": 1}, {"name": "u", "data": "d", "epochs": 1}],
    "budgets": [{"name": "1%", "of_full": 0.01}, {"name": "2%", "of_full": 0.02}],
    "contenders": [
        {"name": "a"}, {"name": "b"}, {"name": "once", "budgets": ["1%"], "seeds": [0]},
        {"name": "four", "strategy": "trady", "budgets": ["2%"], "settings": {"top_layers": 4}},
        {"name": "eight", "strategy": "trady", "budgets": ["2%"], "settings": {"top_layers": 8}},
        {"name": "head", "strategy": "head-only"},
        {"name": "full", "kind": "full", "family": "full"},
        {"name": "again", "kind": "full", "family": "full", "follow": 3},
    ],
    "families": {
        "planned": {"rates": [0.1], "chosen_by": "a", "budget": "1%"},
        "full": {"rates": [0.1], "chosen_by": "full"},
    },
    "claims": [
        {"text": "a is better", "source": "somebody", "pairs": [["a", "b"], ["b", "a"]]},
        {"text": "a is the same", "expect": "same", "pairs": [["a", "a"], ["a", "b"], ["a", "head"]]},
        {"text": "once is better", "pairs": [["once", "eight"]]},
    ],
    "headlines": [{"contender": "a", "budget": "1%", "aim": 0.9}, {"contender": "b", "budget": "1%", "aim": 0.9}],
}  # fmt: skip
MATRIX = Matrix.model_validate(FACTS)
MEANS = {"a": 0.8, "b": 0.7, "once": 0.6, "four": 0.5, "eight": 0.55, "head": 0.4, "full": 0.84, "again": 0.84}


def results(matrix: Matrix = MATRIX) -> list[dict[str, Any]]:
    """A tenth of a hundredth of noise; task u is always a hundredth below t."""
    noise = random.Random(0)
    made: list[dict[str, Any]] = []
    for job in jobs_of(matrix, "run"):
        small = {None: 10, "1%": 10, "2%": 20}[job.budget]
        made.append(
            {
                "job": job.name, "digest": digest_of(matrix, job), "stage": "run", "network": job.network,
                "task": job.task, "seed": job.seed, "contender": job.contender, "budget": job.budget, "rate": 0.1,
                "accuracy": MEANS[str(job.contender)] - 0.01 * (job.task == "u") + noise.gauss(0, 0.001),
                "training_bytes": 1000 if job.contender in ("full", "again") else small,
                "step_seconds": 0.04 if job.contender == "full" else 0.01, "coverage": 0.25,
            }
        )  # fmt: skip
    return made
