"""A cached prefix on real networks: the same weights, bit for bit, and the bytes that were predicted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import subject
from torch import Tensor

from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.subject import Subject
from medyate_planner.training.batches import Batches
from medyate_planner.training.loop import EpochMetrics, fit
from medyate_planner.training.prefixed import PrefixedTraining, Samples
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.session import Session

BATCH, COUNT, EPOCHS, LAYERS = 8, 17, 4, 6


class Photographs:
    """Noise in channels_last; remembers what was loaded."""

    def __init__(self, made: Subject) -> None:
        shape = (COUNT, *made.traced.inputs[0].shape)
        self.x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.loaded: list[int] = []

    def order(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[:BATCH], order[BATCH : 2 * BATCH]]

    def load(self, _epoch: int, chosen: Sequence[Sequence[int]]) -> Iterable[tuple[Any, Any]]:
        for places in chosen:
            self.loaded += places
            x = self.x[list(places)].contiguous(memory_format=torch.channels_last)
            yield x, torch.tensor(places) % 10

    def samples(self) -> Samples:
        return Samples(count=COUNT, order=self.order, load=self.load, test=lambda: (), steps_per_epoch=2)

    def batches(self) -> Batches:
        return Batches(train=lambda e: self.load(e, self.order(e)), test=lambda: (), steps_per_epoch=2)


def trained(made: Subject, updates: Updates, folder: Path | None) -> tuple[dict[str, Tensor], list[EpochMetrics], int]:
    """Weights after training, figures of each epoch, and how many samples were loaded; weights are put back."""
    before, source = copy.deepcopy(made.model.state_dict()), Photographs(made)

    def draw(interval: int) -> dict[str, list[int]]:
        return {name: [(interval + c) % 8 for c in range(quota)] for name, quota in updates.quotas.items()}

    try:
        with Session(made.model, made.traced, made.graph, updates, draw) as session:
            batches = source.batches()
            if folder is not None:
                cached = PrefixedTraining(session, source.samples(), folder, facts={}, tell=pytest.fail)
                batches = cached.batches
            metrics = [e.metrics for e in fit(session, batches, made.loss, Recipe(epochs=EPOCHS, lr=0.02))]
        return copy.deepcopy(made.model.state_dict()), metrics, len(source.loaded)
    finally:
        made.model.load_state_dict(before)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("mcunet-5fps", marks=pytest.mark.assets),
        pytest.param("mbv2-w0.35", marks=pytest.mark.assets),
        "torchvision-resnet18",
    ],
)
def test_short_reach_is_trained_from_the_cache(network: str, tmp_path: Path) -> None:
    made = subject(network, BATCH)
    last = [layer.name for layer in made.graph.layers if layer.name not in made.graph.head][-LAYERS:]
    updates = Updates(quotas=dict.fromkeys(last, 4), full=frozenset(made.graph.head))
    expected, plain, all_loaded = trained(made, updates, None)
    found, cached, loaded = trained(made, updates, tmp_path / "prefix")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any(not torch.equal(expected[f"{name}.weight"], made.model.state_dict()[f"{name}.weight"]) for name in last)
    training_bytes = footprint(made.memory, updates).training_bytes
    for a, b in zip(plain, cached, strict=True):
        assert a.train_loss == b.train_loss
        assert a.measured_training_bytes == b.measured_training_bytes == training_bytes
        assert a.measured_live_peak_bytes >= b.measured_live_peak_bytes
    assert all_loaded == EPOCHS * 2 * BATCH
    assert loaded <= all_loaded - 4 * BATCH
