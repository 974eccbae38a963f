"""Bare commands: a model by its name alone, no importance, no weights; what is assumed is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import MODEL, cli, done, write_sources

ASSUMED = "importance: mean squared weight per channel (no data seen)"


@pytest.mark.parametrize(
    ("name", "spec", "told"),
    [
        ("resnet18", "torchvision:resnet18", "model: torchvision:resnet18 (there is timm:resnet18 too), "),
        ("torchvision:resnet18", "torchvision:resnet18", "model: torchvision:resnet18, "),
        ("timm:resnet18", "timm:resnet18", "model: timm:resnet18, "),
        ("mobilenetv2_035", "timm:mobilenetv2_035", "model: timm:mobilenetv2_035, "),
    ],
)
def test_a_bare_plan_says_what_it_assumes(name: str, spec: str, told: str) -> None:
    result = done("plan", name, "--budget", "8 MB", "--json")
    assert result.json["model"]["spec"] == spec
    assert result.json["importance"]["source"] == "mean squared weight (no data seen)"
    assert result.json["budget_bytes"] == 8_000_000 >= result.json["predicted"]["training_bytes"]
    model, importance = result.err.splitlines()
    assert model.startswith(told)
    assert model.endswith("weights: random initialisation (seed 0), as no --weights FILE is given")
    assert importance.startswith(ASSUMED)


def test_a_head_too_large_for_the_budget_says_how_to_go_on() -> None:
    result = cli("plan", "resnet18", "--budget", "2MB")
    assert result.code == 3
    assert "smallest possible one is 2,093,472 B" in result.err
    assert "--head-by-channels" in result.err
    assert "--num-classes" in result.err
    assert cli("plan", "resnet18", "--budget", "2MB", "--head-by-channels").code == 0
    assert cli("plan", "resnet18", "--budget", "2MB", "--num-classes", "10").code == 0


def test_a_network_of_ours_is_taken_before_any_other() -> None:
    assert "model: mcunet-5fps, input 3x128x128" in done("report", "mcunet-5fps", "--json").err


def test_weights_of_a_factory_are_not_called_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "weights: as the factory made them\n" in done("plan", MODEL, "--budget", "40kB").err
