"""Random networks of torch modules, built from a seed: layers of every kind, reuse, shared storages, norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES, WORDS = 4, 13
Step = tuple[Callable[..., Tensor], tuple[int, ...]]  # what is called, on which values
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.relu, functional.relu6, functional.silu, functional.gelu, functional.hardswish, functional.hardsigmoid,
    functional.leaky_relu, functional.elu, functional.softplus, torch.sigmoid, torch.tanh,
)  # fmt: skip
_IN_PLACE = (nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.SiLU(inplace=True), nn.Hardswish(inplace=True))


@dataclass(frozen=True)
class Shape:
    """Channels and size of a picture `(N, channels, *size)`, or features and length of a sequence."""

    channels: int
    size: tuple[int, ...]


class RandomNetwork(nn.Module):
    """A list of steps on values; the last ones are joined in front of the head. Make one with `random_network`."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_of = nn.ModuleList()
        self.steps: list[Step] = []
        self.join: tuple[int, ...] = ()
        self.finish: Callable[[list[Tensor]], Any] = tuple

    def forward(self, x: Tensor) -> Any:
        return self.run([x])

    def run(self, values: list[Tensor]) -> Any:
        for call, places in self.steps:
            values.append(call(*(values[place] for place in places)))
        return self.finish([values[place] for place in self.join])


class TwoInputs(RandomNetwork):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run([x, y])


