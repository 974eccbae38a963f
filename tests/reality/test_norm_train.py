"""Norm mode `train`: as PyTorch with BatchNorms in training mode, the rest in evaluation mode; bytes agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from random import Random

import pytest
import torch
from channels import assert_gradient, mask_of, parameters_of, sliced
from third_party import import_torchvision
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import InputError, plan, prepare, verify
from medyate_planner.api import open_session
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.session import Session
from medyate_planner.training.slots import Slot

BATCH = 4
MODES = {"fused": FUSED, "momentum": UpdateMode(update="optimizer", optimizer="momentum", accumulation=2)}
DTYPES = (torch.float32, torch.bfloat16)


class Norms(nn.Module):
    """BatchNorms on the input, called twice, without parameters, with a momentum of its own, behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem, self.twice = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.3)
        self.body, self.bare = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.each = nn.Conv2d(8, 8, 3, groups=8)
        self.dropout, self.group, self.last = nn.Dropout(0.5), nn.GroupNorm(2, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.twice(self.stem(self.first(x))), inplace=True)
        x = self.dropout(functional.silu(self.bare(self.body(x)))) + x
        x = functional.gelu(self.each(self.group(self.twice(x))))
        return self.head(torch.tanh(self.last(x.mean((2, 3)))))


class Dimensions(nn.Module):
    """BatchNorm1d on sequences, BatchNorm3d on volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.volume, self.deep = nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6)
        self.mix, self.long, self.head = nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(self.volume(x))).flatten(2)
        return self.head(functional.gelu(self.long(self.mix(x))).mean(2))


class Untracked(nn.Module):
    """BatchNorms without stored statistics, which use those of the batch in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)
        self.body, self.tracked, self.head = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tracked(self.body(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(x).mean((2, 3)))


def resnet18() -> nn.Module:
    model: nn.Module = import_torchvision().models.resnet18(num_classes=5)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "norms": (Norms, (3, 9, 9)),
    "norms, channels_last": (Norms, (3, 9, 9)),
    "dimensions": (Dimensions, (2, 5, 5, 5)),
    "untracked": (Untracked, (3, 9, 9)),
    "resnet18": (resnet18, (3, 32, 32)),
}
SMALL = ("norms", "norms, channels_last", "dimensions", "untracked")
all_networks = pytest.mark.parametrize("network", NETWORKS)
small_networks = pytest.mark.parametrize("network", SMALL)
all_types = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
all_modes = pytest.mark.parametrize("mode", MODES)


@cache
def traced(network: str, dtype: torch.dtype) -> tuple[Subject, dict[str, Tensor]]:
    """The network in norm mode `train`, and its weights and statistics."""
    torch.manual_seed(1)
    factory, shape = NETWORKS[network]
    model = factory().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape) + (0.5 if name.endswith(("var", "weight")) else -0.5))
    x = torch.randn(BATCH, *shape)
    if "channels_last" in network:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    subject = subject_of(model.to(dtype), x.to(dtype), norm="train")
    return subject, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def made(network: str, dtype: torch.dtype, mode: str = "fused") -> Subject:
    subject, initial = traced(network, dtype)
    subject.model.load_state_dict(initial)
    subject.model.eval().requires_grad_()
    return subject.under(MODES[mode])


def as_pytorch_would(model: nn.Module) -> nn.Module:
    """A copy with BatchNorms in training mode, and all else in evaluation mode."""
    reference = copy.deepcopy(model).eval()
    for module in reference.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return reference


def batch(subject: Subject, seed: int) -> tuple[Tensor, Tensor]:
    (x,), _ = subject.traced.examples(BATCH, seed)
    return x, (torch.arange(BATCH) + seed) % 5


