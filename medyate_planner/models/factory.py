"""A function of the user's, named as `package.module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from medyate_planner.errors import InputError


def import_factory(spec: str, *, what: str = "model") -> Callable[..., Any]:
    """Import the function a spec names; its name may be dotted (`module:Class.method`).

    While it is read, it can import from the working directory (a module) or its own directory (a file).

    Raises:
        InputError: no such file, module or function, or an error while the module was read.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(f"{what} {spec!r}: expected package.module:factory or path/to/file.py:factory")
    module = _import_file(spec, Path(place), what) if place.endswith(".py") else _import_module(spec, place, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{what} {spec!r}: {place} has no {name!r}; it has {_public_names(module)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{what} {spec!r}: {name!r} is a {type(found).__name__}, not a function to call")
    return found  # type: ignore[no-any-return]


def call_factory(factory: Callable[..., Any], *args: Any, spec: str, what: str = "model") -> Any:
    """Call a user's factory; whatever it raises becomes an `InputError` of one line."""
    try:
        return factory(*args)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} {spec!r}: the factory raised {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """`TypeError: the first line of its text`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _import_module(spec: str, place: str, what: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise InputError(f"{what} {spec!r}: can not import {place!r} ({first_line(error)})") from error


def _import_file(spec: str, path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{what} {spec!r}: there is no file {path} (looked in {Path.cwd()})")
    name = f"medyate_factory_{path.stem}_{abs(hash(path.resolve())):x}"
    module_spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look it up while it runs
    with _importable(path.resolve().parent):
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{what} {spec!r}: reading {path} raised {first_line(error)}") from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _public_names(module: ModuleType) -> str:
    names = [name for name in vars(module) if not name.startswith("_")]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing public"
