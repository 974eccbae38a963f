"""The networks that the executor's promises are held against; small pictures and few blocks where they allow it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from architectures import TRANSFORMERS
from third_party import import_timm, import_torchvision
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.models import load_model

CLASSES, TOKENS, WORDS = 10, 12, 211
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Twice(nn.Module):
    """One convolution called twice, another of groups three times, behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.twice, self.grouped = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.first(self.stem(x)))
        for _ in range(2):
            x = functional.silu(self.grouped(self.second(self.twice(x)))) + x
        return self.head(functional.max_pool2d(self.grouped(x), 2).mean((2, 3)))


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(WORDS, 16), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.mix(self.embed(tokens))))).mean(1)


class TwoInputs(nn.Module):
    """A picture and a vector, which gate each other."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.vector = nn.Conv2d(3, 12, 3, stride=2), nn.Linear(6, 12)
        self.depthwise, self.up = nn.Conv2d(12, 24, 3, groups=12), nn.ConvTranspose2d(24, 8, 2, stride=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        gate = torch.sigmoid(self.vector(vector)).unflatten(1, (-1, 1, 1))
        x = functional.hardswish(self.picture(picture)) * gate
        return self.head(functional.gelu(self.up(functional.relu(self.depthwise(x)))).mean((2, 3)))


def _pictures(batch: int) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))


def _few_pixels(batch: int) -> Tensor:
    return _pictures(batch)[:, :, :17, :18].contiguous()


def _tokens(batch: int) -> Tensor:
    return torch.randint(0, WORDS, (batch, TOKENS), generator=torch.Generator().manual_seed(batch))


def _named_tokens(batch: int) -> dict[str, Tensor]:
    return {"input_ids": _tokens(batch)}


def _both(batch: int) -> tuple[Tensor, Tensor]:
    return _few_pixels(batch), torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))


def _loaded(spec: str) -> nn.Module:
    """Pre-trained, but for its head: through one of zeros no gradient flows."""
    model = load_model(spec, num_classes=CLASSES, input_shape=(3, 64, 64), require_weights=":" not in spec).model
    with torch.no_grad():
        list(model.parameters())[-2].normal_(std=0.1)
    return model


def _timm(name: str, **options: Any) -> nn.Module:
    model: nn.Module = import_timm().create_model(name, num_classes=CLASSES, **options)
    return model


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=CLASSES)
    return model


def _transformers(name: str, **options: Any) -> nn.Module:
    import_torchvision()
    import transformers

    config, kind, sizes = TRANSFORMERS[name]
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **options}))
    return model


@dataclass(frozen=True)
class Network:
    """How to build a network, a batch for it, and the loss it is trained with."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Inputs]
    loss: str = "cross-entropy"
    zoo: bool = False


NETWORKS: Mapping[str, Network] = {
    **{
        name: Network(lambda name=name: _loaded(name), _pictures, zoo=True)  # type: ignore[misc]
        for name in ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")
    },
    "efficientnet-lite0": Network(lambda: _loaded("medyate_planner.demo:efficientnet_lite0"), _pictures),
    "resnet18": Network(lambda: _torchvision("resnet18"), _pictures),
    "densenet121": Network(lambda: _torchvision("densenet121"), _pictures),
    "convnext_atto": Network(lambda: _timm("convnext_atto", depths=(1, 1, 2, 1)), _pictures),
    "vit_tiny": Network(lambda: _timm("vit_tiny_patch16_224", img_size=64, depth=3), _pictures),
    "swin_tiny": Network(
        lambda: _timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(2, 1)), _pictures
    ),
    "mobilevit": Network(lambda: _timm("mobilevit_xxs"), _pictures),
    "bert": Network(lambda: _transformers("bert", num_hidden_layers=2, num_labels=CLASSES), _named_tokens),
    "gpt2": Network(lambda: _transformers("gpt2", n_layer=2), _named_tokens, "next-token"),
    "called twice": Network(Twice, _few_pixels),
    "tied": Network(Tied, _tokens),
    "two inputs": Network(TwoInputs, _both),
}


def make(name: str, dtype: torch.dtype) -> nn.Module:
    """The network with weights of this type, in evaluation mode; norms have statistics and scales of their own."""
    torch.manual_seed(0)
    model = NETWORKS[name].build().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and name != "efficientnet-lite0":
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.to(dtype)


def batch_of(name: str, size: int, dtype: torch.dtype) -> Inputs:
    """A batch of this size and type."""
    found = NETWORKS[name].batch(size)

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    if isinstance(found, dict):
        return {key: cast(value) for key, value in found.items()}
    return tuple(map(cast, found)) if isinstance(found, tuple) else cast(found)


def call(callee: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model or a session on a batch."""
    if isinstance(inputs, dict):
        return callee(**inputs)
    return callee(*inputs) if isinstance(inputs, tuple) else callee(inputs)


def target_of(name: str, size: int) -> Tensor:
    """Classes, or tokens for a language model."""
    return _tokens(size) if NETWORKS[name].loss == "next-token" else torch.arange(size) % CLASSES
