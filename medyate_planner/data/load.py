"""From a data spec to a training and a test set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from medyate_planner.data.arrays import as_inputs, as_pictures, read_npz
from medyate_planner.data.datasets import AUGMENTATIONS, ArrayDataset, ImageDataset
from medyate_planner.data.layout import Classes, Layout, read_layout
from medyate_planner.data.sources import ArrayImages, FileImages, ImageSource, index_tar, list_folder
from medyate_planner.data.split import limit_samples, split_stratified
from medyate_planner.errors import InputError, did_you_mean
from medyate_planner.models.factory import call_factory, import_factory
from medyate_planner.models.preprocessing import Preprocessing

FORMS = "imagefolder:DIR, tar:FILE, npz:FILE, package.module:factory or path/to/file.py:factory"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataBundle:
    """Two map-style data sets of (input, target); `description` is one line for a person."""

    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int | None
    class_names: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    spec: str
    preprocessing: Preprocessing | None
    augment: str
    val_fraction: float
    seed: int
    limit: int | None

    def choose(self, train: Sequence[int], test: Sequence[int] | None) -> tuple[Sequence[int], Sequence[int]]:
        """Places of the training samples, and of the test samples in the same or the given test targets."""
        if test is None:
            kept, held = split_stratified(train, test_fraction=self.val_fraction, seed=self.seed)
        else:
            kept, held = tuple(range(len(train))), tuple(range(len(test)))
        origin = train if test is None else test
        few = limit_samples([train[place] for place in kept], limit=self.limit, seed=self.seed)
        few_held = limit_samples([origin[place] for place in held], limit=self.limit, seed=self.seed)
        return [kept[place] for place in few], [held[place] for place in few_held]


def load_data(
    spec: str,
    preprocessing: Preprocessing | None,
    *,
    augment: str = "none",
    val_fraction: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> DataBundle:
    """Open the data a spec names. Images are decoded when they are first asked for.

    Without a test set of its own, `val_fraction` of every class is split off. `limit` keeps that many samples
    of each set, evenly over the classes. Only the training set is augmented. `preprocessing` may be None for
    data that is not images.

    Raises:
        InputError: an unknown spec, files that are missing or damaged, or classes that do not do.
    """
    if augment not in AUGMENTATIONS:
        near = did_you_mean(augment, AUGMENTATIONS, count=1)
        raise InputError(f"--augment {augment!r}: {near}expected one of {', '.join(AUGMENTATIONS)}")
    request = _Request(
        spec=spec,
        preprocessing=preprocessing,
        augment=augment,
        val_fraction=val_fraction,
        seed=seed,
        limit=limit,
    )
    kind, colon, place = spec.partition(":")
    known = {"imagefolder": _load_folder, "tar": _load_tar, "npz": _load_npz}
    if colon and kind in known:
        return known[kind](Path(place).expanduser(), request)
    if not colon or kind in ("torchvision", "hf", "timm"):
        raise InputError(f"data {spec!r} is not known; expected {FORMS}{_hint(spec)}")
    return _load_factory(request)


def _hint(spec: str) -> str:
    path = Path(spec).expanduser()
    kinds = {".npz": "npz", ".tar": "tar", ".tgz": "tar", ".gz": "tar"}
    kind = "imagefolder" if path.is_dir() else kinds.get(path.suffix) if path.is_file() else None
    return f"; did you mean {kind}:{spec}?" if kind else ""


def _load_folder(folder: Path, request: _Request) -> DataBundle:
    layout = read_layout(*list_folder(folder), where=f"data {request.spec}")
    return _bundle_images(layout, lambda names: FileImages(folder=folder, names=tuple(names)), request)


def _load_tar(path: Path, request: _Request) -> DataBundle:
    index = index_tar(path)
    layout = read_layout(index.files, index.folders, where=f"data {request.spec}")
    return _bundle_images(layout, index.images, request)


def _bundle_images(
    layout: Layout, open_images: Callable[[Sequence[str]], ImageSource], request: _Request
) -> DataBundle:
    preprocessing = _needed(request)
    names, targets = _flatten(layout.train)
    test_names, test_targets = _flatten(layout.test) if layout.test is not None else (names, targets)
    kept, held = request.choose(targets, test_targets if layout.test is not None else None)
    train, test = (
        ImageDataset(
            open_images([names[place] for place in places]),
            [targets[place] for place in places],
            preprocessing,
            augment=augment,
            seed=request.seed,
        )
        for names, targets, places, augment in (
            (names, targets, kept, request.augment),
            (test_names, test_targets, held, "none"),
        )
    )
    return _describe(train, test, layout.class_names, request, preprocessing.describe())


def _flatten(classes: Classes) -> tuple[list[str], list[int]]:
    """Paths and class numbers, class after class."""
    names = [name for paths in classes.values() for name in paths]
    targets = [target for target, paths in enumerate(classes.values()) for _ in paths]
    return names, targets


def _load_npz(path: Path, request: _Request) -> DataBundle:
    arrays, where = read_npz(path), f"data {request.spec}"
    has_test = arrays.x_test is not None
    test_inputs, test_targets = (arrays.x_test, arrays.y_test) if has_test else (arrays.x_train, arrays.y_train)
    kept, held = request.choose(arrays.y_train.tolist(), test_targets.tolist() if has_test else None)
    sets: list[Dataset[Any]] = []
    for inputs, targets, places, augment in (
        (arrays.x_train, arrays.y_train, kept, request.augment),
        (test_inputs, test_targets, held, "none"),
    ):
        chosen, labels = inputs[list(places)], targets[list(places)].tolist()
        if inputs.dtype == "uint8" and inputs.ndim in (3, 4):
            source = ArrayImages(array=as_pictures(chosen, where))
            sets.append(ImageDataset(source, labels, _needed(request), augment=augment, seed=request.seed))
        else:
            values = as_inputs(chosen, request.preprocessing, where)
            sets.append(ArrayDataset(values, labels, augment=augment, seed=request.seed))
    is_raw = isinstance(sets[0], ImageDataset)
    text = _needed(request).describe() if is_raw else "values used as they are"
    return _describe(sets[0], sets[1], arrays.class_names, request, text)


def _load_factory(request: _Request) -> DataBundle:
    factory = import_factory(request.spec, what="data")
    arguments = (request.preprocessing,) if _wants_preprocessing(factory) else ()
    made = call_factory(factory, *arguments, spec=request.spec, what="data")
    if isinstance(made, DataBundle) and request.limit is None:
        return made
    sets: Any = (made.train, made.test) if isinstance(made, DataBundle) else made
    if not isinstance(sets, (tuple, list)) or len(sets) != 2 or not all(_is_map_style(part) for part in sets):
        raise InputError(
            f"data {request.spec!r}: expected a pair of map-style data sets (train, test) or a DataBundle, "
            f"got {type(made).__name__}"
        )
    train, test = (part if request.limit is None else Subset(part, _first_draw(len(part), request)) for part in sets)
    if isinstance(made, DataBundle):
        return _describe(train, test, made.class_names, request, "as the factory gives it", made.num_classes)
    names = tuple(str(name) for name in getattr(sets[0], "classes", ()))
    count = getattr(sets[0], "num_classes", None)
    count = count if isinstance(count, int) else None
    return _describe(train, test, names, request, "as the factory gives it", count)


def _first_draw(count: int, request: _Request) -> Sequence[int]:
    return limit_samples([0] * count, limit=request.limit, seed=request.seed)


def _wants_preprocessing(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return any(p.default is p.empty or p.name == "preprocessing" for p in positional[:1])


def _is_map_style(part: object) -> bool:
    return hasattr(part, "__getitem__") and hasattr(part, "__len__")


def _needed(request: _Request) -> Preprocessing:
    if request.preprocessing is None:
        raise InputError(f"data {request.spec}: these are images, and the model does not take images")
    return request.preprocessing


def _describe(
    train: Dataset[Any],
    test: Dataset[Any],
    class_names: tuple[str, ...],
    request: _Request,
    preprocessing: str,
    num_classes: int | None = None,
) -> DataBundle:
    count = len(class_names) or num_classes
    classes = f"{count} classes" if count else "an unknown number of classes"
    sizes = f"{len(train):,} training and {len(test):,} test samples"  # type: ignore[arg-type]
    augment = "" if request.augment == "none" else f"; augmented: {request.augment}"
    return DataBundle(
        train=train,
        test=test,
        num_classes=count,
        class_names=class_names,
        description=f"{request.spec}: {sizes} of {classes}; {preprocessing}{augment}",
    )
