"""The run folder: what a training leaves on disk, and from where it goes on after an interruption.

    run/plan.json  run/recipe.json  run/metrics.jsonl  run/selections.jsonl  run/checkpoint.safetensors
    run/model.safetensors   final weights under the user's own parameter names

Lines are on disk before the checkpoint that counts on them is renamed into place; on resuming, lines that are later
than the checkpoint are dropped. So whatever the moment of a kill, resuming gives what never stopping would have given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from medyate_planner.errors import InputError
from medyate_planner.files import flush, read_text, write_text
from medyate_planner.planning.plan import Plan
from medyate_planner.training.checkpoint import (
    load_weights,
    read_checkpoint,
    weights_of,
    write_checkpoint,
    write_weights,
)
from medyate_planner.training.progress import Checkpoint, Epoch, Progress
from medyate_planner.training.recipe import Recipe

__all__ = ["RunFolder", "load_weights", "weights_of"]
SCHEMA_VERSION = 1
_FILES = (
    "plan.json",
    "metrics.jsonl",
    "selections.jsonl",
    "checkpoint.safetensors",
    "model.safetensors",
    "recipe.json",
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

    @property
    def selections_file(self) -> Path:
        """One JSON object per interval."""
        return self.path / "selections.jsonl"

    @property
    def checkpoint_file(self) -> Path:
        """From where a run goes on."""
        return self.path / "checkpoint.safetensors"

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
        for name in taken:  # recipe.json, which tells that the folder is ours, comes last and is replaced
            if name != "recipe.json":
                (self.path / name).unlink()
        if ours:
            self._remove_parts()
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

    def plan(self, asked: Plan) -> Plan:
        """The plan that the run was started with; `asked` itself if a kill came before it was written."""
        file = self.path / "plan.json"
        if not file.exists() and not self.checkpoint_file.exists():
            asked.save(file)
        return Plan.load(file)

    def _check_place(self) -> None:
        for folder in (self.path, *self.path.parents):
            if folder.exists():
                if not folder.is_dir():
                    raise InputError(
                        f"{self.path}: can not be written: {folder} is a file, not a folder; pass another --out"
                    )
                return

    def resume(self, model: nn.Module) -> Checkpoint | None:
        """Load the last checkpoint's weights into the model, drop later lines, and return the rest; None without a
        checkpoint: the run has to begin anew.

        Raises:
            InputError: the checkpoint can not be read, or is another model's.
        """
        self._remove_parts()
        if not self.checkpoint_file.exists():
            self._keep_lines(Progress())
            return None
        weights, checkpoint = read_checkpoint(self.checkpoint_file)
        load_weights(model, weights)
        self._keep_lines(checkpoint.progress)
        return checkpoint

    def record(self, epoch: Epoch, model: nn.Module) -> None:
        """Append the epoch's line, then save the checkpoint at its end."""
        self._append(self.metrics_file, [epoch.metrics.to_dict()])
        self.save(epoch.checkpoint, model)

    def save(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        """Append the lines of what was drawn since the last checkpoint, then replace that by this one."""
        self._append(self.selections_file, [interval.to_dict() for interval in checkpoint.drawn])
        for file in (self.metrics_file, self.selections_file):
            if file.exists():
                flush(file)
        write_checkpoint(self.checkpoint_file, model, checkpoint)

    def finish(self, model: nn.Module) -> Path:
        """Write the final weights."""
        write_weights(self.model_file, model)
        return self.model_file

    def metrics(self) -> list[dict[str, Any]]:
        """All epochs so far; a line that a kill cut off is left out, as `resume` does."""
        return [line for _, line in _whole_lines(read_text(self.metrics_file, what="metrics"))]

    def selections(self) -> list[dict[str, Any]]:
        """All draws so far, none without their file; a line that a kill cut off is left out."""
        if not self.selections_file.exists():
            return []
        return [line for _, line in _whole_lines(read_text(self.selections_file, what="selections"))]

    def _append(self, file: Path, objects: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in objects)
        if not text:
            return
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise InputError(f"{file}: can not be written: {error.strerror or error}") from error

    def _keep_lines(self, at: Progress) -> None:
        """Drop lines of epochs and intervals that the checkpoint knows nothing of."""
        last = -1 if at.interval is None else at.interval
        for file, key, limit in ((self.metrics_file, "epoch", at.epoch - 1), (self.selections_file, "interval", last)):
            if file.exists():
                lines = _whole_lines(read_text(file, what="run"))
                write_text(file, "".join(text + "\n" for text, line in lines if line.get(key, limit + 1) <= limit))

    def _remove_parts(self) -> None:
        """Remove what kills left of files that were being written, by us or by safetensors."""
        ours = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))})\..*\.part|\.tmp\w{{6}}")
        for part in self.path.glob(".*"):
            if ours.fullmatch(part.name):
                part.unlink(missing_ok=True)


def _whole_lines(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Lines, as they are and as objects, up to the first that is not a whole one."""
    whole = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(found, dict):
            break
        whole.append((line, found))
    return whole
