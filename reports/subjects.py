"""Networks that report scripts plan for, traced at a batch size, and what their channels are worth on sign_digits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medyate_planner.api import rank
from medyate_planner.data import load_data, make_loader
from medyate_planner.errors import InfeasibleBudgetError
from medyate_planner.importance.energy import Importance
from medyate_planner.models import assets_dir, example_input, load_model
from medyate_planner.models.zoo import ZOO_PREPROCESSING
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import full
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.loop import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # at the end: names of ours come first
CLASSES = 10
PROBED_BATCHES = 20
HEAD_EPOCHS = 2
BERT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
BERT_TOKENS = 64


def zoo_subject(name: str, batch_size: int) -> Subject:
    """A network of our zoo with its pre-trained weights and a new head; needs the data files."""
    model = load_model(name, num_classes=CLASSES, require_weights=True).model
    return subject_of(model, example_input(model, ZOO_PREPROCESSING.shape, batch_size=batch_size))


def library_subject(spec: str, batch_size: int, side: int) -> Subject:
    """A network of torchvision or timm with random weights, for pictures of `side` pixels."""
    from third_party import import_timm

    import_timm()  # also where torchvision's compiled extension is absent
    loaded = load_model(spec, num_classes=CLASSES, input_shape=(3, side, side))
    return subject_of(loaded.model, example_input(loaded.model, loaded.input_shape, batch_size=batch_size))


def bert_subject(batch_size: int) -> Subject:
    """A small text classifier of transformers with random weights."""
    from third_party import import_torchvision

    import_torchvision()
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**BERT, vocab_size=1000, num_labels=CLASSES)).eval()
    return subject_of(model, {"input_ids": torch.zeros(batch_size, BERT_TOKENS, dtype=torch.int64)})


SUBJECTS: Mapping[str, Callable[[int], Subject]] = {
    "mcunet-5fps": lambda batch: zoo_subject("mcunet-5fps", batch),
    "mbv2-w0.35": lambda batch: zoo_subject("mbv2-w0.35", batch),
    "proxyless-w0.3": lambda batch: zoo_subject("proxyless-w0.3", batch),
    "EfficientNet-Lite0 (timm), 128 px": lambda batch: library_subject("timm:efficientnet_lite0", batch, 128),
    "ResNet-50 (torchvision), 128 px": lambda batch: library_subject("torchvision:resnet50", batch, 128),
    "ViT-tiny (timm), 224 px": lambda batch: library_subject("timm:vit_tiny_patch16_224", batch, 224),
    "BERT, 4 layers of 128, 64 tokens": bert_subject,
}


def zoo_importance(name: str, subject: Subject) -> Importance:
    """As `medyate rank --batches 20` measures it on sign_digits, after two epochs of head warm-up; needs the data."""
    assets = assets_dir()
    if assets is None:
        raise SystemExit(f"{name}: its importance needs the data files; see MEDYATE_ASSETS in the README")
    bundle = load_data(f"tar:{assets / 'datasets' / 'sign_digits.tar'}", ZOO_PREPROCESSING)
    batch_size = subject.graph.batch_size

    def batches(epoch: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return make_loader(bundle.train, batch_size, shuffle=True, seed=0, epoch=epoch, drop_last=True, workers=0)

    return rank(
        subject,
        batches,
        steps_per_epoch=len(bundle.train) // batch_size,  # type: ignore[arg-type]
        warm_head_epochs=HEAD_EPOCHS,
        recipe=Recipe(epochs=HEAD_EPOCHS, lr=0.02, clip=5.0, seed=0),
        max_batches=PROBED_BATCHES,
    )


def scope_range(ask: Callable[[int], PlanRequest]) -> tuple[int, int]:
    """The smallest budget that can be met, and the one in which everything fits; `ask` makes a request of a budget."""
    from medyate_planner.planning.strategies import STRATEGIES

    ends = []
    for strategy in (STRATEGIES["optimal"], full):
        try:
            strategy(ask(1))
        except InfeasibleBudgetError as error:
            ends.append(error.minimum_bytes)
    smallest, largest = ends
    return smallest, largest
