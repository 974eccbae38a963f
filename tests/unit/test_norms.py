"""Norms beside the layers: which are listed, what a channel costs (by hand), their importance and their slots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.importance.energy import Importance, from_weights, squared_norm_per_channel
from medyate_planner.importance.gradients import probe
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.trace import trace
from medyate_planner.training.fused import FusedSlot
from medyate_planner.training.slots import UpdateRule


class Image(nn.Module):
    """conv (3 -> 4, 3x3) - BatchNorm - relu - mean - head (4 -> 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Tokens(nn.Module):
    """LayerNorm (6) - linear (6 -> 6) - LayerNorm (6) - mean over 5 tokens - head (6 -> 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.second, self.head = (
            nn.LayerNorm(6),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.mix(self.first(x))).mean(1))


class Listed(nn.Module):
    """Norms of all kinds in a row, for which of them are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.bare = nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False)
        self.wide, self.shared = nn.LayerNorm((5, 6)), nn.LayerNorm(6)
        self.other, self.unbiased = nn.LayerNorm(6), nn.LayerNorm(6, bias=False)
        self.root, self.groups, self.train_mode = nn.RMSNorm(6), nn.GroupNorm(1, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.wide(self.bare(self.plain(x))))
        x = self.groups(self.root(self.unbiased(self.other(self.shared(x)))))
        return self.head(self.train_mode(x).mean(1))


def graph_of(model: nn.Module, *shape: int) -> ModelGraph:
    return trace(model.eval(), torch.randn(2, *shape)).graph(2)


def image() -> ModelGraph:
    return graph_of(Image(), 3, 2, 2)


def tokens() -> ModelGraph:
    return graph_of(Tokens(), 5, 6)


def test_norms_stand_beside_the_layers() -> None:
    graph = image()
    assert [layer.name for layer in graph.layers] == ["conv", "head"]
    assert graph.head == ("head",)
    assert [unit.name for unit in graph.units] == ["conv", "norm", "head"]
    (norm,) = graph.norms
    assert graph.layer_by_name["norm"] is norm
    assert (norm.kind, norm.weight, norm.bias, norm.weight_shape) == ("norm", "norm.weight", "norm.bias", (4,))
    assert (norm.channels, norm.out_channels, norm.elements_per_channel, norm.channel_axis) == (4, 4, 1, 0)
    assert (norm.groups, norm.dtype, norm.trainable, norm.sites) == (1, "float32", True, ("batch_norm",))
    op = graph.op_by_name["batch_norm"]
    assert (op.scale, op.shift, op.weight, op.bias) == ("norm.weight", "norm.bias", None, None)


def test_which_norms_are_listed() -> None:
    graph = graph_of(Listed(), 5, 6)
    found = {norm.name: (norm.bias, len(norm.sites)) for norm in graph.norms}
    assert found == {
        "plain": ("plain.bias", 1),
        "shared": ("shared.bias", 2),
        "other": ("other.bias", 1),
        "unbiased": (None, 1),
        "root": (None, 1),
        "groups": ("groups.bias", 1),
        "train_mode": ("train_mode.bias", 1),
    }
    assert [layer.name for layer in graph.layers] == ["head"]


def test_norms_with_unseen_parts_of_their_gradient_are_not_listed() -> None:
    class Gated(Image):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.norm.weight.sum()

    graph = graph_of(Gated(), 3, 2, 2)
    assert graph.norms == ()
    assert [layer.name for layer in graph.layers] == ["conv", "head"]


def test_a_bias_shared_with_a_convolution_or_another_norm_is_nobodys() -> None:
    model = Image()
    model.conv.bias = model.norm.bias
    graph = graph_of(model, 3, 2, 2)
    assert [(unit.name, unit.bias) for unit in graph.units] == [("conv", None), ("norm", None), ("head", "head.bias")]
    twice = Tokens()
    twice.second.bias = twice.first.bias
    assert [norm.bias for norm in graph_of(twice, 5, 6).norms] == [None, None]
    both = Tokens()
    both.second.bias = both.second.weight
    assert [norm.name for norm in graph_of(both, 5, 6).norms] == ["first"]


def test_what_the_user_froze_says_so() -> None:
    model = Image()
    model.norm.requires_grad_(False)
    (norm,) = graph_of(model, 3, 2, 2).norms
    assert (norm.trainable, norm.bias) == (False, None)


def test_norms_are_in_the_json_and_not_in_the_fingerprint() -> None:
    graph = image()
    assert ModelGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
    bare = replace(graph, norms=(), ops=tuple(replace(op, scale=None, shift=None) for op in graph.ops))
    assert bare.fingerprint == graph.fingerprint
    old = {key: value for key, value in graph.to_dict().items() if key != "norms"}
    assert ModelGraph.from_dict(old).norms == ()


