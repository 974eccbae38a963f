"""Importance measured in rounds: what one full backward measures, never above the budget, and no trace of it left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import subject as network
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.api import ROUND_BATCHES, rank
from medyate_planner.errors import (
    BudgetExceededError,
    CertificationError,
    DivergenceError,
    InfeasibleBudgetError,
    InputError,
    MedyateError,
)
from medyate_planner.importance.energy import Importance
from medyate_planner.importance.gradients import probe
from medyate_planner.memory.mode import UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.rounds import pack_rounds
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.loop import Recipe, invoke
from medyate_planner.training.probing import probe_in_rounds
from medyate_planner.training.session import Session

Batch = tuple[Tensor, Tensor]
UNLIMITED = 10**12
BEYOND = ("head", "conv", "norm")  # the head first: it is the embedding, too


class EveryKind(nn.Module):
    """A layer and a norm of every kind, one used twice, one tied to the head, one that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 7)
        self.conv = nn.Conv2d(7, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.group_norm = nn.GroupNorm(3, 12)
        self.twice = nn.Conv2d(12, 12, 1)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2)
        self.linear = nn.Linear(6, 7)
        self.layer_norm = nn.LayerNorm(7)
        self.nowhere = nn.Linear(7, 3)  # an output that the loss does not read
        self.head = nn.Linear(7, 20)
        self.head.weight = self.tokens.weight
        with torch.no_grad():
            for norm in (self.norm, self.group_norm, self.layer_norm):
                norm.weight.uniform_(0.5, 1.5)
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.tokens(x).permute(0, 3, 1, 2)
        y = self.grouped(self.depthwise(torch.relu(self.norm(self.conv(y)))))
        y = torch.relu(self.twice(torch.relu(self.twice(self.group_norm(y)))))
        y = self.layer_norm(self.linear(self.up(y).mean((2, 3))))
        return self.head(torch.tanh(y)), self.nowhere(y)


