"""The two memory formats of images, and views of the one that has channels last as a matrix of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for an image batch that is stored so and only so, else contiguous."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def is_channels_last(x: Tensor) -> bool:
    """An image batch that is stored so and only so."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def as_rows(x: Tensor) -> Tensor:
    """View `(B, C, H, W)` in channels_last as `(B * H * W, C)`."""
    batch, channels, height, width = x.shape
    return x.as_strided((batch * height * width, channels), (channels, 1))


def as_image(rows: Tensor, shape: torch.Size) -> Tensor:
    """View `(B * H * W, n)` as `(B, n, H, W)` in channels_last, batch and sides from `shape`."""
    batch, _, height, width = shape
    n = rows.shape[1]
    return rows.as_strided((batch, n, height, width), (height * width * n, 1, width * n, n))