def part_of_everything(subject: Subject, seed: int) -> tuple[Updates, dict[str, list[int]]]:
    """Channels of every layer and of every norm, and all biases."""
    dice, units = Random(seed), subject.graph.units
    drawn = {unit.name: sorted(dice.sample(range(unit.channels), (unit.channels + 1) // 2)) for unit in units}
    biases = frozenset(unit.name for unit in units if unit.bias)
    return Updates(quotas={name: len(channels) for name, channels in drawn.items()}, biases=biases), drawn


def session_of(subject: Subject, seed: int) -> tuple[Session, dict[str, list[int]]]:
    updates, drawn = part_of_everything(subject, seed)
    session = Session(subject.model, subject.traced, subject.graph, updates, lambda _interval: drawn, mode=subject.mode)
    session.resample(0)
    return session, drawn


@all_networks
@all_types
@all_modes
def test_forward_statistics_and_gradients_are_pytorchs(network: str, dtype: torch.dtype, mode: str) -> None:
    subject = made(network, dtype, mode)
    assert {unit.kind for unit in subject.graph.norms} <= {"norm"}
    reference = as_pytorch_would(subject.model)
    wide = as_pytorch_would(subject.model).double()
    found: dict[str, Tensor] = {}

    def note(slot: Slot, weight: Tensor | None, bias: Tensor | None) -> None:
        for name, gradient in ((slot.layer.weight, weight), (slot.layer.bias, bias)):
            if gradient is not None and name is not None:
                found[name] = found.get(name, 0) + gradient

    session, drawn = session_of(subject, 0)
    session.rule.tap = note
    with session:
        for seed in (1, 2):
            x, target = batch(subject, seed)
            mine, theirs = session(x), reference(x)
            assert torch.equal(mine, theirs)
            functional.cross_entropy(mine, target).backward()
            functional.cross_entropy(theirs, target).backward()
            functional.cross_entropy(wide(x.double()), target).backward()
        for name, expected in reference.named_buffers():
            assert torch.equal(dict(subject.model.named_buffers())[name], expected), name
        evaluated = session.eval()(x)
        assert torch.equal(evaluated, reference.eval()(x))
    gradients, true = gradients_of(reference), gradients_of(wide)
    for unit in subject.graph.units:
        part = partial(sliced, unit, channels=drawn[unit.name])
        true_part = partial(part, true[unit.weight])
        assert_gradient(unit.weight, found[unit.weight], part(gradients[unit.weight]), true_part)
        if unit.bias and float(true[unit.bias].norm()) > 1e-6 * float(true[unit.weight].norm()):
            assert_gradient(unit.bias, found[unit.bias], gradients[unit.bias], partial(true.get, unit.bias))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in parameters_of(model).items() if p.grad is not None}


@all_networks
@all_types
@all_modes
def test_verify_finds_no_difference_and_leaves_the_statistics(network: str, dtype: torch.dtype, mode: str) -> None:
    subject = made(network, dtype, mode)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    bought = set()
    loose = plan(subject, None, 10**9, request={"buy_norm_scales": True})
    tight = loose.predicted.training_bytes // 2
    for decided in (loose, plan(subject, None, tight, request={"buy_norm_scales": True, "gap_ratio": 0.05})):
        assert decided.norm == "train"
        result = verify(subject, decided)
        assert not [category for category in result.categories if not category.agrees]
        assert result.ok
        bought |= {layer.name for layer in decided.layers if layer.kind == "norm"} | set(decided.biases)
    assert bought & {norm.name for norm in subject.graph.norms}
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())


@small_networks
@all_modes
def test_only_the_selection_and_the_statistics_change(network: str, mode: str) -> None:
    subject = made(network, torch.float32, mode)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    session, drawn = session_of(subject, 3)
    optimizer = torch.optim.SGD(session.parameters(), lr=0.1) if session.parameters() else None
    with session:
        session.set_lr(0.1)
        for seed in range(2):
            x, target = batch(subject, seed)
            functional.cross_entropy(session(x), target).backward()
            if optimizer is not None:
                optimizer.step()
    after = subject.model.state_dict()
    statistics = {name for name, _ in subject.model.named_buffers()}
    by_weight = {unit.weight: unit for unit in subject.graph.units}
    biases = {unit.bias for unit in subject.graph.units}
    for name, tensor in after.items():
        changed = tensor != before[name]
        if name in statistics:
            assert changed.any(), name
        elif name not in by_weight:  # in front of a norm, a bias has no gradient but noise
            assert name in biases or not changed.any(), name
        else:
            assert not (changed & ~mask_of(by_weight[name], drawn[by_weight[name].name])).any(), name
            assert changed.any(), name


def test_a_forward_without_gradients_moves_statistics_as_pytorch_does() -> None:
    subject = made("norms", torch.float32)
    reference = as_pytorch_would(subject.model)
    session, _ = session_of(subject, 0)
    with session, torch.no_grad():
        x, _ = batch(subject, 1)
        assert torch.equal(session(x), reference(x))
        subject.model.train()  # whatever the user does
        assert torch.equal(session(x), reference(x))
        session.eval()(x)  # moves nothing
    for name, expected in reference.named_buffers():
        assert torch.equal(dict(subject.model.named_buffers())[name], expected), name
    assert int(subject.model.twice.num_batches_tracked) == 4  # type: ignore[union-attr]


def test_frozen_leaves_stored_statistics_alone_but_uses_the_batchs_where_there_are_none() -> None:
    subject = made("untracked", torch.float32)
    frozen = subject_of(subject.model, batch(subject, 0)[0])
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    decided = plan(frozen, None, "1MB", strategy="full")
    assert decided.norm == "frozen"
    result = verify(frozen, decided)
    assert result.ok, result.categories
    reference = copy.deepcopy(subject.model).eval()
    x, target = batch(subject, 1)
    with open_session(frozen, decided) as session:
        session.set_lr(0.5)
        output = session(x)
        assert torch.equal(output, reference(x))
        functional.cross_entropy(output, target).backward()
    functional.cross_entropy(reference(x), target).backward()
    trained = {layer.name for layer in decided.layers}
    assert trained == {"stem", "body", "head"}
    for name, parameter in subject.model.named_parameters():
        expected = dict(reference.named_parameters())[name]
        if name.rpartition(".")[0] in trained or name in {f"{layer}.bias" for layer in decided.biases}:
            assert expected.grad is not None
            torch.testing.assert_close(parameter, expected - 0.5 * expected.grad, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(parameter, before[name])
    for name, buffer in subject.model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_what_norm_train_can_not_do_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(196, 5))
    x = torch.zeros(2, 3, 9, 9)
    with pytest.raises(InputError, match=r"norm train: 1 averages over all batches .* choose norm frozen"):
        subject_of(model, x, norm="train")
    decided = plan(model, x, "1MB")
    with pytest.raises(InputError, match="norm train: 1 averages"):
        prepare(model, decided.model_copy(update={"norm": "train"}))
    with pytest.raises(InputError, match="norm 'sync' is unknown; choose frozen or train"):
        subject_of(model, x, norm="sync")


def test_a_single_value_per_channel_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    subject = subject_of(model, torch.zeros(2, 3), norm="train")
    assert verify(subject, plan(subject, None, "1MB")).ok
    with pytest.raises(InputError, match="batch"):
        plan(model, torch.zeros(1, 3), "1MB", norm="train")
    assert verify(model, plan(model, torch.zeros(1, 3), "1MB")).ok
