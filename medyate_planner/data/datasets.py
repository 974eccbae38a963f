"""Images as tensors: decoded once, kept as bytes, augmented and normalised a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from medyate_planner.data.sources import ImageSource
from medyate_planner.errors import InputError
from medyate_planner.models.preprocessing import Preprocessing

AUGMENTATIONS = ("none", "flip", "crop", "flip+crop")
CACHE_BYTES = 2**30
CROP_RATIO = 0.04
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Sample = tuple[Tensor, Tensor]


class Gathered(list[Sample]):
    """The samples of a batch, and the two tensors they are views of: (N, C, H, W) and (N,)."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        super().__init__(zip(inputs, targets, strict=True))
        self.inputs = inputs
        self.targets = targets


class ImageDataset(Dataset[Sample]):
    """Images and their classes: (C, H, W) float32, normalised, and an int64 scalar.

    The first images, up to 1 GiB, stay in memory after they were decoded and resized. Augmentation of an
    image depends on (seed, epoch, index) alone; `set_epoch` says which epoch it is. Loader workers have a
    cache each, which ends with them: loading is fastest without workers once an epoch has passed.

    Raises:
        InputError: on access, an image that can not be decoded.
    """

    def __init__(
        self,
        source: ImageSource,
        targets: Sequence[int],
        preprocessing: Preprocessing,
        *,
        augment: str = "none",
        seed: int = 0,
    ) -> None:
        if preprocessing.channels not in MODES:
            raise InputError(f"images can be made to 1, 3 or 4 channels, not {preprocessing.channels}")
        self.source = source
        self.targets = torch.tensor(targets, dtype=torch.int64)
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self.epoch = 0
        height, width = preprocessing.size
        image_bytes = height * width * preprocessing.channels
        count = min(len(source), CACHE_BYTES // image_bytes)
        self._cache = torch.empty((count, height, width, preprocessing.channels), dtype=torch.uint8)
        self._is_cached = np.zeros(count, dtype=bool)
        shift = torch.tensor(preprocessing.mean)
        deviation = torch.tensor(preprocessing.std)
        self._scale = (1 / (255 * deviation)).view(1, -1, 1, 1)
        self._offset = (-shift / deviation).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Gathered:
        """Many samples at once; a loader asks for a batch in this way."""
        places = [range(len(self))[index] for index in indices]
        pixels = augment_images(
            self._gather(places), self.augment, [(self.seed, self.epoch, place) for place in places]
        )
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(self._scale).add_(self._offset)
        return Gathered(inputs, self.targets[places])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random flips and crops are applied."""
        self.epoch = epoch

    def _gather(self, places: Sequence[int]) -> Tensor:
        """Bytes (N, H, W, C), decoded now or earlier."""
        count = len(self._is_cached)
        for place in places:
            if place < count and not self._is_cached[place]:
                self._cache[place] = self._decode(place)
                self._is_cached[place] = True
        if all(place < count for place in places):
            return self._cache[list(places)]
        return torch.stack([self._cache[p] if p < count else self._decode(p) for p in places])

    def _decode(self, place: int) -> Tensor:
        return torch.from_numpy(fit_image(self.source.open(place), self.preprocessing))


class ArrayDataset(Dataset[Sample]):
    """Arrays used as they are: vectors, token ids, or float images (N, C, H, W), which can be augmented."""

    def __init__(self, inputs: Tensor, targets: Sequence[int], *, augment: str = "none", seed: int = 0) -> None:
        self.inputs = inputs
        self.targets = torch.tensor(targets, dtype=torch.int64)
        self.augment = augment
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Gathered:
        """Many samples at once; a loader asks for a batch in this way."""
        places = [range(len(self))[index] for index in indices]
        batch = self.inputs[places]
        if batch.dim() == 4:
            keys = [(self.seed, self.epoch, place) for place in places]
            batch = augment_images(batch.permute(0, 2, 3, 1), self.augment, keys).permute(0, 3, 1, 2)
        return Gathered(batch, self.targets[places])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random flips and crops are applied."""
        self.epoch = epoch


def fit_image(image: Image.Image, preprocessing: Preprocessing) -> Any:
    """Bring an image to the model's channels and size: uint8 array (H, W, C)."""
    height, width = preprocessing.size
    image = image.convert(MODES[preprocessing.channels])
    resampling = RESAMPLING[preprocessing.interpolation]
    if preprocessing.crop_ratio == 1:
        image = image if image.size == (width, height) else image.resize((width, height), resampling)
    else:
        scale = max(height / image.height, width / image.width) / preprocessing.crop_ratio
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, resampling).crop((left, top, left + width, top + height))
    return np.array(image, dtype=np.uint8).reshape(height, width, preprocessing.channels)


def augment_images(images: Tensor, augment: str, keys: Sequence[tuple[int, int, int]]) -> Tensor:
    """Flip images (N, H, W, C) left to right, or move them by up to 4 % with the edge repeated.

    Each image has a key (seed, epoch, index), of which its flip and its shift are pure functions.
    """
    if augment == "none":
        return images
    count, height, width, _ = images.shape
    draws = np.stack([np.random.default_rng([number % 2**64 for number in key]).random(3) for key in keys])
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if "flip" in augment:
        columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns)
    if "crop" in augment:
        rows = _shift(rows, draws[:, 1:2], height)
        columns = _shift(columns, draws[:, 2:3], width)
    place = torch.arange(count).view(-1, 1, 1)
    return images[place, torch.tensor(rows)[:, :, None], torch.tensor(columns)[:, None, :]]


def _shift(lines: Any, draws: Any, side: int) -> Any:
    reach = max(1, round(CROP_RATIO * side))
    return np.clip(lines + np.floor(draws * (2 * reach + 1)).astype(np.int64) - reach, 0, side - 1)
