"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from medyate_planner.data import DataBundle
    from medyate_planner.models import LoadedModel
    from medyate_planner.subject import Subject
    from medyate_planner.training.loop import Batches


_MORE = Parameter(group="Model and step")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to build the model."""

    weights: Path | None = None
    "Weights file: safetensors, or a torch file of tensors."
    num_classes: int | None = None
    "Give the model a new head of this many classes."
    input_shape: str | None = None
    "Shape of one input, such as 3x128x128."
    batch_size: int = 8
    "Samples in one training step; all figures are for it."
    head: Annotated[str | None, _MORE] = None
    "Pattern of the layer to train in full, or 'none'."
    dtype: Annotated[str, _MORE] = "float32"
    "float32 or bfloat16."
    loss: Annotated[str, _MORE] = "cross-entropy"
    "cross-entropy, next-token, mse, or module:factory."
    dropout: Annotated[str, _MORE] = "off"
    "off or keep, during training."
    device: Annotated[str, _MORE] = "cpu"
    "Where the model is trained, and predictions are made for."
    seed: Annotated[int, _MORE] = 0
    "Seed of everything random."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go."""

    json: Annotated[bool, Parameter(negative="")] = False
    "Machine output on stdout."
    force: Annotated[bool, Parameter(negative="")] = False
    "Overwrite files that exist."
    debug: Annotated[bool, Parameter(negative="")] = False
    "Show the traceback of an error."


@Parameter(name="*", group="Reading the data")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to read the data."""

    augment: str = "none"
    "none, flip, crop or flip+crop."
    val_fraction: float = 0.2
    "Share of each class for testing where the data has no test set."
    limit: int | None = None
    "Use this many samples of each set."
    workers: int = 0
    "Worker processes that load data."
    mean: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None
    "Mean of each channel, instead of the model's own."
    std: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None
    "Deviation of each channel, instead of the model's own."


def load(spec: str, options: ModelOptions, *, need_weights: bool = False, allocate: bool = True) -> LoadedModel:
    """Build the model an option set describes; without `allocate` on the meta device if it can be."""
    from medyate_planner.models import load_model, parse_shape

    check(options)
    return load_model(
        spec,
        weights=options.weights,
        num_classes=options.num_classes,
        input_shape=parse_shape(options.input_shape) if options.input_shape else None,
        dtype=options.dtype,
        seed=options.seed,
        head=None if options.head == "none" else options.head,
        require_weights=need_weights,
        allocate=allocate or options.weights is not None,
    )


def tell_model(loaded: LoadedModel, options: ModelOptions, *, with_input: bool = False) -> None:
    """Say which model this is, with which weights, and what was assumed of it."""
    from medyate_planner.cli.output import say

    shape = f", input {'x'.join(map(str, loaded.input_shape))}" if with_input else ""
    fresh = loaded.weights_source.startswith("random") and options.weights is None
    assumed = ", as no --weights FILE is given" if fresh else ""
    note = f" ({loaded.note})" if loaded.note else ""
    say(f"model: {loaded.spec}{note}{shape}, weights: {loaded.weights_source}{assumed}")


def make_example(loaded: LoadedModel, options: ModelOptions) -> Tensor:
    """One batch of the right shape for a loaded model."""
    from medyate_planner.models import example_input

    return example_input(loaded.model, loaded.input_shape, batch_size=options.batch_size)


def make_subject(loaded: LoadedModel, options: ModelOptions, **updating: Any) -> Subject:
    """Trace a loaded model; `updating`: mode, norm and autocast of `subject_of`."""
    from medyate_planner.subject import subject_of

    model = loaded.model.to(options.device)
    with judging_shape(loaded, options):
        return subject_of(
            model,
            make_example(loaded, options),
            loss=options.loss,
            head=options.head,
            dropout=options.dropout,
            device=options.device,
            **updating,
        )


@contextmanager
def judging_shape(loaded: LoadedModel, options: ModelOptions) -> Iterator[None]:
    """Where a model does not run on the shape that was asked for, say so, and which is its own."""
    from medyate_planner.errors import InputError, MedyateError, TraceError
    from medyate_planner.models.factory import first_line

    try:
        yield
    except TraceError as error:
        if options.input_shape is None or loaded.own_shape in (None, loaded.input_shape):
            raise
        cause: BaseException = error
        while isinstance(cause, MedyateError) and cause.__cause__ is not None:
            cause = cause.__cause__
        own = "x".join(map(str, loaded.own_shape or ()))
        raise InputError(
            f"--input-shape {options.input_shape}: {type(loaded.model).__name__} does not run on it "
            f"({first_line(cause)}); check the input shape: {loaded.spec} is made for {own}"
        ) from error


def check(options: ModelOptions) -> None:
    """Raise `InputError` for a value that no model could be built or traced with."""
    from medyate_planner.errors import InputError

    if options.batch_size < 1:
        raise InputError(f"--batch-size: expected 1 or more, got {options.batch_size}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed: expected 0 or more, and less than 2^63, got {options.seed}")
    if options.dropout not in ("off", "keep"):
        raise InputError(f"--dropout {options.dropout!r}: expected off or keep")
    check_device(options.device)


def check_device(name: str) -> None:
    """Raise `InputError` unless torch can train on this device here."""
    from medyate_planner.trace.capture import check_device as check_it

    check_it(name)


def check_output(path: Path | None, *, force: bool) -> None:
    """Raise `InputError` before any work is done for a file that could not be written in the end."""
    from medyate_planner.errors import InputError
    from medyate_planner.files import check_target

    if path is None:
        return
    check_target(path, force=force)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(
            f"{path}: can not be written: {nearest} is not a folder that may be written to; pass another -o"
        )


def read_data(spec: str, loaded: LoadedModel, options: DataOptions, seed: int) -> DataBundle:
    """Load a data set with the model's own preprocessing, and say which."""
    from dataclasses import replace

    from medyate_planner.cli.output import say
    from medyate_planner.data import load_data
    from medyate_planner.errors import InputError

    if options.workers < 0:
        raise InputError(f"--workers: expected 0 or more, got {options.workers}")
    if not 0 < options.val_fraction < 1:
        raise InputError(f"--val-fraction: expected a number between 0 and 1, got {options.val_fraction}")
    preprocessing = loaded.preprocessing
    if preprocessing is not None and (options.mean or options.std):
        preprocessing = replace(
            preprocessing,
            mean=options.mean or preprocessing.mean,
            std=options.std or preprocessing.std,
            source="--mean and --std",
        )
    bundle = load_data(
        spec,
        preprocessing,
        augment=options.augment,
        val_fraction=options.val_fraction,
        seed=seed,
        limit=options.limit,
    )
    if preprocessing is not None:
        say(f"preprocessing: {preprocessing.describe()}")
    say(f"data: {bundle.description}")
    return bundle


def batches_of(bundle: DataBundle, batch_size: int, *, seed: int, workers: int = 0) -> Batches:
    """As `data.batches.batches_of`."""
    from medyate_planner.data.batches import batches_of

    return batches_of(bundle, batch_size, seed=seed, workers=workers)


def check_classes(loaded: LoadedModel, bundle: DataBundle, advice: str = "pass --num-classes {}") -> None:
    """Raise `InputError` if the data has more classes than the model's head."""
    from medyate_planner.errors import InputError

    if bundle.num_classes and loaded.num_classes and bundle.num_classes > loaded.num_classes:
        raise InputError(
            f"the data has {bundle.num_classes} classes, the model's head {loaded.num_classes}; "
            + advice.format(bundle.num_classes)
        )
