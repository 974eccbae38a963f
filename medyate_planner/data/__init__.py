"""Data by name: folders of images, the same in a tar, arrays in an npz, and any factory function.

spec -> sources (what images there are) -> splits -> datasets (decode, cache, augment, normalise) -> loader
"""

from __future__ import annotations

from medyate_planner.data.datasets import AUGMENTATIONS, ImageDataset
from medyate_planner.data.load import DataBundle, load_data
from medyate_planner.data.loader import make_loader

__all__ = ["AUGMENTATIONS", "DataBundle", "ImageDataset", "load_data", "make_loader"]
