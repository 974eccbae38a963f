"""`medyate rank --within-budget`: the same ranking in rounds, what is said of them, and what can not be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import BATCH, DATA, MODEL, assert_refused, done, write_images, write_sources

from medyate_planner.importance.energy import Importance

RANK = ("rank", MODEL, *BATCH, *DATA, "--batches", 3, "--force")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, its data, and its importance measured at once."""
    folder = tmp_path_factory.mktemp("prepared")
    write_sources(folder)
    write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done(*RANK, "-o", "whole.safetensors")
    return folder


@pytest.fixture
def folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as working directory."""
    monkeypatch.chdir(prepared)
    return prepared


def test_a_small_budget_gives_the_same_numbers_and_says_what_it_used(folder: Path) -> None:
    result = done(*RANK, "--within-budget", "12kB", "-o", "small.safetensors", "--json")
    whole, found = Importance.load(folder / "whole.safetensors"), Importance.load(folder / "small.safetensors")
    facts = found.facts
    assert facts["beyond_budget"] == []
    assert facts["rounds"] > 3
    assert facts["batches"] == whole.facts["batches"] == 3
    assert 0.9 * 12_000 < facts["measured_training_bytes"] <= facts["budget_bytes"] == 12_000
    for name, energy in whole.energy.items():
        assert energy.any()
        assert np.linalg.norm(found.energy[name] - energy) <= 1e-5 * np.linalg.norm(energy)
    ranking = result.json
    for key in ("budget_bytes", "rounds", "measured_training_bytes", "beyond_budget"):
        assert ranking[key] == facts[key]
    assert {layer["name"] for layer in ranking["layers"]} == {"stem.0", "expand.0", "depthwise.0", "project"}
    assert ranking["source"] == f"gradients of 3 mini-batches, in {facts['rounds']} rounds within 12,000 B"
    used = f"{facts['measured_training_bytes']:,} B measured of 12,000 B of training memory"
    assert f"importance: {facts['rounds']} rounds, at most {used}\n" in result.err


def test_without_a_budget_nothing_is_said_of_rounds(folder: Path) -> None:
    result = done(*RANK, "-o", folder / "again.safetensors", "--json")
    assert "rounds" not in result.err
    assert "rounds" not in result.json


def test_layers_beyond_the_budget_are_named_in_one_line(folder: Path) -> None:
    result = done(*RANK, "--within-budget", "5kB", "-o", "tiny.safetensors")
    beyond = Importance.load(folder / "tiny.safetensors").facts["beyond_budget"]
    assert "stem.0" in beyond
    assert "project" not in beyond
    (line,) = [line for line in result.err.splitlines() if "not one channel" in line]
    assert line == f"importance: 0 for {len(beyond)} layers of which not one channel fits 5,000 B: {', '.join(beyond)}"
    assert f"{len(beyond)} layers" in line


@pytest.mark.parametrize(
    ("budget", "code", "words"),
    [("100B", 3, ("training the head (fc)", "--within-budget")), ("12", 2, ("--within-budget", "no unit", "12kB"))],
)
def test_a_budget_that_can_not_be_met_or_read(folder: Path, budget: str, code: int, words: tuple[str, ...]) -> None:
    arguments = (*RANK, "--within-budget", budget, "-o", "new.safetensors")
    facts = assert_refused(folder, arguments, *words, code=code)
    if code == 3:
        least = f"{facts['minimum_bytes']}B"
        done(*RANK, "--within-budget", least, "-o", "least.safetensors")
