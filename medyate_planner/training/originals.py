"""Weights as they were before planned training, on disk, so that it can be undone bit for bit and takes no memory."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

from torch import nn

from medyate_planner.errors import InputError


class Originals:
    """Parameters and buffers of a model in a temporary file, removed with this object."""

    def __init__(self, model: nn.Module) -> None:
        from safetensors.torch import save_file

        from medyate_planner.training.checkpoint import weights_of

        folder = tempfile.TemporaryDirectory(prefix="medyate-")
        self._file = Path(folder.name) / "originals.safetensors"
        self._remove = weakref.finalize(self, folder.cleanup)
        try:
            save_file(weights_of(model), self._file)
        except OSError as error:
            raise InputError(
                f"{folder.name}: the original weights can not be kept there: {error.strerror or error}; set TMPDIR to "
                "a folder with room, or do without undo"
            ) from error

    def restore(self, model: nn.Module) -> None:
        """Put everything back."""
        from safetensors.torch import load_file

        from medyate_planner.training.checkpoint import load_weights

        load_weights(model, load_file(self._file))
