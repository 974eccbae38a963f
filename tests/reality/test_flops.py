"""Predicted operations against those that torch's own counter sees: inference, full fine-tuning, planned steps.

Torch's counter knows neither the attention kernels of the CPU nor that the weight gradient of a grouped convolution
has 1/G of the products of an ungrouped one (torch 2.13): `corrected` teaches it both. Where a network has neither,
the counter is used as it comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from networks import subject
from oddities import ODDITIES
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from medyate_planner.memory.flops import FlopModel
from medyate_planner.memory.model import Updates
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.session import Session

_aten = torch.ops.aten
Shape = tuple[int, ...]


def _conv_backward(
    gradient: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, _output_padding: Any, groups: int, wanted: list[bool], *, out_shape: Any,
) -> int:  # fmt: skip
    def swapped(shape: Shape) -> list[int]:
        return [shape[1], shape[0], *shape[2:]]

    flops = 0
    if wanted[0]:
        flops += conv_flop_count(list(gradient), list(weight), out_shape[0], not transposed)
    if wanted[1]:
        a, b = (gradient, x) if transposed else (x, gradient)
        whole = conv_flop_count(swapped(a), swapped(b), swapped(out_shape[1]))
        assert whole % groups == 0
        flops += whole // groups
    return flops


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def corrected() -> FlopCounterMode:
    return FlopCounterMode(
        display=False,
        custom_mapping={
            _aten.convolution_backward: _conv_backward,
            _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def plain() -> FlopCounterMode:
    return FlopCounterMode(display=False)


Counter = Callable[[], FlopCounterMode]


@lru_cache(maxsize=2)
def made(network: str) -> Subject:
    torch.manual_seed(0)
    if network == "mcunet-5fps":
        return subject(network, 2)
    if network.startswith("bert"):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=32, attn_implementation=network.removeprefix("bert-"),
        )  # fmt: skip
        tokens = {"input_ids": torch.ones(3, 8, dtype=torch.int64), "attention_mask": torch.ones(3, 8).long()}
        return subject_of(transformers.BertForSequenceClassification(config), tokens)
    if network == "vit_tiny":
        timm = pytest.importorskip("timm")
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5)
        return subject_of(vit, torch.zeros(2, 3, 64, 64))
    torchvision = pytest.importorskip("torchvision")
    name, _, layout = network.partition(", ")
    model, x = torchvision.models.get_model(name, num_classes=5), torch.zeros(2, 3, 64, 64)
    if layout:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return subject_of(model, x)


NETWORKS: dict[str, Counter] = {
    "resnet18": plain,
    "resnet18, channels_last": plain,
    "mobilenet_v2": corrected,
    "mobilenet_v2, channels_last": corrected,
    "shufflenet_v2_x0_5": corrected,
    "resnext50_32x4d": corrected,
    "vit_tiny": corrected,
    "bert-sdpa": corrected,
    "bert-eager": plain,
    "mcunet-5fps": corrected,
}
all_networks = pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.assets if n == "mcunet-5fps" else ()) for n in NETWORKS]
)


def loss_of(outputs: Any) -> Tensor:
    """A loss that reads every output; zero where nothing trained leads to one."""
    found = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    return sum((functional.silu(t).sum() for t in found), torch.zeros((), requires_grad=True))


def eager(made_ready: Subject, counter: Counter) -> tuple[int, int]:
    """Operations of inference and of a whole step of the user's own model in evaluation mode."""
    model = made_ready.model.eval()
    args, kwargs = made_ready.traced.examples(made_ready.graph.batch_size)
    with counter() as inference:  # without gradients nn.TransformerEncoderLayer runs as one kernel, which counts as 0
        model(*args, **kwargs)
    with counter() as step:
        loss_of(model(*args, **kwargs)).backward()
    model.zero_grad(set_to_none=True)
    return inference.get_total_flops(), step.get_total_flops()


def planned(made_ready: Subject, updates: Updates, counter: Counter, seed: int) -> int:
    """Operations of a step of the lean executor; its weights are left as they are."""
    dice = random.Random(seed)
    layers = made_ready.graph.layer_by_name
    drawn = {n: sorted(dice.sample(range(layers[n].channels), quota)) for n, quota in updates.quotas.items() if quota}
    args, kwargs = made_ready.traced.examples(made_ready.graph.batch_size)
    with (
        Session(made_ready.model, made_ready.traced, made_ready.graph, updates, lambda _interval: drawn) as session,
        counter() as counted,
    ):
        session.resample(0)
        session.set_lr(0.0)
        loss_of(session(*args, **kwargs)).backward()
    return counted.get_total_flops()


