"""Data sets in an .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medyate_planner.errors import InputError
from medyate_planner.files import nearby
from medyate_planner.models.factory import first_line
from medyate_planner.models.preprocessing import Preprocessing

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrays:
    """Inputs and labels; `x_test` is None where a test set has to be split off."""

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    class_names: tuple[str, ...]


def read_npz(path: Path) -> Arrays:
    """Read x_train, y_train, x_test, y_test (or x and y) and, if there, class_names.

    Raises:
        InputError: no such file, not an npz, Python objects in it, keys that lack, lengths that differ, or
            labels that are not whole numbers from 0.
    """
    if not path.is_file():
        raise InputError(f"data npz:{path}: there is no such file{nearby(path)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files if key in (*KEYS, "x", "y", "class_names")}
            names = ", ".join(file.files)
    except Exception as error:
        raise InputError(f"data npz:{path}: can not be read ({first_line(error)})") from error
    if not (all(key in data for key in KEYS) or ("x" in data and "y" in data)):
        raise InputError(f"data npz:{path}: expected {', '.join(KEYS)}, or x and y; found {names or 'nothing'}")
    has_test = all(key in data for key in KEYS)
    x_train, y_train, x_test, y_test = (data[key] for key in KEYS) if has_test else (data["x"], data["y"], None, None)
    y_train = _check_labels(x_train, y_train, f"data npz:{path}: {'y_train' if has_test else 'y'}")
    count = int(y_train.max()) + 1
    given = tuple(str(name) for name in data.get("class_names", ()))
    if given and len(given) < count:
        raise InputError(f"data npz:{path}: label {count - 1} is out of range for {len(given)} class_names")
    class_names = given or tuple(str(label) for label in range(count))
    if len(class_names) < 2:
        raise InputError(f"data npz:{path}: expected at least two classes, found only label 0")
    if has_test:
        y_test = _check_labels(x_test, y_test, f"data npz:{path}: y_test", limit=len(class_names))
        assert x_test is not None
        if x_test.shape[1:] != x_train.shape[1:] or x_test.dtype != x_train.dtype:
            raise InputError(
                f"data npz:{path}: x_test {list(x_test.shape[1:])} {x_test.dtype} is not like "
                f"x_train {list(x_train.shape[1:])} {x_train.dtype}"
            )
    return Arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, class_names=class_names)


def _check_labels(inputs: Any, labels: Any, where: str, *, limit: int | None = None) -> Any:
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{where}: expected whole numbers of shape (N,), got {labels.dtype} {list(labels.shape)}")
    if len(inputs) != len(labels) or not len(labels):
        raise InputError(f"{where}: {len(labels)} labels for {len(inputs)} inputs")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (limit is not None and high >= limit):
        allowed = f"0 to {limit - 1}, the training set's classes" if limit is not None else "0 or more"
        raise InputError(f"{where}: label {low if low < 0 else high} is out of range, expected {allowed}")
    return labels.astype(np.int64)


def as_pictures(array: Any, where: str) -> Any:
    """A uint8 array as (N, H, W) or (N, H, W, C), also when it comes as (N, C, H, W)."""
    is_last = array.ndim == 4 and array.shape[-1] in (1, 3, 4)
    is_first = array.ndim == 4 and array.shape[1] in (1, 3, 4)
    if array.ndim != 3 and not is_last and not is_first:
        raise InputError(f"{where}: expected uint8 images (N, H, W) or (N, H, W, C), got {list(array.shape)}")
    return array.transpose(0, 2, 3, 1) if is_first and not is_last else array


def as_inputs(array: Any, preprocessing: Preprocessing | None, where: str) -> Tensor:
    """Take any other array as it is (float32 or int64); float images get the model's size and channels."""
    if array.dtype.kind not in "fiu":
        raise InputError(f"{where}: expected numbers, got {array.dtype}")
    inputs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" else np.int64))
    if preprocessing is None or not inputs.dtype.is_floating_point or inputs.dim() not in (3, 4):
        return inputs
    inputs = inputs[:, None] if inputs.dim() == 3 else inputs
    if inputs.shape[1] not in (1, preprocessing.channels):
        raise InputError(
            f"{where}: expected float images (N, {preprocessing.channels}, H, W), got {list(inputs.shape)}"
        )
    if tuple(inputs.shape[2:]) != preprocessing.size:
        inputs = torch.nn.functional.interpolate(
            inputs, preprocessing.size, mode=preprocessing.interpolation, antialias=True
        )
    return inputs.expand(-1, preprocessing.channels, -1, -1)
