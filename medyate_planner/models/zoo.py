"""The paper's three networks: inverted residuals without norm layers, BatchNorm folded into the convolutions.

Source: mit-han-lab/tiny-training (MIT, (c) 2022 MIT HAN Lab), `algorithm/assets/mcu_models`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from medyate_planner.models.preprocessing import Preprocessing

# One row per block: kernel of the depthwise convolution, hidden channels, output channels, stride.
# Hidden 0: no expand convolution. A block adds its input wherever the shapes allow it.
Rows = tuple[tuple[int, int, int, int], ...]

# fmt: off
ZOO: Mapping[str, Rows] = {
    "mcunet-5fps": (
        (3, 0, 8, 1), (3, 32, 16, 2), (3, 48, 16, 1), (7, 48, 24, 2), (3, 120, 24, 1), (3, 120, 40, 2),
        (7, 160, 40, 1), (5, 160, 48, 1), (3, 144, 48, 1), (3, 192, 48, 1), (7, 240, 96, 2), (5, 384, 96, 1),
        (5, 384, 96, 1), (3, 576, 160, 1),
    ),
    "mbv2-w0.35": (
        (3, 0, 8, 1), (3, 48, 8, 2), (3, 48, 8, 1), (3, 48, 16, 2), (3, 96, 16, 1), (3, 96, 16, 1),
        (3, 96, 24, 2), (3, 144, 24, 1), (3, 144, 24, 1), (3, 144, 24, 1), (3, 144, 32, 1), (3, 192, 32, 1),
        (3, 192, 32, 1), (3, 192, 56, 2), (3, 336, 56, 1), (3, 336, 56, 1), (3, 336, 112, 1),
    ),
    "proxyless-w0.3": (
        (3, 0, 8, 1), (5, 24, 16, 2), (3, 48, 16, 1), (7, 48, 16, 2), (3, 48, 16, 1), (5, 48, 16, 1),
        (5, 48, 16, 1), (7, 96, 24, 2), (5, 72, 24, 1), (5, 72, 24, 1), (5, 72, 24, 1), (5, 144, 32, 1),
        (5, 96, 32, 1), (5, 96, 32, 1), (5, 96, 32, 1), (7, 192, 64, 2), (7, 384, 64, 1), (7, 192, 64, 1),
        (7, 192, 64, 1), (7, 384, 96, 1),
    ),
}
# fmt: on

STEM_CHANNELS = 16
NUM_CLASSES = 1000
ZOO_PREPROCESSING = Preprocessing(size=(128, 128), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, source="zoo")


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); ReLU6 after the first two."""

    def __init__(self, channels: int, row: tuple[int, int, int, int]) -> None:
        super().__init__()
        kernel, hidden, out, stride = row
        self.expand = nn.Conv2d(channels, hidden, 1) if hidden else None
        hidden = hidden or channels
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden)
        self.project = nn.Conv2d(hidden, out, 1)
        self.activation = nn.ReLU6(inplace=True)
        self.residual = stride == 1 and channels == out

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = inputs
        if self.expand is not None:
            x = self.activation(self.expand(x))
        x = self.project(self.activation(self.depthwise(x)))
        if self.residual:
            x = inputs + x
        return x


class ZooModel(nn.Module):
    """Stem, inverted residuals, global average, linear classifier: (N, 3, H, W) -> (N, classes)."""

    def __init__(self, rows: Rows, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1)
        self.activation = nn.ReLU6(inplace=True)
        widths = (STEM_CHANNELS, *(row[2] for row in rows))
        self.blocks = nn.Sequential(*(InvertedResidual(width, row) for width, row in zip(widths, rows, strict=False)))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.activation(self.stem(images)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def build_zoo_model(name: str) -> ZooModel:
    """Make a zoo network with random weights; `name` is a key of `ZOO`."""
    return ZooModel(ZOO[name])