def random_updates(made_ready: Subject, seed: int) -> Updates:
    """From a few layers to most of them; quotas, biases alone, layers in full."""
    dice = random.Random(seed)
    layers = list(made_ready.graph.layer_by_name.values())
    chosen = [layer for layer in layers if dice.random() < dice.choice([0.1, 0.5, 0.9])] or layers[-1:]
    full = {layer.name for layer in chosen if dice.random() < 0.2}
    biases = {layer.name for layer in chosen if layer.bias and dice.random() < 0.5}
    quotas = {x.name: dice.randint(0 if x.name in biases else 1, x.channels) for x in chosen if x.name not in full}
    return Updates(quotas=quotas, biases=frozenset(biases), full=frozenset(full))


@all_networks
def test_inference_and_full_fine_tuning_are_what_torch_counts(network: str) -> None:
    ready = made(network)
    flops = FlopModel(ready.memory)
    assert (flops.inference_flops, flops.full_flops) == eager(ready, NETWORKS[network])
    assert 2 * flops.inference_flops < flops.full_flops < 4 * flops.inference_flops


@all_networks
def test_a_planned_step_is_what_torch_counts(network: str) -> None:
    ready = made(network)
    flops = FlopModel(ready.memory)
    for seed in range(6):
        updates = random_updates(ready, seed)
        assert flops.training(updates) == planned(ready, updates, NETWORKS[network], seed)


NOT_FULL = {
    "joined_weights": "weights that are computed are no layers",
    "checkpointed": "ordinary fine-tuning computes the block again",
}
NOT_COUNTED = {"gru": "a recurrent layer", "named_inputs": "einsum"}
NOT_CAPTURED = {"dataclass_output"}


@pytest.mark.parametrize("name", [name for name in ODDITIES if name not in NOT_COUNTED.keys() | NOT_CAPTURED])
def test_odd_networks_are_what_torch_counts(name: str) -> None:
    build, example = ODDITIES[name]
    torch.manual_seed(0)
    _agrees(subject_of(build(), example(3)), full=name not in NOT_FULL)


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_what_counts_zero_is_all_that_is_missing(name: str) -> None:
    build, example = ODDITIES[name]
    ready = subject_of(build(), example(3))
    flops = FlopModel(ready.memory)
    inference, full = eager(ready, corrected)
    products = {"gru": 2 * 3 * 4 * (6 + 8) * 3 * 8, "named_inputs": 2 * (2 * 3 * 7 * 7 * 8)}[name]
    assert flops.inference_flops == inference - products
    assert flops.full_flops < full


class Products(nn.Module):
    """Attention by the general kernel and with a mask, convolutions with computed weights, a product with a vector."""

    def __init__(self, *, masked: bool = False) -> None:
        super().__init__()
        self.masked = masked
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.learned, self.vector = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(4))
        self.scale = nn.Linear(4, 4 * 2 * 9)
        self.spread = nn.ConvTranspose2d(4, 8, 3, groups=2)
        self.LastOne = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)  # (B, 9, 6), (B, 9, 6), (B, 9, 4)
        mask = (k @ k.transpose(1, 2)).tanh() if self.masked else None
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y + torch.baddbmm(y, q, self.learned.expand(x.shape[0], 6, 4)) + (x @ self.learned)
        y = y * (y @ self.vector).unsqueeze(2)
        image = y.transpose(1, 2).reshape(-1, 4, 3, 3)
        kernel = self.scale(y.mean((0, 1))).view(4, 2, 3, 3)
        image = functional.conv2d(image, kernel, padding=1, groups=2)
        return self.LastOne(self.spread(image).mean((2, 3)))


@pytest.mark.parametrize("masked", [False, True])
def test_products_of_any_kind_are_what_torch_counts(masked: bool) -> None:
    torch.manual_seed(0)
    ready = subject_of(Products(masked=masked), torch.zeros(3, 9, 6))
    # Parameters that are no layers get no gradient: nor in the comparison.
    trained = {p for layer in ready.graph.layers for p in (layer.weight, layer.bias)}
    for name, parameter in ready.model.named_parameters():
        parameter.requires_grad_(name in trained)
    _agrees(ready, full=True, tries=30)


class Masked(nn.Module):
    """Attention of several heads, whose mask can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.qkv, self.head = nn.Linear(8, 5), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x).unsqueeze(1))
        return self.head(y.transpose(1, 2).reshape(-1, 5, 8).mean(1))


def test_attention_whose_mask_is_trained_is_never_counted_below() -> None:
    ready = subject_of(Masked(), torch.zeros(3, 5, 8))
    flops = FlopModel(ready.memory)
    for trained, more in (("qkv", 0), ("mask", 1), ("qkv mask", 1)):
        updates = Updates(quotas=dict.fromkeys(trained.split(), 3))
        counted = planned(ready, updates, corrected, 0)
        assert flops.training(updates) - counted >= more
        assert more or flops.training(updates) == counted


def _agrees(ready: Subject, *, full: bool, tries: int = 5) -> None:
    flops = FlopModel(ready.memory)
    inference, whole = eager(ready, corrected)
    assert flops.inference_flops == inference
    assert flops.full_flops == whole or not full
    for seed in range(tries):
        updates = random_updates(ready, seed)
        assert flops.training(updates) == planned(ready, updates, corrected, seed), updates
