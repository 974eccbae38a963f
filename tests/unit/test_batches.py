"""The recipe's steps, batches that are passed over, random states, and `--interval`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medyate_planner.cli.plan_options import read_interval
from medyate_planner.data import DataBundle, make_loader
from medyate_planner.data.batches import batches_of
from medyate_planner.data.datasets import ArrayDataset
from medyate_planner.errors import InputError
from medyate_planner.planning.plan import Sampling
from medyate_planner.training.batches import Batches
from medyate_planner.training.randomness import random_state, restore_random_state, seeded
from medyate_planner.training.recipe import Recipe

CPU = torch.device("cpu")


class Counting(ArrayDataset):
    """Notes which samples are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(torch.arange(float(count)).view(-1, 1), list(range(count)), augment="flip", seed=3)
        self.asked: list[int] = []

    def __getitems__(self, indices: Any) -> Any:
        self.asked += indices
        return super().__getitems__(indices)


def draws() -> list[float]:
    return [torch.rand(1).item(), float(np.random.random()), float(np.random.normal()), random.gauss(0, 1)]


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_steps_of_an_epoch(accumulation: int, steps: int) -> None:
    assert Recipe(epochs=1, accumulation=accumulation).steps_in(5) == steps


@pytest.mark.parametrize(
    ("option", "value"), [("accumulation", 0), ("momentum", 1.0), ("momentum", -0.1), ("momentum", float("nan"))]
)
def test_recipe_refuses(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{option}: expected"):
        Recipe(epochs=1, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_make_loader_passes_over_batches(skip: int, workers: int) -> None:
    whole = list(make_loader(Counting(18), 4, shuffle=True, seed=1, epoch=2, drop_last=True))
    data = Counting(18)
    loader = make_loader(data, 4, shuffle=True, seed=1, epoch=2, drop_last=True, skip=skip, workers=workers)
    found = list(loader)
    assert len(loader) == len(found) == 4 - skip
    for (x, y), (other_x, other_y) in zip(found, whole[skip:], strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert workers or len(data.asked) == 4 * (4 - skip)


def test_batches_of_our_own_data_are_not_loaded_again() -> None:
    data = Counting(12)
    bundle = DataBundle(train=data, test=Counting(4), num_classes=None, class_names=(), description="")
    source = batches_of(bundle, 4, seed=0)
    whole = [y.tolist() for _, y in source.begin(5, 0)]
    data.asked.clear()
    assert [y.tolist() for _, y in source.begin(5, 2)] == whole[2:]
    assert data.asked == whole[2]
    foreign = DataBundle(
        train=torch.utils.data.Subset(data, range(12)), test=data, num_classes=None, class_names=(), description=""
    )
    data.asked.clear()
    assert [y.tolist() for _, y in batches_of(foreign, 4, seed=0).begin(5, 2)] == whole[2:]
    assert len(data.asked) == 12


def test_batches_that_can_not_be_passed_over_are_loaded_and_dropped_at_once() -> None:
    loaded: list[int] = []

    def load(_epoch: int) -> Iterator[tuple[int, int]]:
        for number in range(4):
            loaded.append(number)
            yield number, number

    rest = Batches(train=load, test=lambda: (), steps_per_epoch=4).begin(0, 2)
    assert loaded == [0, 1]
    assert list(rest) == [(2, 2), (3, 3)]
    assert list(Batches(train=load, test=lambda: (), steps_per_epoch=4).begin(0, 9)) == []


def test_random_states_are_restored_bit_for_bit() -> None:
    draws()  # numpy and Python hold back a second normal number
    state = random_state(CPU)
    first = draws()
    assert draws() != first
    restore_random_state(state, CPU)
    assert draws() == first


@pytest.mark.parametrize("seed", [0, 7, 2**62])
def test_seeded_depends_on_the_seed_alone_and_puts_back(seed: int) -> None:
    before = random_state(CPU)
    found = []
    for _ in range(2):
        with seeded(seed * 100_003, CPU):
            found.append(draws())
    assert found[0] == found[1]
    with seeded(seed * 100_003 + 1, CPU):
        assert draws() != found[0]
    after = random_state(CPU)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("broken", [{}, {"torch": torch.zeros(3)}, {"numpy": torch.zeros(4, dtype=torch.int64)}])
def test_a_broken_random_state_is_refused(broken: dict[str, Tensor]) -> None:
    state = {**random_state(CPU), **broken} if broken else {}
    with pytest.raises(InputError, match="random state: can not be taken over"):
        restore_random_state(state, CPU)


@pytest.mark.parametrize(("text", "interval"), [("epoch", "epoch"), ("1", 1), ("250", 250)])
def test_read_interval(text: str, interval: object) -> None:
    assert read_interval(text) == interval


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "step", "²"])
def test_read_interval_refuses(text: str) -> None:
    with pytest.raises(InputError, match="--interval: expected epoch, or a number of steps"):
        read_interval(text)


def test_the_interval_of_a_plan() -> None:
    assert Sampling().interval_steps is None
    assert Sampling(interval=4).interval_steps == 4
    assert Sampling.model_validate_json(Sampling(interval=4).model_dump_json()) == Sampling(interval=4)
    for wrong in (0, -1, True, 1.5, "4", "step", None):
        with pytest.raises(ValidationError, match="expected epoch, or a number of steps of 1 or more"):
            Sampling(interval=wrong)  # type: ignore[arg-type]
