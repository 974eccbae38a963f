"""Files on disk: written whole or not at all, never overwritten by accident."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from medyate_planner.errors import InputError, closest


def write_atomic(path: Path, write: Callable[[Path], None], *, force: bool = True) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it; on any failure, or a loss of power, `path` is
    as before.

    Raises:
        InputError: the file exists and `force` is not set, or its folder can not be written.
    """
    check_target(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: can not be written: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        flush(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # not every file system can: the file is there all the same
            flush(path.parent)
    except (OSError, SafetensorError) as error:  # the latter: a full disk as the writer of tensors says it
        raise InputError(f"{path}: can not be written: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_target(path: Path, *, force: bool) -> None:
    """Raise `InputError` where no file may be written: one is there and `force` is not set, or it is no file at all."""
    if path.exists() and not path.is_file():
        what = "a folder; pass a file name" if path.is_dir() else "no ordinary file; pass the name of one"
        raise InputError(f"{path}: can not be written: it is {what} to -o")
    if path.exists() and not force:
        raise InputError(f"{path} exists; pass --force to overwrite it, or another -o")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a loss of power."""
    if os.name == "nt":  # only a handle for writing can be flushed there, and none of a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, force: bool = True) -> Path:
    """Write text in UTF-8, whole or not at all."""
    return write_atomic(path, lambda temporary: _put(temporary, text), force=force)


def read_text(path: Path, *, what: str) -> str:
    """Read a text file; a missing or unreadable one is an `InputError` that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{what} {path}: no such file{nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path}: can not be read: {error}") from error


def nearby(path: Path) -> str:
    """`; did you mean a.json?` for a file or folder that is not there but for a slip of the pen; else nothing."""
    try:
        names = sorted(other.name for other in path.parent.iterdir())
    except OSError:
        return ""
    return "".join(f"; did you mean {path.with_name(name)}?" for name in closest(path.name, names, count=1))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """What the system says, in a line (a writer of tensors gives no `strerror`), and what helps where it is full."""
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    is_full = any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return f"{text}; make room there, or write to another place" if is_full else text


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
