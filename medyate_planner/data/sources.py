"""Where images come from: files, members of a tar, rows of an array. Nothing is extracted to disk."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from medyate_planner.errors import InputError
from medyate_planner.files import nearby
from medyate_planner.models.factory import first_line

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
BLOCK_BYTES = 512  # of a tar


class ImageSource(Protocol):
    """Images by index; picklable, no open handles, so that loader workers can share it."""

    def open(self, index: int) -> Image.Image:
        """Decode image `index` in its own mode and size."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileImages:
    """Image files below a folder."""

    folder: Path
    names: tuple[str, ...]

    def open(self, index: int) -> Image.Image:
        return decode(lambda: (self.folder / self.names[index]).read_bytes(), str(self.folder / self.names[index]))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarImages:
    """Members of a tar: their place in the file, or their bytes if the tar is compressed."""

    path: Path
    names: tuple[str, ...]
    members: tuple[tuple[int, int] | bytes, ...]

    def open(self, index: int) -> Image.Image:
        return decode(lambda: self._read(index), f"{self.names[index]} in {self.path}")

    def __len__(self) -> int:
        return len(self.names)

    def _read(self, index: int) -> bytes:
        member = self.members[index]
        if isinstance(member, bytes):
            return member
        with self.path.open("rb") as file:
            file.seek(member[0])
            return file.read(member[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayImages:
    """Rows of a uint8 array (N, H, W) or (N, H, W, C)."""

    array: Any

    def open(self, index: int) -> Image.Image:
        row = self.array[index]
        return Image.fromarray(row[..., 0] if row.ndim == 3 and row.shape[-1] == 1 else row)

    def __len__(self) -> int:
        return len(self.array)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarIndex:
    """What a tar holds: regular files (place or bytes) and folders. Links and devices are left out."""

    path: Path
    files: Mapping[str, tuple[int, int] | bytes]
    folders: tuple[str, ...]

    def images(self, names: Sequence[str]) -> TarImages:
        return TarImages(path=self.path, names=tuple(names), members=tuple(self.files[name] for name in names))


def decode(read: Callable[[], bytes], name: str) -> Image.Image:
    """Decode an image file's bytes; `name` says which one it is when they are damaged."""
    try:
        image = Image.open(io.BytesIO(read()))
        image.load()
    except Exception as error:
        raise InputError(f"image {name}: can not be read ({first_line(error)}); replace or remove it") from error
    return image


def list_folder(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of all files and of all folders below a folder, relative to it."""
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else f"there is no such folder{nearby(folder)}"
        raise InputError(f"data imagefolder:{folder}: {kind}")
    files: list[str] = []
    folders: list[str] = []
    for root, names, leaves in os.walk(folder, followlinks=True):
        inside = Path(root).relative_to(folder)
        folders += [(inside / name).as_posix() for name in names]
        files += [(inside / leaf).as_posix() for leaf in leaves]
    return tuple(files), tuple(folders)


def index_tar(path: Path) -> TarIndex:
    """Read a tar's table of contents.

    Raises:
        InputError: no such file, not a tar, or one that breaks off (also where only the end mark is missing).
    """
    if not path.is_file():
        raise InputError(f"data tar:{path}: there is no such file{nearby(path)}")
    with path.open("rb") as file:
        is_compressed = file.read(6).startswith(COMPRESSED)
    files: dict[str, tuple[int, int] | bytes] = {}
    folders: list[str] = []
    try:
        with tarfile.open(path, "r:*" if is_compressed else "r:") as tar:
            for member in tar:
                if member.isdir():
                    folders.append(member.name)
                elif member.isreg() and not member.issparse():
                    files[member.name] = (
                        _member_bytes(tar, member) if is_compressed else (member.offset_data, member.size)
                    )
            _check_end(tar)
    except Exception as error:
        raise InputError(f"data tar:{path}: not a tar, or truncated ({first_line(error)})") from error
    return TarIndex(path=path, files=files, folders=tuple(folders))


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} breaks off")
    return data


def _check_end(tar: tarfile.TarFile) -> None:
    """A whole tar ends with blocks of zeros; one cut between two members looks fine otherwise."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
        raise tarfile.ReadError("the end mark is missing")
