"""Operators one by one: bytes as predicted, forward bit-identical, and one update equal to SGD on the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import plan, prepare, verify


class Sequences(nn.Module):
    """conv1d strided, grouped and dilated; a batch norm without parameters; leaky relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 3, padding=1, stride=2)
        self.grouped = nn.Conv1d(6, 6, 3, groups=3, dilation=2)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.leaky_relu(self.norm(self.grouped(self.first(x)))).mean(-1))


class Volumes(nn.Module):
    """conv3d, normal and depthwise with stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv3d(6, 12, 3, groups=6, stride=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(self.first(x))).mean((2, 3, 4)))


class Images(nn.Module):
    """String padding, pools with ceil_mode, group norm, an in-place hard sigmoid, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.even = nn.Conv2d(8, 8, 4, padding="same")
        self.max_pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.norm = nn.GroupNorm(2, 8)
        self.mean_pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.gate = nn.Hardsigmoid(inplace=True)
        self.pointwise = nn.Conv2d(8, 8, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.head = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mean_pool(self.norm(self.max_pool(self.even(self.dilated(x)))))
        x = x * self.gate(self.pointwise(functional.interpolate(x, scale_factor=2.0)))
        return self.head(self.pool(functional.hardswish(x)).flatten(1))


class Words(nn.Module):
    """Keyword inputs, one of them integer; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.wide = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = functional.gelu(self.norm(self.wide(self.embed(tokens)))) * mask.unsqueeze(-1)
        return {"logits": self.head(hidden.mean(1))}


CASES = {
    "conv1d": (Sequences, torch.randn(4, 2, 20)),
    "conv3d": (Volumes, torch.randn(4, 2, 8, 8, 8)),
    "pools": (Images, torch.randn(4, 3, 21, 23)),
    "keywords": (Words, {"tokens": torch.arange(28).view(4, 7) % 10, "mask": torch.ones(4, 7)}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_planned_step_is_one_sgd_step_of_the_whole_model(name: str, channels_last: bool) -> None:
    make, x = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    if channels_last and isinstance(x, Tensor) and x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    decided = plan(model, x, budget="10MB", strategy="full")
    result = verify(model, decided)
    assert result.ok, [category for category in result.categories if not category.agrees]
    target = torch.arange(4) % 3
    with prepare(model, decided) as session:
        session.set_lr(0.1)
        found, expected = _logits(session, x), _logits(reference, x)
        assert torch.equal(found, expected)
        functional.cross_entropy(found, target).backward()
        functional.cross_entropy(expected, target).backward()
    trained = {layer.name for layer in decided.layers}
    biases = {f"{name}.bias" for name in decided.biases}  # those of norms too
    for (path, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if path.rsplit(".", 1)[0] in trained or path in biases:
            assert theirs.grad is not None
            torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(mine, theirs)


def _logits(callee: object, x: object) -> Tensor:
    output = callee(**x) if isinstance(x, dict) else callee(x)  # type: ignore[operator]
    return output["logits"] if isinstance(output, dict) else output
