"""Energy per channel against autograd, metrics by hand, and the importance file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Sketch, random_importance
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from medyate_planner.errors import DivergenceError, InputError, PlanMismatchError
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.importance.energy import Importance, from_weights, squared_norm_per_channel
from medyate_planner.importance.gradients import probe
from medyate_planner.importance.metrics import channel_scores, rank_layers, top_layers

KINDS = {
    "conv": (6, 8, 1, (3, 3)),
    "pointwise": (6, 8, 1, (1, 1)),
    "depthwise": (6, 6, 6, (3, 3)),
    "multiplier": (6, 12, 6, (3, 1)),
    "grouped": (6, 9, 3, (3, 3)),
}


def layer_of(kind: str, weight: torch.Tensor, groups: int) -> Layer:
    return Layer(
        name="a",
        kind=kind,  # type: ignore[arg-type]
        weight="a.weight",
        weight_shape=tuple(weight.shape),
        dtype="float32",
        bias=None,
        groups=groups,
        sites=(),
    )


@pytest.mark.parametrize("name", KINDS)
def test_squared_norm_is_that_of_the_gradient_of_one_input_channel(name: str) -> None:
    """Oracle: silence all input channels but one; then the whole gradient is that channel's slice."""
    inputs, outputs, groups, kernel = KINDS[name]
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs // groups, *kernel, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, inputs, 5, 4, dtype=torch.float64)
    top = torch.randn_like(functional.conv2d(x, weight, groups=groups))
    kind = "conv" if groups == 1 else "depthwise" if weight.shape[1] == 1 else "grouped"
    expected = []
    for channel in range(inputs):
        alone = torch.zeros_like(x)
        alone[:, channel] = x[:, channel]
        (gradient,) = torch.autograd.grad(functional.conv2d(alone, weight, groups=groups), weight, top)
        expected.append(float(gradient.square().sum()))
    (gradient,) = torch.autograd.grad(functional.conv2d(x, weight, groups=groups), weight, top)
    found = squared_norm_per_channel(layer_of(kind, weight, groups), gradient)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    last = gradient.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(squared_norm_per_channel(layer_of(kind, weight, groups), last), expected, rtol=1e-12)


def test_squared_norm_of_a_linear_layer_is_per_column() -> None:
    gradient = torch.tensor([[1.0, 2.0, 0.0], [3.0, -4.0, 0.0]])
    assert squared_norm_per_channel(layer_of("linear", gradient, 1), gradient).tolist() == [10.0, 20.0, 0.0]


def network() -> tuple[nn.Module, ModelGraph]:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("a", nn.Conv2d(3, 4, 3, padding=1))
    model.add_module("dw", nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
    model.add_module("drop", nn.Dropout(0.5))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(16, 2))
    sketch = Sketch()
    x = sketch.conv(sketch.input(3, 2, 2), 4, name="a", kernel=(3, 3), bias=True)
    x = sketch.view(sketch.conv(x, 4, name="dw", kernel=(3, 3), groups=4), 16)
    return model, sketch.build([sketch.linear(x, 2, name="head", bias=True)], head=["head"])


def test_probe_averages_over_batches_and_leaves_the_model_alone() -> None:
    model, graph = network()
    model.a.bias.requires_grad_(False)
    model.drop.train()
    model.a.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [(torch.randn(2, 3, 2, 2), torch.tensor([0, 1])) for _ in range(3)]
    found = probe(model, graph, batches, functional.cross_entropy)
    assert (model.a.training, model.drop.training) == (False, True)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    model.eval().requires_grad_(True)
    energy, norms, bias = np.zeros(3), np.zeros(3), 0.0
    for x, y in batches:
        gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), [model.a.weight, model.a.bias])
        for channel in range(3):
            square = float(gradients[0][:, channel].double().square().sum())
            energy[channel] += square / 3
            norms[channel] += square**0.5 / 3
        bias += float(gradients[1].double().square().sum()) / 3
    np.testing.assert_allclose(found.energy["a"], energy, rtol=1e-6)
    np.testing.assert_allclose(found.norms["a"], norms, rtol=1e-6)
    assert found.bias_energy["a"] == pytest.approx(bias, rel=1e-6)
    assert set(found.bias_energy) == {"a", "head"}
    assert found.energy["dw"].shape == (4,)
    assert found.fingerprint == graph.fingerprint
    assert "3 mini-batches" in found.source