def loss(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return functional.cross_entropy(outputs[0].float(), target)


def tokens(count: int = 3) -> list[Batch]:
    source = torch.Generator().manual_seed(0)
    draws = [torch.randint(0, 20, (4, 5, 6), generator=source) for _ in range(count)]
    return [(x, x[:, 0, 0].clone()) for x in draws]


def every_kind(dtype: torch.dtype = torch.float32) -> Subject:
    torch.manual_seed(0)
    return subject_of(EveryKind().to(dtype), tokens()[0][0], loss=loss)


def within(subject: Subject, batches: list[Batch], budget_bytes: int) -> Importance:
    return rank(
        subject, lambda _epoch: batches, steps_per_epoch=len(batches), warm_head_epochs=0, within_budget=budget_bytes
    )


def at_once(subject: Subject, batches: Iterable[Batch]) -> Importance:
    return probe(subject.model, subject.graph, batches, subject.loss.function, call=invoke)


def assert_same(found: Importance, expected: Importance, names: Iterable[str], *, tolerance: float) -> None:
    """Energies and norms of these layers, as vectors."""
    for name in names:
        for mine, other in ((found.energy, expected.energy), (found.norms, expected.norms)):
            assert np.linalg.norm(other[name]) > 0, name
            assert np.linalg.norm(mine[name] - other[name]) <= tolerance * np.linalg.norm(other[name]), name


TOLERANCES = [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float32", "bfloat16"])
def test_one_round_without_a_limit_is_one_full_backward(dtype: torch.dtype, tolerance: float) -> None:
    subject, batches = every_kind(dtype), tokens()
    expected = at_once(subject, batches)
    found = within(subject, batches, UNLIMITED)
    reached = {unit.name for unit in subject.graph.units} - {"nowhere"}
    assert len(reached) == 10
    assert_same(found, expected, reached, tolerance=tolerance)
    assert not found.energy["nowhere"].any()
    assert not expected.energy["nowhere"].any()
    assert found.bias_energy.keys() == expected.bias_energy.keys()
    assert found.bias_energy == pytest.approx(expected.bias_energy, rel=tolerance)
    assert found.fingerprint == expected.fingerprint
    assert found.facts["rounds"] == 1
    assert found.facts["beyond_budget"] == []
    assert {key: found.facts[key] for key in expected.facts} == expected.facts


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float32", "bfloat16"])
def test_rounds_add_up_to_what_fits_and_hold_no_more(dtype: torch.dtype, tolerance: float) -> None:
    """A budget in which the earliest layers have no room: they are 0 and named, all others as by one full backward."""
    subject, batches = every_kind(dtype), tokens()
    expected = at_once(subject, batches)
    budget_bytes = footprint(subject.memory, Updates(quotas={"depthwise": 1})).training_bytes
    found = within(subject, batches, budget_bytes)
    assert found.facts["rounds"] > 5
    assert found.facts["budget_bytes"] == budget_bytes
    assert found.facts["beyond_budget"] == list(BEYOND)
    assert not any(found.energy[name].any() for name in BEYOND)
    rest = {unit.name for unit in subject.graph.units} - {*BEYOND, "nowhere"}
    assert_same(found, expected, rest, tolerance=tolerance)
    biases = {name for name in found.bias_energy if name != "nowhere" and found.bias_energy[name] > 0}
    assert {"depthwise", "grouped", "layer_norm"} <= biases
    for name in biases:
        assert found.bias_energy[name] == pytest.approx(expected.bias_energy[name], rel=tolerance)
    predicted = max(chosen.training_bytes for chosen in pack_rounds(subject.memory, budget_bytes).rounds)
    assert found.facts["measured_training_bytes"] == predicted <= budget_bytes
    assert found.source == f"gradients of 3 mini-batches, in {found.facts['rounds']} rounds within {budget_bytes:,} B"


def test_every_round_is_measured_as_it_was_predicted() -> None:
    subject, batches = every_kind(), tokens(2)
    packing = pack_rounds(subject.memory, 9000)
    assert len(packing.rounds) > 5
    for chosen in packing.rounds:
        alone = replace(packing, rounds=(chosen,))
        found = probe_in_rounds(subject.graph, alone, lambda: batches, loss, open_session=opener(subject))
        assert found.facts["measured_training_bytes"] == chosen.training_bytes <= 9000


def opener(subject: Subject) -> Callable[..., Session]:
    return lambda chosen: Session(subject.model, subject.traced, subject.graph, chosen.updates, chosen.draw)


def test_nothing_is_left_behind() -> None:
    subject, batches = every_kind(), tokens()
    subject.model.train()
    subject.model.conv.weight.requires_grad_(False)
    before, random = copy.deepcopy(subject.model.state_dict()), torch.get_rng_state()
    within(subject, batches, 9000)
    after = subject.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(module.training for module in subject.model.modules())
    assert {name for name, p in subject.model.named_parameters() if not p.requires_grad} == {"conv.weight"}
    assert all(p.grad is None for p in subject.model.parameters())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("generator", ["torch", "numpy"])
def test_batches_drawn_by_a_global_generator_are_the_same_in_every_round(generator: str) -> None:
    subject = every_kind()

    def numbers() -> Tensor:
        if generator == "torch":
            return torch.randint(0, 20, (4, 5, 6))
        return torch.from_numpy(np.random.randint(0, 20, (4, 5, 6)))

    def drawn(_epoch: int) -> Iterable[Batch]:
        return ((x, x[:, 0, 0].clone()) for x in (numbers() for _ in range(2)))

    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)

    seed()
    found = rank(subject, drawn, steps_per_epoch=2, warm_head_epochs=0, within_budget=9000)
    seed()
    expected = at_once(subject, drawn(0))
    names = {unit.name for unit in subject.graph.units} - {*found.facts["beyond_budget"], "nowhere"}
    assert_same(found, expected, names, tolerance=1e-5)


def test_more_than_the_budget_stops_it() -> None:
    subject = every_kind()
    packing = pack_rounds(subject.memory, UNLIMITED)
    real = packing.rounds[0].training_bytes
    stepped = []
    with pytest.raises(CertificationError) as caught:
        probe_in_rounds(
            subject.graph, replace(packing, budget_bytes=real - 1), lambda: tokens(), loss,
            open_session=opener(subject), on_batch=lambda: stepped.append(1),
        )  # fmt: skip
    assert caught.value.message == (
        f"round 1 of 1: a step held {real:,} B of training memory, above the budget of {real - 1:,} B that it was "
        "predicted to fit, so importance was not measured any further; does the loss keep more than the one that the "
        "model was traced with, or is a target a view of something larger?"
    )
    assert caught.value.facts == {"measured_bytes": real, "budget_bytes": real - 1}
    assert caught.value.exit_code == 1
    assert stepped == []
    assert all(p.requires_grad for p in subject.model.parameters())


def test_no_batch_and_broken_numbers_are_said() -> None:
    subject = every_kind()
    with pytest.raises(InputError, match="no batch to measure importance on"):
        rank(subject, lambda _epoch: [], steps_per_epoch=2, warm_head_epochs=0, within_budget=9000)

    def broken(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return loss(outputs, target) * float("nan")

    def steep(outputs: tuple[Tensor, Tensor], _target: Tensor) -> Tensor:
        return (outputs[0] * 0).clamp(min=0).sqrt().sum()  # finite, but its slope is not

    packing = pack_rounds(subject.memory, 9000)
    with pytest.raises(DivergenceError, match=r"round 1 of \d+: the loss is nan"):
        probe_in_rounds(subject.graph, packing, lambda: tokens(), broken, open_session=opener(subject))
    with pytest.raises(DivergenceError, match="the gradient is not finite"):
        probe_in_rounds(subject.graph, packing, lambda: tokens(), steep, open_session=opener(subject))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def chains(count: int) -> list[Batch]:
    source = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 6, generator=source), torch.arange(4) % 3) for _ in range(count)]


