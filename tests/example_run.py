"""A small plan with its explanation, and a run folder of it, made with the package itself; a hostile twin of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from example_report import HOSTILE_NAMES
from torch import nn

from medyate_planner import Batches, Plan, Recipe, plan, train
from medyate_planner.reporting.run_view import RunView, read_run
from medyate_planner.training.run import RunFolder

BUDGET_BYTES = 60_000
EPOCHS = 3
WIDE = 120  # channels of the widest layer: more than the heat map has columns


def network() -> nn.Module:
    """Four convolutions with activations and a head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, WIDE), (WIDE, 16), (16, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def batch() -> torch.Tensor:
    return torch.zeros(4, 3, 8, 8)


@cache
def example_plan(scope: str = "training", *, explain: bool = True) -> Plan:
    """A plan that leaves something out."""
    return plan(network(), batch(), BUDGET_BYTES, explain=explain, request={"scope": scope} if scope else {})


def hostile_plan() -> Plan:
    """The same with names that try to break a page or a terminal."""
    found = example_plan().to_dict()
    names = {layer["name"]: HOSTILE_NAMES[1 + i] for i, layer in enumerate(found["layers"])}
    renamed: dict[str, Any] = _renamed(found, names)
    renamed["model"]["spec"] = HOSTILE_NAMES[0]
    renamed["importance"]["source"] = HOSTILE_NAMES[3]
    return Plan.from_dict(renamed)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(entry, entry) if key == "name" else _renamed(entry, names) for key, entry in value.items()
        }
    if isinstance(value, list):
        return [names.get(entry, entry) if isinstance(entry, str) else _renamed(entry, names) for entry in value]
    return value


def write_run(folder: Path, made: Plan | None = None, *, epochs: int = EPOCHS) -> Path:
    """Train the example's network, and leave what `medyate train` leaves."""
    chosen = example_plan() if made is None else made
    random = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 3, 8, 8, generator=random), torch.arange(4) % 3) for _ in range(3)]
    batches = Batches(train=lambda _epoch: data, test=lambda: data, steps_per_epoch=len(data))
    run, recipe, model = RunFolder(folder), Recipe(epochs=epochs), network()
    run.start(chosen, recipe, {"data": "examples.noise:make"}, force=True)
    train(model, chosen, batches, recipe, on_epoch=lambda epoch: run.record(epoch, model))
    return folder


def hostile_run(folder: Path) -> RunView:
    """A run of the hostile plan: the example's own, with its names changed in every file."""
    write_run(folder)
    made = hostile_plan()
    own = [layer.name for layer in example_plan().layers]
    names = dict(zip(own, [layer.name for layer in made.layers], strict=True))
    made.save(folder / "plan.json")
    file = folder / "selections.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["layers"] = {names[name]: channels for name, channels in line["layers"].items()}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**settings, "data": HOSTILE_NAMES[2]}))
    return read_run(folder)
