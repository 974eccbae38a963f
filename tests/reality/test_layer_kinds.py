"""Transposed convolutions and embeddings as layers: bytes in three ways, the bound, and gradients against autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.api import verify
from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.plan import Plan
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.real import real_session_step
from medyate_planner.training.session import Session


class Upsampler(nn.Module):
    """A convolution and a transposed one, of one group or of one per channel."""

    def __init__(self, *, depthwise: bool = False) -> None:
        super().__init__()
        out = 16 if depthwise else 6
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(
            8, out, 3, stride=2, padding=1, output_padding=1, groups=8 if depthwise else 1
        )  # fmt: skip
        self.head = nn.Conv2d(out, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(torch.relu(self.down(x))))).mean((2, 3))


class Pointwise(nn.Module):
    """A transposed convolution that is a matrix product, and not that of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(torch.relu(self.down(x))))).mean((2, 3))


class Signal(nn.Module):
    """A transposed convolution in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.silu(self.up(x)).mean(2))


class Words(nn.Module):
    """Token and position embeddings, the first with a padding row, tied to the head or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30, 12, padding_idx=0), nn.Embedding(9, 12)
        self.mix, self.head = nn.Linear(12, 12), nn.Linear(12, 30, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.tokens(x) + self.places(torch.arange(x.shape[1]))))).mean(1)


IMAGE = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "transposed": (Upsampler, IMAGE),
    "transposed, channels_last": (Upsampler, IMAGE.contiguous(memory_format=torch.channels_last)),
    "transposed, 1x1, channels_last": (Pointwise, IMAGE.contiguous(memory_format=torch.channels_last)),
    "transposed, depthwise": (lambda: Upsampler(depthwise=True), IMAGE),
    "transposed, one dimension": (Signal, torch.randn(4, 4, 9, generator=torch.Generator().manual_seed(0))),
    "embedding": (lambda: Words(tied=False), TOKENS),
    "embedding, tied": (lambda: Words(tied=True), TOKENS),
}
all_cases = pytest.mark.parametrize("case", CASES)


def make(case: str) -> tuple[Subject, Tensor]:
    torch.manual_seed(1)
    factory, x = CASES[case]
    model = factory()
    if "channels_last" in case:
        model.to(memory_format=torch.channels_last)
    return subject_of(model, x), x


def half(graph_layers: tuple[Layer, ...]) -> Updates:
    """About half of the channels of each layer, biases too."""
    return Updates(
        quotas={layer.name: (layer.channels + 1) // 2 for layer in graph_layers},
        biases=frozenset(layer.name for layer in graph_layers if layer.bias),
    )


def slice_mask(layer: Layer, weight: Tensor, channels: list[int]) -> Tensor:
    """Ones where the weight belongs to the channels; written without the package's own indexing."""
    mask = torch.zeros_like(weight)
    if layer.kind == "transposed":
        mask[channels] = 1
    else:
        assert layer.groups == 1
        mask[:, channels] = 1
    return mask


@all_cases
def test_bytes_agree_in_three_ways_and_the_bound_holds(case: str) -> None:
    subject, _ = make(case)
    kinds = {layer.kind for layer in subject.graph.layers}
    assert kinds & {"transposed", "embedding"}
    for updates in (half(subject.graph.layers), Updates(quotas={}, full=half(subject.graph.layers).layers)):
        closed = footprint(subject.memory, updates)
        loss = subject.loss
        dry = dry_run(subject.traced, subject.graph, updates, loss.function, loss.make_target)
        real, _ = real_session_step(
            subject.model, subject.traced, subject.graph, updates, loss.function, loss.make_target
        )
        assert closed.saved_bytes == dry.saved_bytes == real.saved_bytes == real.alive_saved_bytes
        assert closed.training_bytes == dry.training_bytes == real.training_bytes
        assert closed.update_bytes == dry.update_bytes == real.update_bytes
        assert dry.live_peak_bytes == real.live_peak_bytes
        assert subject.peak_bound_bytes(updates) >= real.live_peak_bytes


@all_cases
def test_the_selected_slices_get_autograds_gradient_and_nothing_else_changes(case: str) -> None:
    subject, x = make(case)
    model, layers, updates = subject.model, subject.graph.layers, half(subject.graph.layers)
    reference = copy.deepcopy(model)
    output = reference(x)
    target = torch.arange(4) % output.shape[1]
    functional.cross_entropy(output, target).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters(remove_duplicate=False)}
    before = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    drawn = {layer.name: list(range(layer.channels))[1::2] or [0] for layer in layers}
    drawn = {name: [*channels, 0][: updates.quotas[name]] for name, channels in drawn.items()}
    with Session(model, subject.traced, subject.graph, updates, lambda _interval: drawn) as session:
        session.resample(0)
        session.set_lr(1.0)
        found = session(x)
        assert torch.equal(found, output)
        functional.cross_entropy(found, target).backward()
    after = dict(model.named_parameters(remove_duplicate=False))
    for layer in layers:
        change = before[layer.weight] - after[layer.weight]
        mask = slice_mask(layer, change, drawn[layer.name])
        expected = gradients[layer.weight] * mask
        assert float((change - expected).detach().norm() / expected.norm()) <= 1e-5
        assert torch.equal(change * (1 - mask), torch.zeros_like(change))


@pytest.mark.parametrize("case", ["transposed", "embedding", "embedding, tied"])
def test_a_plan_for_them_is_verified(case: str) -> None:
    from medyate_planner import InfeasibleBudgetError, plan

    subject, _ = make(case)
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(subject, budget=1)
    smallest = caught.value.minimum_bytes
    whole = footprint(subject.memory, Updates(quotas={}, full=half(subject.graph.layers).layers)).training_bytes
    for budget in (smallest, (smallest + whole) // 2, whole + 10_000):
        decided: Plan = plan(subject, budget=budget)
        assert decided.predicted.training_bytes <= budget
        assert verify(subject, decided).ok
