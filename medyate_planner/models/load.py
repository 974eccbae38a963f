"""From a model spec to a model that can be traced and trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.models import hubs
from medyate_planner.models.factory import call_factory, first_line, import_factory
from medyate_planner.models.head import ADVICE, count_outputs, find_head, out_features, resize_head, run_fake
from medyate_planner.models.hubs import Found
from medyate_planner.models.preprocessing import Preprocessing, default_preprocessing
from medyate_planner.models.weights import Fit, compare, read_weights, zoo_weights
from medyate_planner.models.zoo import ZOO, ZOO_PREPROCESSING, build_zoo_model
from medyate_planner.summary import the_head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HUBS = ("torchvision", "timm")
FORMS = f"{', '.join(ZOO)}, torchvision:NAME, timm:NAME, hf:DIR, package.module:factory or path/to/file.py:factory"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model in eval mode, and what is known about it.

    `input_shape` is without the batch, (C, H, W) for images; for any other input `preprocessing` is None.
    `num_classes` is K of an output (N, K), else None. `head_module` names the head if a new one was made.
    `note` says who else has a model of a bare name; `own_shape` is what the model itself says of its input.
    """

    model: nn.Module
    spec: str
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    num_classes: int | None
    head_module: str | None
    weights_source: str
    note: str | None = None
    own_shape: tuple[int, ...] | None = None