def test_probe_without_a_batch_or_with_a_broken_loss_says_so() -> None:
    model, graph = network()
    with pytest.raises(InputError, match="no batch"):
        probe(model, graph, [], functional.cross_entropy)
    model.train()
    bad = [(torch.full((2, 3, 2, 2), float("nan")), torch.tensor([0, 1]))]
    with pytest.raises(DivergenceError, match="the loss of batch 0 is nan"):
        probe(model, graph, bad, functional.cross_entropy)
    assert model.training
    assert model.drop.training

    def steep(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (logits * 0).clamp(min=0).sqrt().sum()  # finite, but its slope is not

    with pytest.raises(DivergenceError, match="the gradient is not finite"):
        probe(model, graph, [(torch.randn(2, 3, 2, 2), torch.tensor([0, 1]))], steep)
    assert all(p.grad is None for p in model.parameters())


def test_from_weights_is_the_mean_square_and_says_so() -> None:
    model, graph = network()
    found = from_weights(graph, dict(model.named_parameters()))
    for channel in range(3):
        mean = float(model.a.weight.detach()[:, channel].double().square().mean())
        assert found.energy["a"][channel] == pytest.approx(mean)
    for channel in range(4):
        mean = float(model.dw.weight.detach()[channel].double().square().mean())
        assert found.energy["dw"][channel] == pytest.approx(mean)
    assert found.bias_energy == {n: pytest.approx(found.energy[n].mean()) for n in found.bias_energy}
    assert set(found.bias_energy) == {unit.name for unit in graph.units if unit.bias}
    assert "no data seen" in found.source
    meta = from_weights(graph, dict(model.to("meta").named_parameters()))
    assert meta.energy["a"].tolist() == [1.0, 1.0, 1.0]


def test_importance_file_round_trip_is_the_identity(tmp_path: Path) -> None:
    _, graph = network()
    head = {"head.weight": torch.randn(16, 2).t(), "head.bias": torch.randn(2).bfloat16()}
    saved = replace(random_importance(graph, 3), head=head, facts={"batches": 3, "loss": "cross-entropy"})
    loaded = Importance.load(saved.save(tmp_path / "i.safetensors"))
    for mine, other in ((saved.energy, loaded.energy), (saved.norms, loaded.norms)):
        assert set(mine) == set(other)
        assert all(other[name].dtype == np.float64 and np.array_equal(mine[name], other[name]) for name in mine)
    assert set(loaded.head) == set(head)
    assert all(torch.equal(head[k], loaded.head[k]) and head[k].dtype == loaded.head[k].dtype for k in head)
    for name in ("bias_energy", "fingerprint", "source", "facts"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_importance_check_refuses_another_model() -> None:
    _, graph = network()
    random_importance(graph, 0).check(graph)
    with pytest.raises(PlanMismatchError, match="measured on another model") as caught:
        replace(random_importance(graph, 0), fingerprint="f" * 64).check(graph)
    assert graph.fingerprint[:12] in caught.value.message


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Importance.load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "medyate rank" in caught.value.message
    return caught.value.message


def test_importance_load_refuses_what_is_not_an_importance_file(tmp_path: Path) -> None:
    _, graph = network()
    path = random_importance(graph, 0).save(tmp_path / "i.safetensors")
    assert "no such file" in refusal(tmp_path / "nothing")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-40])
    assert "can not be read" in refusal(tmp_path / "cut")
    (tmp_path / "empty").write_bytes(b"")
    assert "can not be read" in refusal(tmp_path / "empty")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    assert "expected schema version 1 of kind importance, got None of None" in refusal(tmp_path / "weights")
    facts = json.dumps({"kind": "importance", "schema_version": 2})
    save_file({"x": torch.zeros(1)}, tmp_path / "newer", metadata={"medyate": facts})
    assert "got 2 of importance" in refusal(tmp_path / "newer")
    save_file({"x": torch.zeros(1)}, tmp_path / "torn", metadata={"medyate": "{"})
    assert "can not be read" in refusal(tmp_path / "torn")


