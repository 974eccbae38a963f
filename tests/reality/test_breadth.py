"""The memory model on what mobile networks do not have: attention, products, shuffles, shared and tied weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import plan, verify
from medyate_planner.api import open_session
from medyate_planner.models import example_input, load_model
from medyate_planner.subject import subject_of

ARCHITECTURES = (
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mobilenet_v3_small",
    "timm:efficientnet_b0",
    "timm:swin_tiny_patch4_window7_224",
    "timm:mobilevit_xxs",
    "timm:resnext26ts",
    "timm:convnext_atto",
    "timm:pit_ti_224",
)


@pytest.mark.parametrize("spec", ARCHITECTURES)
def test_verify_finds_no_difference(spec: str) -> None:
    found = load_model(spec, num_classes=7)
    made = subject_of(found.model, example_input(found.model, found.input_shape, batch_size=2))
    for strategy, budget in (("full", 10**12), ("optimal", "20MB")):
        result = verify(made, plan(made, budget=budget, strategy=strategy))
        assert result.ok, result.categories


class Reused(nn.Module):
    """One convolution called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = functional.silu(self.twice(x)) + x
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """A head that shares its weight with an embedding: its gradient has a part that the head does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))).mean(1))


class TwoInputs(nn.Module):
    """Two inputs, unequal matrix products, a strided 1x1 convolution and a leaky branch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)
        self.conv = nn.Conv2d(1, 3, 1, stride=2)
        self.head = nn.Linear(3 * 4 * 4, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        product = self.left(a) @ self.right(b).transpose(1, 2)
        x = functional.leaky_relu(self.conv(product.unsqueeze(1)), 0.1)
        return self.head(x.flatten(1))


def test_a_layer_called_three_times_sums_its_gradient() -> None:
    torch.manual_seed(0)
    model, x, target = Reused(), torch.randn(4, 3, 10, 10), torch.arange(4)
    made = subject_of(model, x)
    decided = plan(made, budget="1MB", strategy="full")
    result = verify(made, decided)
    assert result.ok, [category for category in result.categories if not category.agrees]
    reference = Reused()
    reference.load_state_dict(model.state_dict())
    functional.cross_entropy(reference(x), target).backward()
    from medyate_planner import prepare

    with prepare(model, decided) as session:
        session.set_lr(0.5)
        output = session(x)
        assert torch.equal(output, reference(x))
        functional.cross_entropy(output, target).backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_weight_tied_to_an_embedding_is_one_layer() -> None:
    made = subject_of(Tied(), torch.zeros(4, 7, dtype=torch.int64))
    tied, mix = made.graph.layers
    assert (tied.kind, tied.channels, len(tied.sites)) == ("embedding", 6, 2)
    assert (mix.name, made.graph.head) == ("mix", ())
    for strategy in ("full", "optimal"):
        assert verify(made, plan(made, budget="1MB", strategy=strategy)).ok


def test_two_inputs_and_unequal_products() -> None:
    made = subject_of(TwoInputs(), (torch.randn(3, 8, 6), torch.randn(3, 7, 5)))
    for strategy in ("full", "optimal"):
        assert verify(made, plan(made, budget="1MB", strategy=strategy)).ok


def test_a_model_on_the_meta_device_is_planned_as_the_real_one() -> None:
    with torch.device("meta"):
        ghost = Reused()
    real = Reused()
    x = torch.randn(4, 3, 10, 10)
    predicted = plan(ghost, x, budget="40kB").predicted
    assert predicted.training_bytes <= 40_000
    a, b = subject_of(ghost, x), subject_of(real, x)
    assert a.graph.fingerprint == b.graph.fingerprint
    assert (
        plan(ghost, x, budget="1MB", strategy="full").predicted
        == plan(real, x, budget="1MB", strategy="full").predicted
    )


def test_dropout_that_is_kept_draws_the_originals_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(0.4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(384, 5))
    x = torch.randn(4, 3, 10, 10)
    made = subject_of(model, x, dropout="keep")
    decided = plan(made, budget="1MB", strategy="full")
    assert decided.dropout == "keep"
    assert verify(made, decided).ok
    with open_session(made, decided) as session:
        torch.manual_seed(7)
        found = session(x)
    torch.manual_seed(7)
    assert torch.equal(found, model.train()(x))
    assert not torch.equal(found, model.eval()(x))


@pytest.mark.assets
def test_bfloat16_is_planned_and_measured_alike() -> None:
    found = load_model("mcunet-5fps", num_classes=10, dtype="bfloat16", require_weights=True)
    made = subject_of(found.model, example_input(found.model, found.input_shape, batch_size=8))
    decided = plan(made, budget="300kB")
    assert decided.dtype == "bfloat16"
    assert verify(made, decided).ok


def test_a_transformers_checkpoint_is_planned_and_measured_alike(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    found = load_model(f"hf:{tmp_path / 'vit'}", num_classes=5)
    made = subject_of(found.model, example_input(found.model, found.input_shape, batch_size=3))
    for strategy in ("full", "optimal"):
        result = verify(made, plan(made, budget="400kB", strategy=strategy))
        assert result.ok, result.categories
