"""The real networks that reality tests run on; none of them was written for the tests."""

from __future__ import annotations

from functools import lru_cache

import pytest

from medyate_planner.models import LoadedModel, example_input, load_model
from medyate_planner.subject import Subject, subject_of

NETWORKS = {
    "mcunet-5fps": ("mcunet-5fps", (3, 128, 128)),
    "mbv2-w0.35": ("mbv2-w0.35", (3, 128, 128)),
    "proxyless-w0.3": ("proxyless-w0.3", (3, 128, 128)),
    "efficientnet-lite0": ("medyate_planner.demo:efficientnet_lite0", (3, 128, 128)),
    "torchvision-mobilenet_v2": ("torchvision:mobilenet_v2", (3, 128, 128)),
    "torchvision-resnet18": ("torchvision:resnet18", (3, 128, 128)),
    "timm-mobilenetv2_035": ("timm:mobilenetv2_035", (3, 128, 128)),
    "timm-vit_tiny_patch16_224": ("timm:vit_tiny_patch16_224", (3, 224, 224)),
}
ZOO = ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")

all_networks = pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.assets if n in ZOO else ()) for n in NETWORKS]
)


@lru_cache(maxsize=1)
def loaded(network: str) -> LoadedModel:
    """The network with ten classes; pre-trained where weights are at hand."""
    spec, shape = NETWORKS[network]
    return load_model(spec, num_classes=10, input_shape=shape, require_weights=network in ZOO)


@lru_cache(maxsize=2)
def subject(network: str, batch_size: int) -> Subject:
    """The network traced and read at a batch size."""
    found = loaded(network)
    return subject_of(found.model, example_input(found.model, found.input_shape, batch_size=batch_size))