def load_model(
    spec: str,
    *,
    weights: Path | str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    head: str | None = None,
    require_weights: bool = False,
    allocate: bool = True,
) -> LoadedModel:
    """Build the model a spec names, fill it with weights and, for another `num_classes`, give it a new head.

    Without `weights` a zoo network takes its pre-trained ones if they are found (`assets_dir`), else random
    ones from `seed`; `weights_source` says which. Image models come in channels_last memory format. The
    caller's random state is untouched. With `allocate=False` a model of a library or the zoo comes on the meta
    device, without memory or weights, if it can be built there.

    Raises:
        InputError: an unknown name, a missing package, a factory or file that does not do, weights that do
            not fit, an unknown input shape, or no head to replace.
    """
    _check_options(num_classes, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        named = spec
        spec, (model, own_shape, preprocessing) = _build(spec) if allocate else _build_on_meta(spec)
        shape, preprocessing = _settle_input(spec, input_shape or own_shape, preprocessing)
        model.eval()
        allocated = not any(parameter.is_meta for parameter in model.parameters())
        path = Path(weights) if weights is not None else zoo_weights(spec) if spec in ZOO and allocated else None
        pattern = None if head == "none" else head
        request = _HeadRequest(shape=shape, num_classes=num_classes, pattern=pattern, seed=seed)
        head_module = _fill(model, path, request, spec)
        head_module = _replace_head(model, request) or head_module
        model.to(DTYPES[dtype])
        _to_channels_last(model, shape)
        counted = count_outputs(model, shape) if allocated and num_classes is None else None
        outputs = counted if num_classes is None else num_classes
    return LoadedModel(
        model=model,
        spec=spec,
        input_shape=shape,
        preprocessing=preprocessing,
        num_classes=outputs,
        head_module=head_module,
        weights_source=_weights_source(spec, path, seed, require_weights) if allocated else "none needed",
        note=None if spec == named else _others_of(named, spec),
        own_shape=own_shape,
    )


def parse_shape(text: str, *, what: str = "--input-shape") -> tuple[int, ...]:
    """Read `3x128x128` (a batch of one left out), any number of dimensions.

    Raises:
        InputError: not positive whole numbers joined by x.
    """
    if not re.fullmatch(r"[1-9][0-9]*(?:[xX×,][1-9][0-9]*)*", text.strip()):
        raise InputError(f"{what} {text!r}: expected positive whole numbers joined by x, such as 3x128x128")
    return tuple(int(side) for side in re.split(r"[xX×,]", text.strip()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeadRequest:
    shape: tuple[int, ...]
    num_classes: int | None
    pattern: str | None
    seed: int


def _check_options(num_classes: int | None, dtype: str) -> None:
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r}: expected {' or '.join(DTYPES)}")
    if num_classes is not None and num_classes < 1:
        raise InputError(f"--num-classes {num_classes}: expected at least 1")


def _build(spec: str) -> tuple[str, Found]:
    """The spec as it is to be written down (a bare name gets its hub), and the model with random weights."""
    if spec in ZOO:
        return spec, (build_zoo_model(spec), ZOO_PREPROCESSING.shape, ZOO_PREPROCESSING)
    kind, colon, name = spec.partition(":")
    if colon and kind == "hf":
        return spec, hubs.build_hf(name)
    if colon and kind in HUBS:
        return spec, _build_from_hub(kind, name)
    if colon:
        factory = import_factory(spec)
        model = call_factory(factory, spec=spec)
        if not isinstance(model, nn.Module):
            raise InputError(f"model {spec!r}: expected a torch.nn.Module, got a {type(model).__name__}")
        return spec, hubs.read_factory_model(model)
    if spec.endswith(".py"):
        raise InputError(f"model {spec!r}: say which function makes the model: {spec}:FACTORY")
    hub = next((hub for hub in HUBS if spec in hubs.known_names(hub)), None)
    if hub is None:
        raise _unknown_model(spec, spec, ("", *HUBS))
    return f"{hub}:{spec}", _build_from_hub(hub, spec)


def _others_of(name: str, spec: str) -> str | None:
    """Who else has a model of that bare name."""
    others = [f"{hub}:{name}" for hub in HUBS if f"{hub}:{name}" != spec and name in hubs.known_names(hub)]
    return f"there is {' and '.join(others)} too" if others else None


def _build_on_meta(spec: str) -> tuple[str, Found]:
    """As `_build`, on the meta device; a factory, and a model that can not be built there, as usual."""
    kind, colon, name = spec.partition(":")
    if colon and kind not in (*HUBS, "hf"):
        return _build(spec)
    try:
        with torch.device("meta"):
            return (spec, hubs.build_hf(name, read_weights=False)) if kind == "hf" else _build(spec)
    except InputError:
        return _build(spec)


def _build_from_hub(hub: str, name: str) -> Found:
    known = hubs.known_names(hub)
    if known and name.partition(".")[0] not in known:
        raise _unknown_model(f"{hub}:{name}", name, (hub,))
    try:
        return hubs.build_timm(name) if hub == "timm" else hubs.build_torchvision(name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model {hub}:{name}: {hub} could not build it ({first_line(error)})") from error


def _unknown_model(spec: str, name: str, places: tuple[str, ...]) -> InputError:
    names = {}
    for place in reversed(places):
        names.update({known: f"{place}:{known}" if place else known for known in _names_in(place)})
    close = [names[match] for match in get_close_matches(name, names, n=3, cutoff=0.6)]
    advice = f"did you mean {', '.join(close)}?" if close else f"expected {FORMS}"
    absent = [place for place in places if place and not _names_in(place)]
    if absent:
        advice += f" ({' and '.join(absent)} can not be imported; pip install 'medyate-planner[models]')"
    return InputError(f"model {spec!r} is not known; {advice}", spec=spec, close_matches=close)


def _names_in(place: str) -> tuple[str, ...]:
    return hubs.known_names(place) if place else tuple(ZOO)


def _settle_input(
    spec: str, shape: tuple[int, ...] | None, preprocessing: Preprocessing | None
) -> tuple[tuple[int, ...], Preprocessing | None]:
    if shape is None:
        raise InputError(f"model {spec!r} does not say what input it takes; pass it, such as --input-shape 3x128x128")
    if not shape or min(shape) < 1:
        raise InputError(f"input shape {shape}: expected positive numbers, such as 3x128x128")
    if len(shape) != 3:
        return shape, None
    return shape, preprocessing.resized(shape) if preprocessing else default_preprocessing(shape)


def _fill(model: nn.Module, path: Path | None, request: _HeadRequest, spec: str) -> str | None:
    """Load the weights; where only the head's number of classes differs, make the file's head first."""
    if path is None:
        return None
    state = read_weights(path)
    fit, head = compare(model, state), None
    if fit.mismatching and not (fit.missing or fit.unexpected):
        head = _head_of_file(model, fit, request, path)
        if head is not None:
            resize_head(model, head, state[f"{head}.weight"].shape[0], seed=request.seed)
            fit = compare(model, state)
    if not fit.is_exact:
        raise InputError(f"weights {path} do not fit {spec}: {fit.describe()}")
    _copy(model, state)
    return head


def _head_of_file(model: nn.Module, fit: Fit, request: _HeadRequest, path: Path) -> str | None:
    """Name of the head if it is all that differs, and only in its number of classes."""
    layers = {name.rpartition(".")[0] for name in fit.mismatching}
    only_rows = all(file[1:] == own[1:] for file, own in fit.mismatching.values())
    if len(layers) != 1 or not only_rows or f"{next(iter(layers))}.weight" not in fit.mismatching:
        return None
    head = find_head(model, request.shape, pattern=request.pattern)
    if layers != {head}:
        return None
    if request.num_classes is None:
        rows = fit.mismatching[f"{head}.weight"][0][0]
        raise InputError(f"weights {path}: {the_head([head])} has {rows} classes there; pass --num-classes {rows}")
    return head


def _copy(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(state, strict=False)


def _replace_head(model: nn.Module, request: _HeadRequest) -> str | None:
    """Make a new head of `num_classes` outputs unless the present one has as many; its name if made."""
    if request.num_classes is None:
        return None
    head = find_head(model, request.shape, pattern=request.pattern)
    if out_features(model.get_submodule(head)) == request.num_classes:
        return None
    resize_head(model, head, request.num_classes, seed=request.seed)
    try:
        _, outputs = run_fake(model, request.shape)
    except Exception as error:
        raise InputError(
            f"with {request.num_classes} outputs in {head} the model fails: {first_line(error)}; {ADVICE}"
        ) from error
    if outputs is not None and request.num_classes not in outputs[1:]:
        raise InputError(f"with {request.num_classes} outputs in {head} the model gives {list(outputs)}; {ADVICE}")
    return head


def _to_channels_last(model: nn.Module, shape: tuple[int, ...]) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    has_conv = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if len(shape) == 3 and has_conv and all(tensor.dim() != 5 for tensor in tensors):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _weights_source(spec: str, path: Path | None, seed: int, required: bool) -> str:
    if path is not None:
        return str(path)
    kind, _, name = spec.partition(":")
    if kind == "hf" and hubs.has_hf_weights(name):
        return name
    if kind in (*HUBS, "hf") or spec in ZOO:
        if required:
            raise InputError(
                f"model {spec}: pre-trained weights are needed and none were found; pass --weights FILE"
                + (" or set MEDYATE_ASSETS" if spec in ZOO else "")
            )
        return f"random initialisation (seed {seed})"
    return "as the factory made them"