def test_importance_load_refuses_a_file_without_its_facts(tmp_path: Path) -> None:
    facts = json.dumps({"kind": "importance", "schema_version": 1})
    save_file({"x": torch.zeros(1)}, tmp_path / "bare", metadata={"medyate": facts})
    refusal(tmp_path / "bare")


def test_importance_load_refuses_facts_that_are_no_object(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "list", metadata={"medyate": "[]"})
    refusal(tmp_path / "list")


def test_importance_file_holds_tied_head_tensors(tmp_path: Path) -> None:
    _, graph = network()
    tied = torch.randn(3, 2)
    saved = replace(random_importance(graph, 0), head={"a.weight": tied, "b.weight": tied})
    assert torch.equal(Importance.load(saved.save(tmp_path / "i")).head["b.weight"], tied)


def scores() -> Importance:
    energy = {"wide": np.array([1.0, 1.0, 1.0, 1.0]), "dense": np.array([9.0]), "poor": np.array([0.0, 0.0])}
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) / 2 for name, values in energy.items()},
        bias_energy={},
        fingerprint="",
        source="",
    )


def test_channel_scores_by_hand() -> None:
    assert channel_scores(scores(), "dense", "raw", 6).tolist() == [3.0]
    assert channel_scores(scores(), "dense", "rgn", 6).tolist() == [0.25]
    assert channel_scores(scores(), "dense", "lara", 6).tolist() == [1.5]
    assert channel_scores(scores(), "dense", "sized", 6, 4).tolist() == [12.0]
    with pytest.raises(InputError, match=r"metric 'best' is unknown; choose one of sized, raw, rgn, lara"):
        channel_scores(scores(), "dense", "best", 6)


def test_rank_layers_by_hand() -> None:
    costs = {"poor": 1, "wide": 2, "dense": 6}
    raw = rank_layers(scores(), "raw", costs)
    assert [(entry.name, entry.score) for entry in raw] == [("wide", 4.0), ("dense", 3.0), ("poor", 0.0)]
    assert [entry.share for entry in raw] == pytest.approx([4 / 7, 3 / 7, 0.0])
    rgn = rank_layers(scores(), "rgn", costs)
    assert [(entry.name, entry.score) for entry in rgn] == [("wide", 1.0), ("dense", 0.25), ("poor", 0.0)]
    sized = rank_layers(scores(), "sized", costs, {"dense": 3, "wide": 1})
    assert [(entry.name, entry.score) for entry in sized] == [("dense", 9.0), ("wide", 4.0), ("poor", 0.0)]
    lara = rank_layers(scores(), "lara", costs)
    assert [(entry.name, entry.score) for entry in lara] == [("dense", 1.5), ("wide", 0.5), ("poor", 0.0)]


def test_rank_layers_keeps_the_order_of_equals() -> None:
    nothing = replace(scores(), energy={name: np.zeros(2) for name in "abc"})
    assert [entry.name for entry in rank_layers(nothing, "lara", {"b": 1, "a": 1, "c": 1})] == ["b", "a", "c"]


def test_top_layers_stop_at_the_share() -> None:
    ranking = rank_layers(scores(), "raw", {"poor": 1, "wide": 2, "dense": 6})
    assert top_layers(ranking) == ("wide", "dense")
    assert top_layers(ranking, share=0.5) == ("wide",)
    assert top_layers(ranking, share=1.5) == ("wide", "dense", "poor")