class OverPositions(nn.Conv1d):
    """A convolution along a sequence `(N, T, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Sketch:
    """Draws a network step by step."""

    def __init__(self, dice: Random, network: RandomNetwork) -> None:
        self.dice, self.network = dice, network
        self.shapes: list[Shape] = []
        self.fresh: set[int] = set()  # values that nothing has read, and that own their memory
        self.layers: list[tuple[nn.Module, Shape, int]] = []  # for calling them again: what they take

    def add(self, call: Callable[..., Tensor], places: tuple[int, ...], shape: Shape, *, fresh: bool = True) -> int:
        """Append a step; returns the place of its value."""
        if isinstance(call, nn.Module):
            self.network.modules_of.append(call)
        self.network.steps.append((call, places))
        self.shapes.append(shape)
        self.fresh -= set(places)
        place = len(self.shapes) - 1
        if fresh:
            self.fresh.add(place)
        return place

    def anywhere(self) -> int:
        """A value: the newest as often as any other."""
        newest = len(self.shapes) - 1
        return newest if self.dice.random() < 0.6 else self.dice.randrange(len(self.shapes))

    def like(self, place: int) -> list[int]:
        """Values of the same shape."""
        return [other for other, shape in enumerate(self.shapes) if shape == self.shapes[place]]


def random_network(seed: int) -> tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]:
    """A network and what makes a batch for it; one in four works on sequences, the others on pictures."""
    dice = Random(seed)
    torch.manual_seed(seed)
    kind = dice.choice(["sequence", "picture", "picture", "two pictures"])
    model = TwoInputs() if kind == "two pictures" else RandomNetwork()
    sketch = Sketch(dice, model)
    make = _sequences(sketch) if kind == "sequence" else _pictures(sketch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1:  # norms that do something
                positive = name.endswith(("var", "weight"))
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if positive else -0.5))
    return model.eval(), make


def _pictures(sketch: Sketch) -> Callable[[int], tuple[Tensor, ...]]:
    dice = sketch.dice
    size = dice.choice([(6, 6), (7, 9), (12, 8)])
    channels = [dice.choice([1, 3, 4]) for _ in range(2 if isinstance(sketch.network, TwoInputs) else 1)]
    for count in channels:
        sketch.shapes.append(Shape(count, size))
    for place in range(len(channels)):
        _conv(sketch, place, groups=1)
    for _ in range(dice.randint(3, 12)):
        dice.choice(_PICTURE_STEPS)(sketch, sketch.anywhere())
    _join(sketch, (2, 3))
    return lambda batch: tuple(torch.randn(batch, count, *size) for count in channels)


def _conv(sketch: Sketch, x: int, *, groups: int | None = None) -> int:
    dice, shape = sketch.dice, sketch.shapes[x]
    divisors = [g for g in range(1, shape.channels + 1) if shape.channels % g == 0]
    groups = groups or dice.choice([1, 1, dice.choice(divisors[1:-1] or divisors), shape.channels])
    out = dice.choice([3, 4, 6, 8]) if groups == 1 else groups * dice.randint(1, max(1, 8 // groups))
    kernel = dice.choice([1, 3, 3, (1, 3)])
    padding = tuple(k // 2 for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    stride = dice.choice([1, 1, 1, 2]) if min(shape.size) > 3 else 1
    bias = dice.random() < 0.6
    layer = nn.Conv2d(shape.channels, out, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
    if stride == 1:
        sketch.layers.append((layer, shape, out))
    return sketch.add(layer, (x,), Shape(out, tuple(-(-n // stride) for n in shape.size)))


def _again(sketch: Sketch, x: int) -> int:
    """Call a layer that is there already, if one takes this value."""
    fitting = [(layer, out) for layer, takes, out in sketch.layers if takes == sketch.shapes[x]]
    if not fitting:
        return _activation(sketch, x)
    layer, out = sketch.dice.choice(fitting)
    return sketch.add(layer, (x,), Shape(out, sketch.shapes[x].size))


def _transposed(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    if max(shape.size) > 12:
        return _conv(sketch, x)
    groups = sketch.dice.choice([1, shape.channels])
    out = groups * sketch.dice.randint(1, max(1, 6 // groups))
    layer = nn.ConvTranspose2d(shape.channels, out, 2, stride=2, groups=groups)
    return sketch.add(layer, (x,), Shape(out, tuple(2 * n for n in shape.size)))


def _norm(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    kinds = [nn.BatchNorm2d(shape.channels), nn.BatchNorm2d(shape.channels), nn.GroupNorm(1, shape.channels)]
    layer = sketch.dice.choice(kinds)
    sketch.layers.append((layer, shape, shape.channels))
    return sketch.add(layer, (x,), shape)


def _activation(sketch: Sketch, x: int) -> int:
    dice = sketch.dice
    if x in sketch.fresh and dice.random() < 0.4:
        return sketch.add(dice.choice(_IN_PLACE), (x,), sketch.shapes[x], fresh=False)
    return sketch.add(dice.choice(_ACTIVATIONS), (x,), sketch.shapes[x], fresh=False)


def _dropout(sketch: Sketch, x: int) -> int:
    return sketch.add(nn.Dropout(0.3), (x,), sketch.shapes[x], fresh=False)


def _sum(sketch: Sketch, x: int) -> int:
    return sketch.add(torch.add, (x, sketch.dice.choice(sketch.like(x))), sketch.shapes[x])


def _product(sketch: Sketch, x: int) -> int:
    return sketch.add(torch.mul, (x, sketch.dice.choice(sketch.like(x))), sketch.shapes[x], fresh=False)


def _gate(sketch: Sketch, x: int) -> int:
    """Squeeze and excite."""
    shape = sketch.shapes[x]
    pooled = sketch.add(_mean, (x,), Shape(shape.channels, (1, 1)), fresh=False)
    inner = sketch.add(nn.Conv2d(shape.channels, shape.channels, 1), (pooled,), Shape(shape.channels, (1, 1)))
    scale = sketch.add(nn.Hardsigmoid(inplace=True), (inner,), Shape(shape.channels, (1, 1)), fresh=False)
    return sketch.add(torch.mul, (x, scale), shape, fresh=False)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _part(sketch: Sketch, x: int) -> int:
    """A view of the first channels, which shares the memory of them all."""
    shape = sketch.shapes[x]
    count = sketch.dice.randint(1, shape.channels)
    return sketch.add(lambda v: v[:, :count], (x,), Shape(count, shape.size), fresh=False)


def _cat(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    other = sketch.dice.choice([i for i, found in enumerate(sketch.shapes) if found.size == shape.size])
    if shape.channels + sketch.shapes[other].channels > 12:
        return _sum(sketch, x)
    joined = Shape(shape.channels + sketch.shapes[other].channels, shape.size)
    return sketch.add(lambda *parts: torch.cat(parts, 1), (x, other), joined)


def _pool(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    if min(shape.size) < 4:
        return _activation(sketch, x)
    layer = sketch.dice.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d([n // 2 for n in shape.size])])
    return sketch.add(layer, (x,), Shape(shape.channels, tuple(n // 2 for n in shape.size)), fresh=False)


_PICTURE_STEPS = (
    _conv, _conv, _conv, _conv, _conv, _again, _again, _transposed, _norm, _norm, _norm, _activation, _activation,
    _activation, _dropout, _sum, _sum, _product, _gate, _part, _cat, _pool,
)  # fmt: skip


def _sequences(sketch: Sketch) -> Callable[[int], tuple[Tensor, ...]]:
    dice = sketch.dice
    length, width = dice.choice([3, 5, 8]), dice.choice([4, 8])
    if dice.random() < 0.5:
        sketch.shapes.append(Shape(0, (length,)))
        embedding = nn.Embedding(WORDS, width, padding_idx=dice.choice([None, 0]))
        sketch.add(embedding, (0,), Shape(width, (length,)))
        tied = embedding if dice.random() < 0.3 else None
        first = 1
    else:
        sketch.shapes.append(Shape(width, (length,)))
        tied, first = None, 0
    _linear(sketch, first)
    for _ in range(dice.randint(2, 9)):
        found = sketch.anywhere()
        dice.choice(_SEQUENCE_STEPS)(sketch, max(found, first))
    if tied is not None:
        _tie(sketch, tied, width)
        return lambda batch: (torch.randint(0, WORDS, (batch, length)),)
    _join(sketch, (1,))
    if first:
        return lambda batch: (torch.randint(0, WORDS, (batch, length)),)
    return lambda batch: (torch.randn(batch, length, width),)


def _linear(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    out = sketch.dice.choice([4, 6, 8])
    layer = nn.Linear(shape.channels, out, bias=sketch.dice.random() < 0.7)
    sketch.layers.append((layer, shape, out))
    return sketch.add(layer, (x,), Shape(out, shape.size))


def _sequence_norm(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    layer = sketch.dice.choice([nn.LayerNorm, nn.LayerNorm, nn.RMSNorm])(shape.channels)
    sketch.layers.append((layer, shape, shape.channels))
    return sketch.add(layer, (x,), shape)


def _attention(sketch: Sketch, x: int) -> int:
    shape = sketch.shapes[x]
    all_three = sketch.add(nn.Linear(shape.channels, 3 * shape.channels), (x,), Shape(3 * shape.channels, shape.size))
    return sketch.add(_attend, (all_three,), shape, fresh=False)


def _attend(x: Tensor) -> Tensor:
    query, key, value = (part.unsqueeze(1) for part in x.chunk(3, dim=-1))
    return functional.scaled_dot_product_attention(query, key, value).squeeze(1)


def _conv1d(sketch: Sketch, x: int) -> int:
    """Over the positions, with groups or without."""
    shape = sketch.shapes[x]
    groups = sketch.dice.choice([1, 2, shape.channels])
    out = groups * sketch.dice.randint(1, max(1, 8 // groups))
    layer = OverPositions(shape.channels, out, 3, padding=1, groups=groups)
    return sketch.add(layer, (x,), Shape(out, shape.size), fresh=False)


_SEQUENCE_STEPS = (
    _linear, _linear, _linear, _again, _again, _sequence_norm, _sequence_norm, _activation, _activation, _dropout,
    _sum, _product, _attention, _conv1d,
)  # fmt: skip


def _loose(sketch: Sketch) -> list[int]:
    """Values that nothing reads."""
    read = {place for _, places in sketch.network.steps for place in places}
    return [place for place in range(len(sketch.shapes)) if place not in read]


def _join(sketch: Sketch, axes: tuple[int, ...]) -> None:
    """Averages of all loose ends, joined, and a head; now and then no head."""
    ends = _loose(sketch)
    network = sketch.network
    network.join = tuple(ends)
    features = sum(sketch.shapes[place].channels for place in ends)
    head = nn.Linear(features, CLASSES) if sketch.dice.random() < 0.85 else nn.Identity()
    network.modules_of.append(head)
    form = sketch.dice.choice(["tensor", "tensor", "dict", "tuple"])

    def finish(values: list[Tensor]) -> Any:
        out = head(torch.cat([value.mean(axes) for value in values], 1))
        return {"tensor": out, "dict": {"logits": out}, "tuple": (out, values[0])}[form]

    network.finish = finish


def _tie(sketch: Sketch, embedding: nn.Embedding, width: int) -> None:
    """A head that shares the embedding's weight."""
    last = len(sketch.shapes) - 1
    network = sketch.network
    down = nn.Linear(sketch.shapes[last].channels, width)
    head = nn.Linear(width, WORDS, bias=False)
    head.weight = embedding.weight
    network.modules_of.extend([down, head])
    network.join = (last,)
    network.finish = lambda values: head(down(values[0])).mean(1)
