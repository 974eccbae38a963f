"""Norms that are updated: bytes in three ways, the bound, autograd's gradients, and nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random

import pytest
import torch
from third_party import import_timm, import_torchvision
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.real import real_session_step
from medyate_planner.training.session import Session
from medyate_planner.training.slots import Slot


class Batches(nn.Module):
    """BatchNorm before anything that is trained, between convolutions, before an activation in place, and one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.outer, self.inner = nn.BatchNorm2d(3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.outer(self.stem(self.first(x))))
        x = x + self.relu(self.inner(self.body(x)))
        return self.head(self.inner(x).mean((2, 3)))


class Groups(nn.Module):
    """GroupNorm on the input, between convolutions, and with one group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.GroupNorm(1, 4), nn.GroupNorm(4, 8), nn.GroupNorm(1, 8)
        self.stem, self.body, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.second(self.stem(self.first(x))))
        return self.head(torch.relu(self.third(self.body(x))).mean((2, 3)))


class Block(nn.Module):
    """A transformer's block, with a last norm on a part of its tokens."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.before, self.between, self.last = norm(12), norm(12), norm(12)
        self.mix, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.wide, self.narrow, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.before(x)).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.narrow(functional.gelu(self.wide(self.between(x))))
        return self.head(self.last(x.transpose(0, 1)[0]))


def resnet18() -> nn.Module:
    model: nn.Module = import_torchvision().models.resnet18(num_classes=5)
    return model


def vit_tiny() -> nn.Module:
    model: nn.Module = import_timm().create_model("vit_tiny_patch16_224", num_classes=5)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch": (Batches, (3, 9, 9)),
    "batch, channels_last": (Batches, (3, 9, 9)),
    "group": (Groups, (4, 9, 9)),
    "group, channels_last": (Groups, (4, 9, 9)),
    "layer": (Block, (7, 12)),
    "rms": (lambda: Block(nn.RMSNorm), (7, 12)),
    "resnet18": (resnet18, (3, 64, 64)),
    "vit_tiny": (vit_tiny, (3, 224, 224)),
}
SMALL = tuple(CASES)[:6]
all_cases = pytest.mark.parametrize("case", CASES)
small_cases = pytest.mark.parametrize("case", SMALL)


def random_parameters(model: nn.Module) -> None:
    """Norms that do something: random scales, biases and statistics; a head through which gradients flow."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1:
                positive = name.endswith(("var", "weight"))
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if positive else -0.5))


@lru_cache(maxsize=4)
def made(case: str, batch: int, dtype: torch.dtype = torch.float32) -> Subject:
    torch.manual_seed(1)
    factory, shape = CASES[case]
    model = factory().eval()
    random_parameters(model)
    x = torch.randn(4, *shape)
    if "channels_last" in case:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return subject_of(model.to(dtype), x.to(dtype), batch_size=batch)


def random_updates(subject: Subject, seed: int) -> Updates:
    """Some norms, or norms and layers: a random share of the channels, the bias or both, maybe all."""
    random, graph = Random(seed), subject.graph
    units = graph.norms if seed % 2 else graph.units
    body = [unit for unit in units if unit.name not in graph.head]
    chosen = [unit for unit in body[random.randrange(len(body)) :] if random.random() < 0.7] or body[-1:]
    quotas = {unit.name: random.randint(0, unit.channels) for unit in chosen}
    biases = [unit.name for unit in chosen if unit.bias and (random.random() < 0.5 or not quotas[unit.name])]
    full = {unit.name for unit in chosen if random.random() < 0.2} | (
        set(graph.head) if random.random() < 0.5 else set()
    )
    return Updates(
        quotas={name: n for name, n in quotas.items() if n and name not in full} or {body[-1].name: 1},
        biases=frozenset(biases) - full,
        full=frozenset(full - {body[-1].name}),
    )


def check_bytes(subject: Subject, updates: Updates) -> None:
    """Closed form, dry run and real step agree, and the closed form of the live peak is above theirs."""
    loss = subject.loss
    closed = footprint(subject.memory, updates)
    dry = dry_run(subject.traced, subject.graph, updates, loss.function, loss.make_target)
    real, _ = real_session_step(subject.model, subject.traced, subject.graph, updates, loss.function, loss.make_target)
    assert closed.saved_bytes == dry.saved_bytes == real.saved_bytes == real.alive_saved_bytes
    assert closed.selected_bytes == dry.selected_bytes == real.selected_bytes
    assert closed.training_bytes == dry.training_bytes == real.training_bytes
    assert closed.gradients_bytes == dry.gradients_bytes == real.gradients_bytes
    assert closed.update_bytes == dry.update_bytes == real.update_bytes
    assert closed.index_bytes == dry.index_bytes == real.index_bytes
    assert dry.live_peak_bytes == real.live_peak_bytes
    assert dry.live_peak_bytes is not None
    assert subject.peak_bound_bytes(updates) >= dry.live_peak_bytes


@all_cases
@pytest.mark.parametrize("batch", [1, 4])
def test_bytes_agree_in_three_ways_and_the_bound_holds(case: str, batch: int) -> None:
    subject = made(case, batch)
    assert {norm.kind for norm in subject.graph.norms} == {"norm"}
    for seed in range(8 if case in SMALL else 3):
        check_bytes(subject, random_updates(subject, seed))


@small_cases
def test_each_norm_alone_and_all_in_full(case: str) -> None:
    subject = made(case, 4)
    for norm in subject.graph.norms:
        check_bytes(subject, Updates(quotas={norm.name: 2}))
        if norm.bias:
            check_bytes(subject, Updates(quotas={}, biases=frozenset({norm.name})))
    check_bytes(subject, Updates(quotas={}, full=frozenset(norm.name for norm in subject.graph.norms)))


@small_cases
def test_bytes_agree_in_bfloat16(case: str) -> None:
    subject = made(case, 4, torch.bfloat16)
    assert subject.graph.norms
    for seed in range(6):
        check_bytes(subject, random_updates(subject, seed))


def sliced(layer: Layer, gradient: Tensor, index: Tensor | None) -> Tensor:
    """The part of a full weight gradient that is trained; written from the definition of a channel."""
    if index is None:
        return gradient
    return gradient[index.tolist()] if layer.kind == "norm" else gradient[:, index.tolist()]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).double().norm() / expected.double().norm())


def half_of_everything(subject: Subject) -> tuple[Updates, Mapping[str, list[int]]]:
    """Every other channel of each unit, with every bias."""
    units = subject.graph.units
    drawn = {unit.name: list(range(unit.channels))[1::2] for unit in units}
    updates = Updates(
        quotas={name: len(channels) for name, channels in drawn.items()},
        biases=frozenset(unit.name for unit in units if unit.bias),
    )
    return updates, drawn


def run_step(
    subject: Subject, updates: Updates, drawn: Mapping[str, list[int]], x: Tensor, *, lr: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of the trained parts by parameter name."""
    found: dict[str, Tensor] = {}

    def note(slot: Slot, weight: Tensor | None, bias: Tensor | None) -> None:
        if weight is not None:
            found[slot.layer.weight] = weight.clone()
        if bias is not None:
            found[str(slot.layer.bias)] = bias.clone()

    with Session(subject.model, subject.traced, subject.graph, updates, lambda _interval: drawn) as session:
        session.resample(0)
        session.set_lr(lr)
        session.rule.tap = note
        output = session(x)
        functional.cross_entropy(output, torch.arange(len(x)) % 5).backward()
    return output.detach(), found


