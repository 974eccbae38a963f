"""Weights from a file, and how they fit a model. Nothing in the file can run code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.files import nearby
from medyate_planner.models.factory import first_line

SHOWN = 3
CONTAINERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How the tensors of a file fit a model's: names and shapes."""

    missing: Mapping[str, tuple[int, ...]]
    unexpected: Mapping[str, tuple[int, ...]]
    mismatching: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatching)

    def describe(self) -> str:
        """The first few of each kind, in one line."""
        missing = [f"{name} {list(shape)}" for name, shape in self.missing.items()]
        unexpected = [f"{name} {list(shape)}" for name, shape in self.unexpected.items()]
        other = [f"{name} {list(a)} instead of {list(b)}" for name, (a, b) in self.mismatching.items()]
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        parts = (_few(f"{len(shown)} {kind}", shown) for kind, shown in kinds if shown)
        return "; ".join(parts)


def assets_dir() -> Path | None:
    """Folder of the data files beside the project: MEDYATE_ASSETS, else `../shared/assets`, if it exists."""
    setting = os.environ.get("MEDYATE_ASSETS")
    folder = Path(setting) if setting else Path(__file__).resolve().parents[2] / "../shared/assets"
    return folder.resolve() if folder.is_dir() else None


def zoo_weights(name: str) -> Path | None:
    """File of a zoo network's pre-trained weights, if it is there."""
    folder = assets_dir()
    path = folder / "backbones" / f"{name}.safetensors" if folder else None
    return path if path is not None and path.is_file() else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: `.safetensors`, or `.pt`/`.pth` with `weights_only`. Known wrappings are taken off.

    Raises:
        InputError: no such file, an unknown kind, a damaged file, or no tensors in it.
    """
    if not path.is_file():
        raise InputError(f"weights {path}: there is no such file{nearby(path)}")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(f"weights {path}: expected a .safetensors, .pt or .pth file, got {path.suffix!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is refused below
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"weights {path}: can not be read, damaged or not weights alone: a pickle may run code and is never "
            "read here; save them with torch.save(model.state_dict(), FILE) or safetensors"
        ) from error
    except Exception as error:
        raise InputError(
            f"weights {path}: can not be read, damaged or not weights alone ({first_line(error)})"
        ) from error
    for key in CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputError(f"weights {path}: holds no tensors by name (a state dict was expected)")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """Compare names and shapes.

    A tensor the file lacks is not missing if the model has the same storage under a name that is there (tied
    weights), nor if it is BatchNorm's counter of batches, which older files do not have.
    """
    own = model.state_dict()
    there = {tensor.data_ptr() for name, tensor in own.items() if name in state and tensor.numel()}
    return Fit(
        missing={
            name: tuple(tensor.shape)
            for name, tensor in own.items()
            if name not in state and tensor.data_ptr() not in there and name.rpartition(".")[2] != "num_batches_tracked"
        },
        unexpected={name: tuple(tensor.shape) for name, tensor in state.items() if name not in own},
        mismatching={
            name: (tuple(state[name].shape), tuple(tensor.shape))
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        },
    )


def _few(title: str, shown: list[str]) -> str:
    return f"{title} ({', '.join(shown[:SHOWN])}{', …' if len(shown) > SHOWN else ''})"
