"""Architectures of torchvision, timm and transformers. Nothing is ever downloaded."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from medyate_planner.errors import InputError
from medyate_planner.models.factory import first_line
from medyate_planner.models.preprocessing import (
    Preprocessing,
    default_preprocessing,
    preprocessing_from_config,
)

Shape = tuple[int, ...]
Found = tuple[nn.Module, Shape | None, Preprocessing | None]
DEFAULT_SIDE = 224
BICUBIC = 3  # PIL's number, as preprocessor_config.json writes it
HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def known_names(package: str) -> tuple[str, ...]:
    """Names of the architectures of `torchvision` or `timm`; empty when it can not be imported."""
    try:
        hub = importlib.import_module(package)
        models = importlib.import_module("torchvision.models") if package == "torchvision" else hub
        return tuple(models.list_models())
    except Exception:
        return ()


def build_torchvision(name: str) -> Found:
    """Build `torchvision:NAME` with random weights."""
    _import("torchvision", f"torchvision:{name}")
    from torchvision import models

    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # detection models would download it
    model: nn.Module = builder(**options)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    size = _pair(getattr(transforms, "crop_size", DEFAULT_SIDE))
    preprocessing = default_preprocessing((3, *size))
    if hasattr(transforms, "crop_size") and hasattr(transforms, "mean"):
        interpolation = getattr(getattr(transforms, "interpolation", None), "value", "bilinear")
        preprocessing = replace(
            preprocessing,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=interpolation if interpolation == "bicubic" else "bilinear",
            crop_ratio=min(1.0, min(size) / min(_pair(transforms.resize_size))),
            source="torchvision weights' transforms",
        )
    return model, preprocessing.shape, preprocessing


def build_timm(name: str) -> Found:
    """Build `timm:NAME` with random weights."""
    timm = _import("timm", f"timm:{name}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    preprocessing = preprocessing_from_config(_config_of(model), source="timm default_cfg")
    return model, preprocessing.shape if preprocessing else None, preprocessing


def build_hf(name: str, *, read_weights: bool = True) -> Found:
    """Build `hf:DIR`: the weights in the directory if there are any, else random ones for its config.json.

    The model returns its logits (or its last hidden state), not a dictionary.
    """
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model hf:{name}: nothing is downloaded here, and there is no {folder / 'config.json'}; "
            f"fetch the model first (hf download {name} --local-dir DIR) and pass hf:DIR"
        )
    transformers = _import("transformers", f"hf:{name}")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = _auto_class(transformers, config)
        if read_weights and has_hf_weights(name):
            model: nn.Module = auto.from_pretrained(folder, local_files_only=True)
        else:
            model = auto.from_config(config)
    except Exception as error:
        raise InputError(f"model hf:{name}: transformers could not build it ({first_line(error)})") from error
    model.register_forward_hook(_tensor_output)
    return (model, *_hf_input(config, folder))


def has_hf_weights(name: str) -> bool:
    """Say whether the directory of `hf:DIR` holds weights."""
    return any((Path(name).expanduser() / file).is_file() for file in HF_WEIGHTS)


def read_factory_model(model: nn.Module) -> Found:
    """What a model from a factory says about its own input: a timm-style configuration or `input_shape`."""
    config = _config_of(model)
    preprocessing = preprocessing_from_config(config, source="the model's default_cfg") if config else None
    shape = preprocessing.shape if preprocessing else getattr(model, "input_shape", None)
    if type(model).__module__.split(".")[0] == "efficientnet_lite_pytorch":
        side: Any = getattr(model, "input_image_size", None) or getattr(model, "_global_params").image_size  # noqa: B009
        preprocessing = Preprocessing(
            size=_pair(side),
            channels=3,
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            interpolation="bicubic",
            crop_ratio=0.875,
            source="efficientnet-lite",
        )
        shape = preprocessing.shape
    return model, tuple(shape) if shape is not None else None, preprocessing


def _import(package: str, spec: str) -> Any:
    advice = "pip install 'medyate-planner[models]'"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"model {spec}: the package {error.name} is not installed; {advice}") from error
    except Exception as error:
        raise InputError(f"model {spec}: importing {package} failed ({first_line(error)}); {advice}") from error


def _config_of(model: nn.Module) -> Mapping[str, Any]:
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if isinstance(config, Mapping) and config:
            return config
    return {}


def _pair(side: Any) -> tuple[int, int]:
    sides = tuple(side) if isinstance(side, (tuple, list)) else (side,)
    return int(sides[0]), int(sides[-1])


def _auto_class(transformers: Any, config: Any) -> Any:
    architecture = (getattr(config, "architectures", None) or [""])[0]
    for task in ("ImageClassification", "SequenceClassification", "CausalLM", "MaskedLM"):
        if architecture.endswith(task):
            return getattr(transformers, f"AutoModelFor{task}")
    image_models = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    known = not architecture and type(config) in image_models
    return transformers.AutoModelForImageClassification if known else transformers.AutoModel


def _hf_input(config: Any, folder: Path) -> tuple[Shape | None, Preprocessing | None]:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if channels is None:
        length = getattr(config, "max_position_embeddings", None)
        return ((min(128, int(length)),) if length else None), None
    shape = (int(channels), *_pair(size or DEFAULT_SIDE))
    fallback = default_preprocessing(shape)
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return shape, fallback
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return shape, replace(
            fallback,
            mean=tuple(data.get("image_mean") or fallback.mean),
            std=tuple(data.get("image_std") or fallback.std),
            interpolation="bicubic" if data.get("resample") == BICUBIC else "bilinear",
            source="hf preprocessor_config.json",
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"model hf:{folder}: {file.name} can not be read ({first_line(error)})") from error


def _tensor_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output
