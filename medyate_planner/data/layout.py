"""Which images belong to which split and class, from their paths alone. Shared by folders and tars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from medyate_planner.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_NAMES = ("test", "val", "valid", "validation")

Parts = tuple[str, ...]
Classes = Mapping[str, tuple[str, ...]]  # class name -> paths of its images, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Images by split and class; `test` is None where one has to be split off."""

    train: Classes
    test: Classes | None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.train)


def read_layout(files: Iterable[str], folders: Iterable[str], *, where: str) -> Layout:
    """Sort paths into splits and classes.

    `train/CLASS/image` beside `test/` or `val/`, or `CLASS/image` alone, perhaps all under one top folder.
    Hidden files are left out; an image may lie deeper than its class folder.

    Raises:
        InputError: no images, an empty class folder, a single class, or a test set with other classes.
    """
    images = {parts: path for parts, path in _split_paths(files) if _is_image(parts)}
    if not images:
        raise InputError(f"{where}: no images found; expected train/CLASS/*.jpg and test/CLASS/*.jpg or CLASS/*.jpg")
    directories = {parts for parts, _ in _split_paths(folders)}
    while (top := _top_folder(images)) is not None:
        images = {parts[1:]: path for parts, path in images.items()}
        directories = {parts[1:] for parts in directories if parts[0] == top and len(parts) > 1}
    splits = {parts[0] for parts in images if len(parts) > 2} | {parts[0] for parts in directories}
    if "train" not in splits:
        return Layout(train=_classes(images, directories, (), where), test=None)
    train = _classes(images, directories, ("train",), where)
    test_name = next((name for name in TEST_NAMES if name in splits), None)
    if test_name is None:
        return Layout(train=train, test=None)
    test = _classes(images, directories, (test_name,), where)
    _check_same_classes(train, test, f"{where}: {test_name}/")
    return Layout(train=train, test=test)


def _split_paths(paths: Iterable[str]) -> Iterable[tuple[Parts, str]]:
    for path in paths:
        parts = tuple(part for part in PurePosixPath(path).parts if part not in (".", "/"))
        if parts and not any(part.startswith(".") for part in parts):
            yield parts, path


def _is_image(parts: Parts) -> bool:
    return PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def _top_folder(images: Mapping[Parts, str]) -> str | None:
    """The folder all images share, unless it may be a class or a split itself."""
    tops = {parts[0] for parts in images}
    top = next(iter(tops))
    is_outer = len(tops) == 1 and min(len(parts) for parts in images) > 2 and top != "train"
    return top if is_outer else None


def _classes(images: Mapping[Parts, str], directories: set[Parts], prefix: Parts, where: str) -> Classes:
    depth = len(prefix)
    found: dict[str, list[str]] = {
        parts[depth]: [] for parts in directories if len(parts) == depth + 1 and parts[:depth] == prefix
    }
    for parts, path in sorted(images.items()):
        if parts[:depth] == prefix and len(parts) > depth + 1:
            found.setdefault(parts[depth], []).append(path)
    split = "".join(f"{part}/" for part in prefix)
    empty = sorted(name for name, paths in found.items() if not paths)
    if empty:
        raise InputError(f"{where}: the class folder {split}{empty[0]} holds no images; fill or remove it")
    if len(found) < 2:
        names = f"only {next(iter(found))!r}" if found else "none"
        raise InputError(f"{where}: expected at least two class folders in {split or 'it'}, found {names}")
    return {name: tuple(found[name]) for name in sorted(found)}


def _check_same_classes(train: Classes, test: Classes, where: str) -> None:
    for names, text in ((set(test) - set(train), "has"), (set(train) - set(test), "lacks")):
        if names:
            raise InputError(f"{where} {text} {_few(sorted(names))}; its classes must be those of train/")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
