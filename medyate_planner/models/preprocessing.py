"""What is done to an image before a model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from medyate_planner.errors import InputError

INTERPOLATIONS = ("bilinear", "bicubic")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalise: `(x/255 - mean) / std`, channel by channel.

    `size` is (height, width). With `crop_ratio` 1.0 both sides are resized to `size`; below 1.0 the image is
    scaled, its proportions kept, until it covers `size / crop_ratio`, and the centre is cut out. `source`
    says where the numbers come from.

    Raises:
        InputError: a size, deviation or ratio out of range, or numbers that do not go with `channels`.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_ratio: float = 1.0
    source: str

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1 or self.channels < 1:
            raise InputError(f"preprocessing: expected a positive size and channels, got {self.shape}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"preprocessing: {self.channels} channels need as many means and deviations, "
                f"got mean {self.mean} and std {self.std}; pass --mean and --std"
            )
        if not all(value > 0 for value in self.std):
            raise InputError(f"preprocessing: every deviation must be above 0, got std {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"preprocessing: interpolation {self.interpolation!r} is none of {', '.join(INTERPOLATIONS)}"
            )
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"preprocessing: crop_ratio must be above 0 and at most 1, got {self.crop_ratio}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    def describe(self) -> str:
        """One line for a person: `3x128x128, bilinear, (x/255 - 0.5)/0.5 (zoo)`."""
        crop = "" if self.crop_ratio == 1 else f", centre {self.crop_ratio:.3g}"
        shape = "x".join(str(side) for side in self.shape)
        scale = f"(x/255 - {_few(self.mean)})/{_few(self.std)}"
        return f"{shape}, {self.interpolation}{crop}, {scale} ({self.source})"

    def resized(self, shape: tuple[int, ...]) -> Preprocessing:
        """The same for another input shape (C, H, W); numbers that are all alike follow the channels."""
        channels, *size = shape
        mean, std = self.mean, self.std
        if channels != self.channels and len(set(mean)) == len(set(std)) == 1:
            mean, std = mean[:1] * channels, std[:1] * channels
        elif channels != self.channels:
            return replace(default_preprocessing(shape), interpolation=self.interpolation)
        return replace(self, size=(size[0], size[1]), channels=channels, mean=mean, std=std)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`, also after a trip through JSON."""
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**facts)


def default_preprocessing(shape: tuple[int, ...]) -> Preprocessing:
    """ImageNet's mean and deviation for three channels, 0.5 for any other number."""
    channels, height, width = shape
    is_rgb = channels == 3
    return Preprocessing(
        size=(height, width),
        channels=channels,
        mean=IMAGENET_MEAN if is_rgb else (0.5,) * channels,
        std=IMAGENET_STD if is_rgb else (0.5,) * channels,
        source="default: ImageNet mean and deviation" if is_rgb else "default: mean and deviation 0.5",
    )


def preprocessing_from_config(config: Mapping[str, Any], *, source: str) -> Preprocessing | None:
    """Read a timm-style configuration (`input_size`, `mean`, `std`, …), if it is one."""
    shape = config.get("input_size")
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        return None
    fallback = default_preprocessing(tuple(shape))
    interpolation = config.get("interpolation", "bilinear")
    return Preprocessing(
        size=fallback.size,
        channels=fallback.channels,
        mean=tuple(config.get("mean") or fallback.mean),
        std=tuple(config.get("std") or fallback.std),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
        crop_ratio=float(config.get("crop_pct") or 1.0),
        source=source,
    )


def _few(values: tuple[float, ...]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"[{' '.join(shown)}]"