@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_bit_identical_and_gradients_are_autograds(case: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and case not in SMALL:
        pytest.skip("slow, and says nothing more")
    subject = made(case, 4, dtype)
    (x,), _ = subject.traced.examples(4, seed=1)
    reference = copy.deepcopy(subject.model)
    expected_output = reference(x.clone().requires_grad_())  # else torch 2.13 crashes on a channels_last GroupNorm
    functional.cross_entropy(expected_output, torch.arange(4) % 5).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    updates, drawn = half_of_everything(subject)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for chosen, index in ((updates, drawn), (Updates(quotas={}, full=updates.layers), {})):
        output, found = run_step(subject, chosen, index, x)
        assert torch.equal(output, expected_output)
        for unit in subject.graph.units:
            channels = torch.tensor(index[unit.name]) if index else None
            whole = expected[unit.weight]
            assert whole is not None
            if unit.groups == 1 and (dtype == torch.float32 or unit.kind == "norm"):
                assert relative(found[unit.weight], sliced(unit, whole, channels)) <= tolerance, unit.name
            if unit.bias and unit.kind == "norm":
                bias = expected[unit.bias]
                assert bias is not None
                assert relative(found[unit.bias], bias) <= tolerance, unit.bias


@all_cases
def test_a_step_changes_the_selected_elements_and_nothing_else(case: str) -> None:
    subject = made(case, 4)
    (x,), _ = subject.traced.examples(4, seed=2)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    norms = subject.graph.norms
    drawn = {norm.name: list(range(norm.channels))[::3] for norm in norms[::2]}
    biases = frozenset(norm.name for norm in norms[1::2] if norm.bias)
    updates = Updates(quotas={name: len(channels) for name, channels in drawn.items()}, biases=biases)
    try:
        _, gradients = run_step(subject, updates, drawn, x, lr=0.5)
        after = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    finally:
        subject.model.load_state_dict(before)
    by_weight = {norm.weight: norm for norm in norms if norm.name in drawn}
    for name, tensor in after.items():
        if name not in gradients:
            assert torch.equal(tensor, before[name]), name
            continue
        expected = before[name].clone()
        index = drawn[by_weight[name].name] if name in by_weight else list(range(len(expected)))
        expected[index] -= 0.5 * gradients[name]
        assert torch.allclose(tensor, expected, rtol=1e-6, atol=1e-7)
        kept = [i for i in range(len(expected)) if i not in index]
        assert torch.equal(tensor[kept], before[name][kept])
        assert not torch.equal(tensor, before[name])