def test_rank_warms_the_head_within_the_budget_too() -> None:
    subject, batches = subject_of(chain(), torch.zeros(4, 6)), chains(3)
    before = copy.deepcopy(subject.model.state_dict())
    steps: list[tuple[str, int, int]] = []

    def ranked(budget: str | None) -> Importance:
        steps.clear()
        return rank(
            subject, lambda _epoch: batches, steps_per_epoch=3, warm_head_epochs=1, recipe=Recipe(epochs=1),
            within_budget=budget, on_step=lambda *step: steps.append(step),
        )  # fmt: skip

    whole = ranked(None)
    found = ranked("400B")
    head = footprint(subject.memory, Updates(quotas={}, full=frozenset({"4"}))).training_bytes
    assert head <= found.facts["measured_training_bytes"] <= 400
    assert found.facts["warm_head_epochs"] == 1
    assert found.facts["rounds"] > 2
    total = 3 * found.facts["rounds"]
    assert steps == [("head", i, 3) for i in (1, 2, 3)] + [("gradients", i + 1, total) for i in range(total)]
    assert all(torch.equal(found.head[name], whole.head[name]) for name in whole.head)
    assert not torch.equal(found.head["4.weight"], before["4.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())
    assert found.facts["beyond_budget"] == []
    assert_same(found, whole, ["0", "2", "4"], tolerance=1e-5)
    with pytest.raises(InfeasibleBudgetError, match=r"training the head \(4\) before") as caught:
        ranked(f"{head - 1}B")
    assert caught.value.minimum_bytes == head
    with pytest.raises(InputError, match=r"--within-budget: '9' has no unit"):
        ranked("9")


@pytest.mark.parametrize(("epochs", "error"), [(1, BudgetExceededError), (0, CertificationError)])
def test_what_nobody_could_predict_stops_it_too(epochs: int, error: type[MedyateError]) -> None:
    """A target that keeps 3,200 B alive: of the head's training, or of the first round, before anything is updated."""
    subject = subject_of(chain(), torch.zeros(4, 6))
    before = copy.deepcopy(subject.model.state_dict())
    heavy = [(chains(1)[0][0], torch.zeros(400, dtype=torch.int64)[:4])]
    with pytest.raises(error, match="above the budget of 400 B") as caught:
        rank(subject, lambda _epoch: heavy, steps_per_epoch=1, warm_head_epochs=epochs, within_budget=400)
    assert caught.value.facts["budget_bytes"] == 400
    assert caught.value.facts["measured_bytes"] >= 3200
    assert caught.value.exit_code == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())
    assert all(p.requires_grad for p in subject.model.parameters())


def test_rank_freezes_norms_whatever_they_do_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    batches = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3)]
    subject = subject_of(model, batches[0][0], norm="train", mode=UpdateMode(update="optimizer", optimizer="adamw"))
    before = copy.deepcopy(model.state_dict())
    found = within(subject, batches, 8000)
    assert found.facts["rounds"] > 1
    assert_same(found, at_once(subject, batches), ["0", "1", "4"], tolerance=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    found.check(subject.graph)


def test_rank_within_a_budget_reads_a_few_batches_by_default() -> None:
    subject, batches = subject_of(chain(), torch.zeros(4, 6)), chains(30)
    found = rank(subject, lambda _epoch: batches, steps_per_epoch=30, warm_head_epochs=0, within_budget="600B")
    assert found.facts["batches"] == ROUND_BATCHES < 30
    assert_same(found, at_once(subject, batches[:ROUND_BATCHES]), ["0", "2", "4"], tolerance=1e-5)
    asked = rank(
        subject, lambda _epoch: batches, steps_per_epoch=30, warm_head_epochs=0, within_budget="600B", max_batches=11
    )
    assert asked.facts["batches"] == 11


@pytest.mark.assets
def test_half_a_megabyte_is_enough_for_nearly_all_of_mcunet() -> None:
    subject = network("mcunet-5fps", 8)
    (x,), _ = subject.traced.examples(8, seed=1)
    batches = [(x, torch.arange(8) % 10)]
    head = subject.graph.layer_by_name[subject.graph.head[0]]
    weight = dict(subject.model.named_parameters())[head.weight]
    original = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        found, expected = within(subject, batches, 512_000), at_once(subject, batches)
    finally:
        with torch.no_grad():
            weight.copy_(original)
    assert found.facts["measured_training_bytes"] <= 512_000
    assert len(found.facts["beyond_budget"]) == 5
    names = {unit.name for unit in subject.graph.units} - set(found.facts["beyond_budget"])
    assert_same(found, expected, names, tolerance=1e-5)
