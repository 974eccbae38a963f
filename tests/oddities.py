"""Tiny networks, each named for what is odd about it: operators, sharing of weights, inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))).mean(1))


class Reused(nn.Module):
    """One convolution called three times, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = functional.silu(self.again(x)) + x
        return self.head(x.mean((2, 3)))


class SameMemory(nn.Module):
    """Two parameters that are different objects in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = nn.Parameter(self.a.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class TransposedBuffer(nn.Module):
    """A buffer that is a transposed view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.register_buffer("turned", self.a.weight.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(self.a(x)), self.turned)


class FlatParameters(nn.Module):
    """Two weights that are parts of one block of memory."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.zeros(100)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.a.weight = nn.Parameter(block[:36].view(6, 6))
        self.b.weight = nn.Parameter(block[36:72].view(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class JoinedWeights(nn.Module):
    """Two weights used as one: their gradients are parts of one block of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, torch.cat([self.a.weight, self.b.weight]))


class Remembers(nn.Module):
    """Keeps its latest features as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.relu(self.a(x))
        return self.head(torch.sigmoid(torch.sigmoid(self.b(self.features)) * 2))


class Checkpointed(nn.Module):
    """A block that is computed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 32), nn.Linear(32, 5)
        self.block = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=False))


class Recurrent(nn.Module):
    """An LSTM or a GRU over a sequence."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cells, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class TwoInputs(nn.Module):
    """Two positional inputs whose product is the feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 4), nn.Linear(5, 4), nn.Linear(56, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(functional.leaky_relu(self.left(a) @ self.right(b).transpose(1, 2), 0.1).flatten(1))


class Named(nn.Module):
    """Keyword inputs, a dictionary as output, attention written with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        scores = torch.einsum("btc,bsc->bts", self.query(x), self.key(x)) / 8**0.5
        attention = scores.masked_fill(mask.unsqueeze(1) == 0, -1e4).softmax(-1)
        return {"logits": self.head(torch.einsum("bts,bsc->btc", attention, x).mean(1))}


@dataclass
class Answer:
    """An output that torch's trees do not know."""

    logits: Tensor
    features: Tensor


class Answers(nn.Module):
    """Its output is a plain dataclass, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Answer:
        features = torch.relu(self.body(x))
        return Answer(logits=self.head(features), features=features)


class KeepsTwice(nn.Module):
    """A storage is kept, let go and kept again before anything new comes into being."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        gated, h = self.b(x), self.a(x)
        unused = h * h
        del unused
        return gated.mul_(h.detach())


def _images(batch: int, side: int = 12) -> Tensor:
    return torch.zeros(batch, 3, side, side)


Builder = Callable[[], nn.Module]
Example = Callable[[int], Inputs]
ODDITIES: Mapping[str, tuple[Builder, Example]] = {
    "transposed_conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(3750, 5)),
        _images,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.GELU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(30, 5)),
        lambda batch: torch.zeros(batch, 4, 12),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 5)),
        lambda batch: torch.zeros(batch, 2, 6, 6, 6),
    ),
    "group_norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(800, 5)),
        _images,
    ),
    "rms_norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 5)),
        lambda batch: torch.zeros(batch, 6),
    ),
    "instance_norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Flatten(), nn.Linear(800, 5)),
        _images,
    ),
    "upsample": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5),
        ),
        _images,
    ),
    "reflect_padding": (
        lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(784, 5)),
        _images,
    ),
    "pixel_shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.PReLU(), nn.Flatten(), nn.Linear(800, 5)),
        _images,
    ),
    "encoder_layers": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            nn.Flatten(), nn.Linear(48, 5),
        ),
        lambda batch: torch.zeros(batch, 6, 8),
    ),
    "tied": (Tied, lambda batch: torch.zeros(batch, 7, dtype=torch.int64)),
    "reused": (Reused, _images),
    "same_memory": (SameMemory, lambda batch: torch.zeros(batch, 6)),
    "transposed_buffer": (TransposedBuffer, lambda batch: torch.zeros(batch, 6)),
    "flat_parameters": (FlatParameters, lambda batch: torch.zeros(batch, 6)),
    "joined_weights": (JoinedWeights, lambda batch: torch.zeros(batch, 6)),
    "remembers": (Remembers, lambda batch: torch.zeros(batch, 6)),
    "checkpointed": (Checkpointed, lambda batch: torch.zeros(batch, 6)),
    "keeps_twice": (KeepsTwice, lambda batch: torch.zeros(batch, 6)),
    "gru": (lambda: Recurrent(nn.GRU), lambda batch: torch.zeros(batch, 4, 6)),
    "two_inputs": (TwoInputs, lambda batch: (torch.zeros(batch, 8, 6), torch.zeros(batch, 7, 5))),
    "named_inputs": (
        Named,
        lambda batch: {
            "tokens": torch.zeros(batch, 7, dtype=torch.int64),
            "mask": torch.zeros(batch, 7, dtype=torch.int64),
        },
    ),
    "dataclass_output": (Answers, lambda batch: torch.zeros(batch, 6)),
}  # fmt: skip
