"""Values per sample on disk: a file of rows for each value, written in the first epoch, read in those that follow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic, write_text
from medyate_planner.trace.fake import dtype_name

SCHEMA_VERSION = 1
_FACTS, _DONE = "prefix.json", "done.npy"
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Form of a batch of a value; its shape has a 0 for the batch."""

    dtype: str
    batch_axis: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    sample_bytes: int


class PrefixCache:
    """A folder of values by sample. What `commit` has not confirmed is made again after a kill.

    Args:
        folder: Made if it is not there; what it holds is used if it has the same fingerprint, and else removed.
        samples: Number of samples.
        sample_bytes: Bytes of all values of a sample, for the check of the disk.
        fingerprint: Of all that the values depend on.

    Raises:
        InputError: the folder is somebody else's, or the disk is too small.
    """

    def __init__(self, folder: Path, *, samples: int, sample_bytes: int, fingerprint: str) -> None:
        self.folder, self.samples, self.fingerprint = folder, samples, fingerprint
        self.needed_bytes = samples * sample_bytes
        self.was_stale = False
        self._layouts: dict[str, _Layout] = {}
        self._files: dict[str, Bytes] = {}
        self._done: NDArray[np.bool_] = np.zeros(samples, dtype=bool)
        if folder.exists() and not self._take_over():
            self.remove()
        if not folder.exists():
            self._check_space()
            self._write_facts()

    @property
    def count(self) -> int:
        """Number of samples of which all values are there."""
        return int(self._done.sum())

    def has(self, chosen: Sequence[int]) -> bool:
        """Whether all values of these samples are there."""
        return bool(self._done[list(chosen)].all())

    def names(self, beginning: str) -> list[str]:
        """The values whose name begins so, in the order in which they were first kept."""
        return [name for name in self._layouts if name.startswith(beginning)]

    def write(self, name: str, chosen: Sequence[int], value: Tensor, batch_axis: int = 0) -> bool:
        """Keep the values of a batch; False if they are not of the form of earlier ones, or have gaps in memory."""
        found = _rows_of(value, batch_axis)
        if found is None or self._layouts.setdefault(name, found[0]) != found[0]:
            return False
        self._file(name)[list(chosen)] = found[1]
        return True

    def confirm(self, chosen: Sequence[int]) -> None:
        """All values of these samples were written."""
        self._done[list(chosen)] = True

    def same(self, name: str, chosen: Sequence[int], value: Tensor, batch_axis: int = 0) -> bool:
        """Whether what is kept of these samples is this, bit for bit."""
        found = _rows_of(value, batch_axis)
        if found is None or self._layouts.get(name) != found[0]:
            return False
        return bool(np.array_equal(self._file(name)[list(chosen)], found[1]))

    def read(self, name: str, chosen: Sequence[int]) -> Tensor:
        """The values of a batch as they were: type, shape and order in memory; on the host."""
        layout = self._layouts[name]
        shape = [len(chosen) if axis == layout.batch_axis else size for axis, size in enumerate(layout.shape)]
        rows = torch.from_numpy(self._file(name)[list(chosen)])
        return rows.view(-1).view(getattr(torch, layout.dtype)).as_strided(shape, layout.strides)

    def commit(self) -> None:
        """What was confirmed is on disk, and found again by a later process."""
        for file in self._files.values():
            if isinstance(file, np.memmap):
                file.flush()
        self._write_facts()
        write_atomic(self.folder / _DONE, lambda temporary: _save(temporary, self._done))

    def remove(self) -> None:
        """Take the folder away."""
        self._files = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_over(self) -> bool:
        """Go on with what an earlier process left, if it is whole and for the same values."""
        try:
            facts = json.loads((self.folder / _FACTS).read_text(encoding="utf-8"))
            ours = facts["kind"] == "prefix"
        except (OSError, ValueError, KeyError, TypeError):
            ours, facts = self.folder.is_dir() and not any(self.folder.iterdir()), {}
        if not ours:
            raise InputError(f"{self.folder} is not of a run of ours; move it away, or pass another --out")
        expected = {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint, "samples": self.samples}
        self.was_stale = any(facts.get(key) != value for key, value in expected.items())
        if self.was_stale:
            return False
        try:
            self._done = np.load(self.folder / _DONE, allow_pickle=False)
            for name, entry in facts["layouts"].items():
                entry |= {"shape": tuple(entry["shape"]), "strides": tuple(entry["strides"])}
                self._layouts[name] = _Layout(**entry)
                size = self.samples * self._layouts[name].sample_bytes
                if self._path(name).stat().st_size != size:
                    raise ValueError("cut off")
            if self._done.shape != (self.samples,) or self._done.dtype != bool:
                raise ValueError("of another form")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._done, self._layouts = np.zeros(self.samples, dtype=bool), {}
            return False
        return True

    def _check_space(self) -> None:
        nearest = next(folder for folder in self.folder.absolute().parents if folder.exists())
        free_bytes = shutil.disk_usage(nearest).free
        if free_bytes < self.needed_bytes:
            raise InputError(
                f"--cache-prefix needs {self.needed_bytes:,} B on disk, and {nearest} has {free_bytes:,} B free; pass "
                "another --out, or leave it out"
            )

    def _write_facts(self) -> None:
        facts = {
            "schema_version": SCHEMA_VERSION,
            "kind": "prefix",
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            "layouts": {name: asdict(layout) for name, layout in self._layouts.items()},
        }
        write_text(self.folder / _FACTS, json.dumps(facts, indent=2) + "\n")

    def _path(self, name: str) -> Path:
        return self.folder / f"{list(self._layouts).index(name)}.bin"

    def _file(self, name: str) -> Bytes:
        if name not in self._files:
            path, shape = self._path(name), (self.samples, self._layouts[name].sample_bytes)
            try:
                self._files[name] = np.memmap(path, np.uint8, "r+" if path.exists() else "w+", shape=shape)
            except OSError as error:
                raise InputError(f"{path}: can not be written: {error.strerror or error}") from error
        return self._files[name]


def memory_order(value: Tensor, batch_axis: int) -> tuple[int, ...] | None:
    """The axes from the outermost in memory to the innermost, the batch first; None if that leaves gaps."""
    order = sorted(range(value.dim()), key=lambda axis: (axis != batch_axis, -int(value.stride()[axis]), axis))
    return tuple(order) if value.permute(order).is_contiguous() else None


def _rows_of(value: Tensor, batch_axis: int) -> tuple[_Layout, Bytes] | None:
    """The bytes of each sample, `(batch, sample_bytes)`, and the form they had; unseen by whoever measures."""
    with _disable_current_modes():
        order = memory_order(value, batch_axis)
        if order is None:
            return None
        rows = value.detach().permute(order).cpu().reshape(value.shape[batch_axis], -1).view(torch.uint8).numpy()
    shape = tuple(0 if axis == batch_axis else size for axis, size in enumerate(value.shape))
    layout = _Layout(
        dtype=dtype_name(value),
        batch_axis=batch_axis,
        shape=shape,
        strides=value.stride(),
        sample_bytes=rows.shape[1],
    )
    return layout, rows


def _save(path: Path, done: NDArray[np.bool_]) -> None:
    with path.open("wb") as file:
        np.save(file, done)