def test_cost_of_a_channel_by_hand() -> None:
    norm = MemoryModel(image()).costs["norm"]
    assert (norm.gradient_bytes, norm.saved_bytes, norm.bias_gradient_bytes) == (4, 2 * 2 * 2 * 4, 4 * 4)
    assert norm.elements == 1 + 2 * 2
    norm = MemoryModel(tokens()).costs["second"]
    assert (norm.gradient_bytes, norm.saved_bytes, norm.bias_gradient_bytes) == (4, 2 * 5 * 4, 6 * 4)
    assert norm.elements == 1 + 5


def test_footprint_of_a_batch_norm_by_hand() -> None:
    memory = MemoryModel(image())
    found = footprint(memory, Updates(quotas={"norm": 3}, biases=frozenset({"norm"})))
    assert (found.selected_bytes, found.passthrough_bytes) == (3 * 32, 2 * 2)  # the relu: 16 bits a sample
    assert (found.gradients_bytes, found.index_bytes) == (3 * 4 + 16, 3 * 4)
    assert found.training_bytes == max(96 + 4 + 12, 96 + 28 + 12)
    assert found.elements == 3 * 5
    bias = footprint(memory, Updates(quotas={}, biases=frozenset({"norm"})))
    assert (bias.saved_bytes, bias.gradients_bytes, bias.training_bytes) == (4, 16, 16)


def test_footprint_of_a_layer_norm_keeps_the_input_only_for_what_is_below() -> None:
    memory = MemoryModel(tokens())
    rows, whole = 2 * 5, 2 * 5 * 6 * 4
    alone = footprint(memory, Updates(quotas={"second": 2}))
    assert (alone.selected_bytes, alone.passthrough_bytes) == (2 * rows * 4, 0)
    both = footprint(memory, Updates(quotas={"first": 1, "second": 2}))
    assert both.selected_bytes == 3 * rows * 4
    assert both.passthrough_bytes == whole + 2 * rows * 4  # input, mean and deviation of the second


def test_energy_of_a_channel_is_the_squared_gradient_of_its_scale() -> None:
    torch.manual_seed(0)
    model = Image().eval()
    graph = graph_of(model, 3, 2, 2)
    x, target = torch.randn(2, 3, 2, 2), torch.tensor([0, 1])
    found = probe(model, graph, [(x, target)], functional.cross_entropy)
    functional.cross_entropy(model(x), target).backward()
    assert model.norm.weight.grad is not None
    assert model.norm.bias.grad is not None
    np.testing.assert_allclose(found.energy["norm"], model.norm.weight.grad.double().numpy() ** 2, rtol=1e-6)
    assert found.bias_energy["norm"] == pytest.approx(float(model.norm.bias.grad.double().square().sum()))
    assert set(found.energy) == {"conv", "norm", "head"}
    weights = from_weights(graph, dict(model.named_parameters()))
    np.testing.assert_allclose(weights.energy["norm"], model.norm.weight.detach().double().numpy() ** 2)
    (norm,) = graph.norms
    assert squared_norm_per_channel(norm, torch.tensor([1.0, -2.0, 0.0, 3.0])).tolist() == [1.0, 4.0, 0.0, 9.0]


def test_an_importance_file_from_before_norms_still_fits(tmp_path: Path) -> None:
    model = Image()
    graph = graph_of(model, 3, 2, 2)
    now = from_weights(graph, dict(model.named_parameters()))
    old = replace(
        now, **{part: {n: v for n, v in getattr(now, part).items() if n != "norm"} for part in ("energy", "norms")}
    )
    again = Importance.load(old.save(tmp_path / "old.safetensors"))
    again.check(graph)
    assert set(again.energy) == {"conv", "head"}


def test_a_slot_decays_and_clips_the_selected_elements() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    layer = Layer(
        name="n", kind="norm", weight="n.weight", weight_shape=(4,), dtype="float32", bias=None, groups=1, sites=("op",)
    )
    rule = UpdateRule(lr=0.1, weight_decay=0.5, clip=1.0)
    slot = FusedSlot(layer, weight, None, quota=2, full=False, rule=rule, sites=1, anchor=torch.zeros(()))
    slot.select([3, 1])
    slot.begin_step()
    with torch.no_grad():  # as in backward
        slot.receive(torch.tensor([3.0, 4.0]), None)
    expected = torch.tensor([1.0, 2.0 - 0.1 * (0.6 + 1.0), 3.0, 4.0 - 0.1 * (0.8 + 2.0)])
    torch.testing.assert_close(weight.detach(), expected)
