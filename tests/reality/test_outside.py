"""Contenders that are not plans, really trained: what they keep, what they change, and that they stay in the budget."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import write_images, write_sources
from pydantic import TypeAdapter

from medyate_planner.bench.jobs import Job
from medyate_planner.bench.matrix import Matrix, read_matrix
from medyate_planner.bench.outside import LoraSettings, adapt, checkpoint_blocks
from medyate_planner.bench.result import ResultLine
from medyate_planner.bench.setting import Setting, setting_of
from medyate_planner.bench.watching import Follower
from medyate_planner.bench.work import perform
from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.training.baseline import fine_tune, measure_full_step, measure_one_step
from medyate_planner.training.recipe import Recipe

CHAIN = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(6, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.back = nn.Conv2d(24, 6, 1)

    def forward(self, x):
        return x + self.back(torch.relu(self.deep(torch.relu(self.wide(x)))))


class Chain(nn.Module):
    input_shape = (3, 16, 16)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def factory():
    torch.manual_seed(0)
    return Chain()
"""

MATRIX = """
name = "outside"
batch_size = 4
seeds = [0]
warm_head_epochs = 1

[[networks]]
name = "chain"
spec = "chain.py:factory"

[[tasks]]
name = "pictures"
data = "imagefolder:data"
epochs = 3

[[budgets]]
name = "tenth"
of_full = 0.1

[families.all]
rates = [0.02]
chosen_by = "full"

[[contenders]]
name = "full"
kind = "full"
family = "all"

[[contenders]]
name = "checkpointed"
kind = "checkpointed"
family = "all"

[[contenders]]
name = "lora"
kind = "lora"
family = "all"
settings = { rank = 2, alpha = 4 }

[[contenders]]
name = "oracle"
kind = "oracle"
strategy = "rgn"
family = "all"

[[contenders]]
name = "optimal"
family = "all"

[[contenders]]
name = "optimal-followed"
family = "all"
follow = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("outside")
    write_sources(made)
    write_images(made / "data")
    (made / "chain.py").write_text(CHAIN)
    (made / "matrix.toml").write_text(MATRIX)
    return made


@pytest.fixture
def matrix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    monkeypatch.chdir(folder)
    return read_matrix(folder / "matrix.toml")


def job(contender: str | None) -> Job:
    budget = "tenth" if contender in ("lora", "oracle", "optimal", "optimal-followed") else None
    stage: Any = "rank" if contender is None else "run"
    return Job(stage=stage, network="chain", task="pictures", seed=0, contender=contender, budget=budget)


@pytest.fixture
def setting(matrix: Matrix) -> Setting:
    return setting_of(matrix, job("lora"))


def first_batch(setting: Setting) -> tuple[Any, Any]:
    x, target = next(iter(setting.batches.train(0)))
    return x, target


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        asked = read_matrix(folder / "matrix.toml")
        perform(asked, job(None), folder, None)
        return {c.name: perform(asked, job(c.name), folder, 0.02) for c in asked.contenders}


def test_checkpointing_computes_what_full_fine_tuning_computes(results: dict[str, dict[str, Any]]) -> None:
    full, checkpointed = results["full"], results["checkpointed"]
    assert checkpointed["blocks"] == 3
    assert checkpointed["accuracies"] == full["accuracies"]
    assert checkpointed["training_bytes"] < full["training_bytes"]
    assert checkpointed["live_peak_bytes"] < full["live_peak_bytes"]


def test_checkpointed_weights_are_those_of_full_fine_tuning(matrix: Matrix) -> None:
    weights = []
    for blocks in (0, 3):
        setting = setting_of(matrix, job("full"))
        model = copy.deepcopy(setting.subject.model).requires_grad_()
        if blocks:
            assert checkpoint_blocks(model) == blocks
        fine_tune(model, setting.batches, setting.subject.loss, Recipe(epochs=1, lr=0.05))
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in weights[0].items():  # biases: summed in another order
        torch.testing.assert_close(value, weights[1][name], rtol=1e-6, atol=1e-7)


def test_checkpointing_keeps_the_blocks_inputs_and_one_block(setting: Setting) -> None:
    """By hand, of one sample 8 x 8: each block keeps its input; when it is computed again, its two wide activations
    before and after relu are kept as autograd does: relu's result is the next convolution's input."""
    model = copy.deepcopy(setting.subject.model).requires_grad_()
    checkpoint_blocks(model)
    x, target = first_batch(setting)
    training, _ = measure_one_step(model, x, target, setting.subject.loss)
    plane = 4 * 8 * 8 * 4
    inputs, within = 3 * 6 * plane, 2 * 24 * plane
    assert inputs + within <= training <= inputs + within + 2 * 6 * plane + sum(p.nbytes for p in model.parameters())


def test_a_chain_of_blocks_is_needed() -> None:
    with pytest.raises(InputError, match="Sequential or ModuleList"):
        checkpoint_blocks(torch.nn.Linear(2, 2))


def test_lora_trains_its_adapters_and_the_head_alone(setting: Setting) -> None:
    model = setting.subject.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(setting, LoraSettings(rank=2, alpha=4), None)
    assert all(not name.endswith("deep") for name in adapted.layers)
    assert len(adapted.layers) == 7  # stem, and two of each block
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("fc.") for name in trained)
    fine_tune(adapted.model, setting.batches, setting.subject.loss, Recipe(epochs=1, lr=0.05))
    after = adapted.model.state_dict()
    for name, value in before.items():
        module, _, kind = name.rpartition(".")
        base = f"{module}.base_layer.{kind}" if module in adapted.layers else name
        assert torch.equal(after[base], value) == (module != "fc")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lora_takes_as_many_of_the_last_layers_as_fit(setting: Setting) -> None:
    x, target = first_batch(setting)
    everywhere = adapt(setting, LoraSettings(rank=2, alpha=4), None)
    assert adapt(setting, LoraSettings(rank=2, alpha=4), 10**9).layers == everywhere.layers
    needs = []
    whole, _ = measure_one_step(everywhere.model, x, target, setting.subject.loss)
    for share in (0.9, 0.6, 0.3):
        budget_bytes = int(share * whole)
        adapted = adapt(setting, LoraSettings(rank=2, alpha=4), budget_bytes)
        measured, _ = measure_one_step(adapted.model, x, target, setting.subject.loss)
        assert measured + adapted.adapter_bytes <= budget_bytes
        assert adapted.layers == everywhere.layers[-len(adapted.layers) :]
        needs.append(len(adapted.layers))
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > needs[-1]
    with pytest.raises(InfeasibleBudgetError) as error:
        adapt(setting, LoraSettings(rank=2, alpha=4), 1000)
    least = int(error.value.facts["minimum_bytes"])
    assert len(adapt(setting, LoraSettings(rank=2, alpha=4), least).layers) == 1
    with pytest.raises(InfeasibleBudgetError):
        adapt(setting, LoraSettings(rank=2, alpha=4), least - 1)


def test_results_stay_within_their_budget(results: dict[str, dict[str, Any]], setting: Setting) -> None:
    full = measure_full_step(setting.subject.model, *first_batch(setting), setting.subject.loss)[0]
    assert full == results["full"]["training_bytes"]
    for name in ("lora", "oracle", "optimal"):
        found = results[name]
        if found.get("failure"):
            assert name == "lora"
            continue
        assert found["budget_bytes"] == int(0.1 * full)
        assert 0 < found["training_bytes"] <= found["budget_bytes"]


def test_results_are_what_their_schema_says(results: dict[str, dict[str, Any]]) -> None:
    for name, found in results.items():
        read = TypeAdapter(ResultLine).validate_json(json.dumps(found))
        assert read.model_dump(mode="json", exclude_unset=True) == json.loads(json.dumps(found)), name


def test_measuring_full_fine_tuning_leaves_no_trace(setting: Setting) -> None:
    model = setting.subject.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    required = [p.requires_grad for p in model.parameters()]
    measure_full_step(model, *first_batch(setting), setting.subject.loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(p.grad is None for p in model.parameters())


def test_a_job_does_not_depend_on_those_before_it(folder: Path, matrix: Matrix) -> None:
    """The network is captured once for all jobs of a process: whatever they did to it, the next begins afresh."""
    perform(matrix, job(None), folder, None)
    again = [
        perform(matrix, job(name), folder, 0.02) for name in ("optimal", "checkpointed", "full", "lora", "optimal")
    ]
    first, last = again[0], again[-1]
    assert {**first, "seconds": 0, "step_seconds": 0} == {**last, "seconds": 0, "step_seconds": 0}
    assert len(set(first["losses"])) == len(first["losses"])


def test_following_changes_nothing_that_is_trained(results: dict[str, dict[str, Any]]) -> None:
    plain, followed = results["optimal"], results["optimal-followed"]
    assert followed["accuracies"] == plain["accuracies"]
    assert followed["losses"] == plain["losses"]
    seen = followed["stability"]
    assert len(seen["epochs"]) == 3
    for likeness in (seen["again"], *seen["epochs"]):
        assert -1 <= likeness["layers"] <= 1
        assert -1 <= likeness["channels"] <= 1
        assert 0 <= likeness["best"] <= 1


def test_importance_that_did_not_change_is_the_same(setting: Setting) -> None:
    follower = Follower(setting, 2)
    follower.measure()
    (after,) = follower.summary()["stability"]["epochs"]
    assert after == {"layers": pytest.approx(1.0), "channels": pytest.approx(1.0), "best": 1.0}


def test_too_few_batches_to_follow_are_told(setting: Setting) -> None:
    with pytest.raises(InputError, match="at least twice 1000"):
        Follower(setting, 1000)
