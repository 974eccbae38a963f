"""Activations that run inside a convolution: the values, bytes and weights of a session without that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import Plan, plan
from medyate_planner.api import open_session
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training import rewrite
from medyate_planner.training.measure import measure_step
from medyate_planner.training.merge import merge_activations

X = torch.randn(4, 4, 11, 11, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(4) % 3


class Net(nn.Module):
    """stem -> activation -> the convolution under test -> head."""

    def __init__(self, activation: Callable[[Tensor], Tensor], conv: nn.Module, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(4, 8, 3)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv, self.activation, self.head = conv, activation, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = self.activation(x * 4)[:] if not isinstance(self.norm, nn.Identity) else self.activation(x)
        return self.head(self.conv(x).mean((2, 3)))


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(8, 6, 1), "3x3": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 6, 3, stride=2), "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=2), "dilated": lambda: nn.Conv2d(8, 6, 3, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 2, stride=2),
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "relu_": functional.relu_, "relu6": functional.relu6,
    "hardtanh_": lambda x: functional.hardtanh_(x, -0.5, 0.5),
}  # fmt: skip


def steps(subject: Subject, decided: Plan, weights: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], tuple[int, ...]]:
    """Outputs, weights after three steps, bytes; and how many nodes were in the graph."""
    subject.model.load_state_dict(weights)
    with open_session(subject, decided) as session:
        session.set_lr(0.05, clip=1.0)
        inputs = X.clone().contiguous(memory_format=torch.channels_last)
        seen = measure_step(session, (inputs,), {}, TARGET, subject.loss.function)
        assert torch.equal(inputs, X)
        outputs = session(inputs).detach()
        session.eval().train()
        for _ in range(2):
            functional.cross_entropy(session(inputs), TARGET).backward()
        nodes = len(session.lean.graph.nodes)
    after = [parameter.detach().clone() for parameter in subject.model.parameters()]
    return outputs, after, (seen.saved_bytes, seen.training_bytes, seen.live_peak_bytes or 0, nodes)


@pytest.fixture
def unmerged(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    return lambda merged: monkeypatch.setattr(
        rewrite, "merge_activations", merge_activations if merged else lambda _lean: None
    )


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_merged_is_as_before(
    conv: str, activation: str, autocast: str | None, unmerged: Callable[[bool], None]
) -> None:
    model = Net(ACTIVATIONS[activation], CONVOLUTIONS[conv]()).eval()
    model(X)
    subject = subject_of(model, X.contiguous(memory_format=torch.channels_last), autocast=autocast)
    decided = plan(subject, budget="100kB", request={"force_layers": ("stem", "conv")})
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerged(False)
    outputs, after, (saved, training, live, nodes) = steps(subject, decided, weights)
    unmerged(True)
    merged_outputs, merged_after, (merged_saved, merged_training, merged_live, merged_nodes) = steps(
        subject, decided, weights
    )
    assert merged_nodes < nodes
    assert torch.equal(merged_outputs, outputs)
    assert all(map(torch.equal, merged_after, after))
    assert (merged_saved, merged_training) == (saved, training)
    assert merged_live <= live


class Elsewhere(nn.Module):
    """Activations that others see too, in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.a, self.b, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        if self.way == "slice":  # the base is read after the activation of its view
            r = functional.relu_(z[:, :])
            return self.head(self.b(r).mean((2, 3)) + z.sum((2, 3)))
        if self.way == "view":
            r = functional.relu_(z.view(z.shape))
            return self.head(self.b(r).mean((2, 3)) + z.sum((2, 3)))
        if self.way == "written between":
            r = functional.relu_(z.detach()[:])
            z.add_(1)
            return self.head(self.b(r).mean((2, 3)))
        if self.way == "sigmoid":
            return self.head(self.b(functional.relu(torch.sigmoid(z))).mean((2, 3)))
        if self.way == "read twice":
            r = functional.relu(z)
            return self.head(self.b(r).mean((2, 3)) + r.mean((2, 3)))
        if self.way == "input":
            return self.head(self.b(z + self.b(functional.relu(z))).mean((2, 3)))
        r = functional.relu(z)
        return self.head((self.b(r) + z).mean((2, 3)))  # the activation's input is read again


@pytest.mark.parametrize(
    "way", ["slice", "view", "written between", "sigmoid", "read twice", "input", "input read again"]
)
def test_what_others_read_is_left_alone(way: str) -> None:
    model = Elsewhere(way).eval()
    with torch.no_grad():
        expected = model(X)
    subject = subject_of(model, X)
    decided = plan(subject, budget="200kB")
    model.requires_grad_()
    functional.cross_entropy(model(X), TARGET).backward()
    true = {name: parameter.grad for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    with open_session(subject, decided) as session:
        session.rule.tap = lambda slot, weight, _bias: found.update({slot.layer.weight: weight.clone()})
        outputs = session(X)
        assert torch.equal(outputs, expected)
        functional.cross_entropy(outputs, TARGET).backward()
    assert "head.weight" in found
    for name, gradient in found.items():
        whole = true[name]
        assert whole is not None
        if gradient.shape == whole.shape:
            torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-6)
