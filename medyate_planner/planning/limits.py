"""Does what a strategy trains keep what was asked beside the budget? For strategies that leave no choice."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from medyate_planner.errors import ContradictionError, InputError
from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.planning.request import PlanRequest


def require_allowed(request: PlanRequest, updates: Updates, *, strategy: str) -> None:
    """Raise unless these updates, the least that a strategy can train, keep every demand but the budget.

    Raises:
        ContradictionError: names the strategy and the demand that it can not meet.
        InputError: the strategy trains something that can not be trained.
    """
    for demand in _broken(request, updates, strategy):
        raise ContradictionError((f"--strategy {strategy}", demand))


def _broken(request: PlanRequest, updates: Updates, strategy: str) -> Iterator[str]:
    quotas = updates.quotas
    for name in sorted(request.forced - quotas.keys()):
        yield f"--force-layer {_pattern(request.force_layers, name)}"
    for_sale = {layer.name: layer for layer in request.layers}
    for name, quota in quotas.items():
        if name not in for_sale:
            yield _not_for_sale(request, name, f"strategy {strategy} trains layer {name}")
        else:
            yield from _broken_by_quota(request, for_sale[name], quota)
    with_bias = {layer.name for layer in request.biases}
    for name in sorted(updates.biases - with_bias):
        if not request.buy_biases:
            yield "--no-biases"
        yield _not_for_sale(request, name, f"strategy {strategy} trains the bias of {name}")
    if request.max_layers is not None and len(quotas) > request.max_layers:
        yield f"--max-layers {request.max_layers}"
    if request.max_flops is not None and request.flops.training(updates) > request.max_flops:
        yield f"--max-flops {request.max_flops}"


def _broken_by_quota(request: PlanRequest, layer: Layer, quota: int) -> Iterator[str]:
    if request.max_quota is not None and quota > request.max_quota:
        yield f"--max-quota {request.max_quota}"
    if quota % request.granularity:
        yield f"--granularity {request.granularity}"
    if quota < request.least(layer):
        yield f"--min-quota {request.min_quota}"


def _not_for_sale(request: PlanRequest, name: str, what: str) -> str:
    pattern = _pattern(request.forbid_layers, name)
    if pattern is not None:
        return f"--forbid-layer {pattern}"
    raise InputError(
        f"{what}, which can not be updated: it is the head, was frozen by the user, is not upstream of the loss, or "
        f"has fewer channels than the granularity {request.granularity}"
    )


def _pattern(patterns: tuple[str, ...], name: str) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
