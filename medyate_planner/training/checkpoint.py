"""The checkpoint file: weights, optimizer, sampler and random state as tensors of one safetensors file.

Names that begin with a dot are not the model's: `.optimizer/…`, `.sampler/…`, `.rng/…`. The progress is JSON in the
metadata. The file is written beside the last one and renamed, so that one whole checkpoint is there at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic
from medyate_planner.training.progress import Checkpoint, Progress

_OPTIMIZER, _SAMPLER, _RANDOM = ".optimizer/", ".sampler/", ".rng/"  # no parameter's name begins with a dot


def write_checkpoint(path: Path, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Write the model's weights and what else a run needs to go on."""
    state = weights_of(model)
    for prefix, tensors in (
        (_OPTIMIZER, checkpoint.optimizer),
        (_SAMPLER, checkpoint.sampler),
        (_RANDOM, checkpoint.random),
    ):
        state |= {prefix + name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    progress = json.dumps(checkpoint.progress.to_dict(), allow_nan=False)
    _write(path, state, {"progress": progress})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Checkpoint]:
    """The weights, and the rest.

    Raises:
        InputError: not a whole checkpoint of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress.from_dict(json.loads((file.metadata() or {})["progress"]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"checkpoint {path}: can not be read ({error}); start over with --force") from error
    optimizer, sampler, random = (_taken(state, prefix) for prefix in (_OPTIMIZER, _SAMPLER, _RANDOM))
    return state, Checkpoint(progress=progress, optimizer=optimizer, sampler=sampler, random=random)


def _taken(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): state.pop(name) for name in sorted(state) if name.startswith(prefix)}


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the weights alone, under the user's own parameter names."""
    _write(path, weights_of(model), {"format": "pt"})


def _write(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    def save(temporary: Path) -> None:
        try:
            save_file(dict(state), temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, for instance
            raise OSError(str(error)) from error

    write_atomic(path, save)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name; tensors under several names are stored once, under the first."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    return state


@torch.no_grad()
def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights saved by `weights_of` into the model, in place."""
    own = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise InputError(f"weights: {name} of shape {tuple(tensor.shape)} does not fit the model")
        own[name].copy_(tensor)
