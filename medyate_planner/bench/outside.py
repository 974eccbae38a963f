"""Ways to save memory that are not ours, in ordinary PyTorch: LoRA through peft, and checkpointed blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.utils.checkpoint import checkpoint

from medyate_planner.bench.setting import Setting
from medyate_planner.errors import InfeasibleBudgetError, InputError
from medyate_planner.training.baseline import measure_one_step

_FEWEST_BLOCKS = 2


class LoraSettings(BaseModel):
    """As peft names them, and as it sets them by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=8, gt=0)


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model with adapters: they and the head require gradients. `adapter_bytes` are there because we train."""

    model: nn.Module
    layers: tuple[str, ...]
    adapter_bytes: int


def adapt(setting: Setting, settings: LoraSettings, budget_bytes: int | None) -> Adapted:
    """A copy of the model with adapters in its last layers: as many as are measured to fit, or all without a budget.

    Layers are convolutions that are not grouped, and linear ones, the head apart, which is trained in full.

    Raises:
        InfeasibleBudgetError: not even the last layer's adapter fits.
        InputError: peft is not installed, or no layer can have an adapter.
    """
    graph = setting.subject.graph
    modules = dict(setting.subject.model.named_modules())
    layers = [layer.name for layer in graph.layers if layer.name not in graph.head and _adaptable(modules, layer.name)]
    if not layers:
        raise InputError(f"{setting.job.name}: LoRA: no layer that is linear, or a convolution without groups")
    if budget_bytes is None:
        return _adapted(setting, settings, layers)
    fits: Adapted | None = None
    low, high = 0, len(layers)  # the last `low` fit, the last `high + 1` do not
    while low < high:
        middle = (low + high + 1) // 2
        tried = _adapted(setting, settings, layers[-middle:])
        if _training_bytes(setting, tried) <= budget_bytes:
            low, fits = middle, tried
        else:
            high = middle - 1
    if fits is None:
        needed = _training_bytes(setting, _adapted(setting, settings, layers[-1:]))
        raise InfeasibleBudgetError(
            budget_bytes=budget_bytes,
            minimum_bytes=needed,
            scope="training",
            spent_on=f"the head and an adapter of {layers[-1]}",
        )
    return fits


def _adaptable(modules: dict[str, nn.Module], name: str) -> bool:
    module = modules.get(name)
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _adapted(setting: Setting, settings: LoraSettings, layers: list[str]) -> Adapted:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("LoRA needs peft; install it with: pip install 'medyate-planner[bench]'") from None
    model = copy.deepcopy(setting.subject.model)
    before = {id(parameter) for parameter in model.parameters()}
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model)
    adapters = [parameter for parameter in model.parameters() if id(parameter) not in before]
    heads = [dict(model.named_modules())[name] for name in setting.subject.graph.head]
    for module in heads:
        module.requires_grad_()
    return Adapted(model=model, layers=tuple(layers), adapter_bytes=sum(p.nbytes for p in adapters))


def _training_bytes(setting: Setting, adapted: Adapted) -> int:
    x, target = next(iter(setting.batches.train(0)))
    return measure_one_step(adapted.model, x, target, setting.subject.loss)[0] + adapted.adapter_bytes


def checkpoint_blocks(model: nn.Module) -> int:
    """Make the model compute its blocks again in backward, in place: the members of its longest chain of modules.
    Returns how many.

    Raises:
        InputError: it has no chain of two modules or more.
    """
    chains = [module for module in model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]
    longest = max(chains, key=len, default=None)
    if longest is None or len(longest) < _FEWEST_BLOCKS:
        raise InputError("checkpointing: expected a model with a Sequential or ModuleList of blocks")
    for block in longest:
        block.forward = partial(_again, block.forward)
    return len(longest)


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The reentrant form: what it saves, and what its second forward saves, goes through saved-tensor hooks."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=True)


def lora_settings(name: str, given: dict[str, Any]) -> LoraSettings:
    """What a contender says of LoRA.

    Raises:
        InputError: an unknown setting, or a value out of range.
    """
    try:
        return LoraSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"contender {name}: settings.{first['loc'][0]}: {first['msg']}") from error
