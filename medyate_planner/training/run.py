"""The run folder: what a training leaves on disk, and from where it goes on after an interruption.

    run/plan.json  run/recipe.json  run/metrics.jsonl  run/selections.jsonl  run/checkpoint.safetensors
    run/model.safetensors   final weights under the user's own parameter names

Lines are appended before the checkpoint of their epoch is renamed into place; on resuming, lines of later epochs than
the checkpoint's are dropped. So whatever the moment of a kill, resuming gives what never stopping would have given.
With boosting the checkpoint also holds the sampler's state, as tensors `.sampler/…`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.files import read_text, write_atomic, write_text
from medyate_planner.planning.plan import Plan
from medyate_planner.training.loop import Epoch, Recipe

SCHEMA_VERSION = 1
_SAMPLER = ".sampler/"  # no name of a parameter or buffer begins with a dot
_FILES = (
    "plan.json",
    "recipe.json",
    "metrics.jsonl",
    "selections.jsonl",
    "checkpoint.safetensors",
    "model.safetensors",
)


class RunFolder:
    """Files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model_file(self) -> Path:
        """Final weights."""
        return self.path / "model.safetensors"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch."""
        return self.path / "metrics.jsonl"

    def start(self, plan: Plan, recipe: Recipe, facts: Mapping[str, Any], *, force: bool) -> None:
        """Make a fresh folder. Files of an earlier run are removed only with `force`, anybody else's never.

        Raises:
            InputError: it holds a run with progress and `force` is not set, or files of another origin, or can not be
                written.
        """
        self._check_place()
        taken = [name for name in _FILES if (self.path / name).exists()]
        ours = (self.path / "recipe.json").exists() and self.settings().get("kind") == "run"
        if taken and not ours:
            raise InputError(f"{self.path} holds {taken[0]}, which is not of a run of ours; pass another --out")
        if set(taken) - {"plan.json", "recipe.json"} and not force:
            raise InputError(
                f"{self.path} holds a run already; pass --resume to go on, --force to start over, or another --out"
            )
        for name in taken:
            (self.path / name).unlink()
        settings = {"schema_version": SCHEMA_VERSION, "kind": "run", "recipe": asdict(recipe), **facts}
        write_text(self.path / "recipe.json", json.dumps(settings, indent=2, allow_nan=False) + "\n")
        plan.save(self.path / "plan.json")

    def settings(self) -> dict[str, Any]:
        """What `start` wrote.

        Raises:
            InputError: the folder holds no run.
        """
        self._check_place()
        if not (self.path / "recipe.json").exists():
            raise InputError(f"{self.path} holds no run to go on with; leave out --resume to start one")
        text = read_text(self.path / "recipe.json", what="run")
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"run {self.path}: recipe.json is not complete JSON; remove it, or pass another --out"
            ) from error
        if not isinstance(found, dict):
            raise InputError(f"run {self.path}: recipe.json is not what a run writes; remove it, or pass another --out")
        return found

    def _check_place(self) -> None:
        for folder in (self.path, *self.path.parents):
            if folder.exists():
                if not folder.is_dir():
                    raise InputError(
                        f"{self.path}: can not be written: {folder} is a file, not a folder; pass another --out"
                    )
                return

    def resume(self, model: nn.Module) -> int:
        """Load the last checkpoint into the model and return the epoch to go on with (0 without a checkpoint)."""
        if not self._checkpoint.exists():
            self._keep_lines(0)
            return 0
        done, state = self._read_checkpoint()
        load_weights(model, {name: tensor for name, tensor in state.items() if not name.startswith(_SAMPLER)})
        self._keep_lines(done)
        return done

    def sampler(self) -> dict[str, Tensor]:
        """The sampler's state in the last checkpoint; empty without boosting, or without a checkpoint."""
        if not self._checkpoint.exists():
            return {}
        _, state = self._read_checkpoint()
        return {n.removeprefix(_SAMPLER): tensor for n, tensor in state.items() if n.startswith(_SAMPLER)}

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def _read_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        try:
            with safe_open(self._checkpoint, framework="pt") as file:
                done = int((file.metadata() or {})["epochs_done"])
                return done, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"checkpoint {self._checkpoint}: can not be read ({error}); start over with --force"
            ) from error

    def record(self, epoch: Epoch, model: nn.Module) -> None:
        """Append the epoch's lines, then save the checkpoint."""
        selection = {"epoch": epoch.metrics.epoch, "layers": {k: list(v) for k, v in epoch.selection.items()}}
        self._append("metrics.jsonl", epoch.metrics.to_dict())
        self._append("selections.jsonl", selection)
        metadata = {"epochs_done": str(epoch.metrics.epoch + 1)}
        sampler = {_SAMPLER + name: tensor for name, tensor in epoch.sampler.items()}
        self._save(self._checkpoint, model, metadata, sampler)

    def finish(self, model: nn.Module) -> Path:
        """Write the final weights."""
        self._save(self.model_file, model, {"format": "pt"})
        return self.model_file

    def metrics(self) -> list[dict[str, Any]]:
        """All epochs so far; a line that a kill cut off is left out, as `resume` does."""
        lines = []
        for line in read_text(self.metrics_file, what="metrics").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path / name}: can not be written: {error.strerror or error}") from error

    def _keep_lines(self, epochs: int) -> None:
        for name in ("metrics.jsonl", "selections.jsonl"):
            file = self.path / name
            if file.exists():
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs]
                write_text(file, "".join(lines))

    def _save(
        self, path: Path, model: nn.Module, metadata: dict[str, str], further: Mapping[str, Tensor] | None = None
    ) -> None:
        state = {**weights_of(model), **(further or {})}
        write_atomic(path, lambda temporary: save_file(state, temporary, metadata=metadata))


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
