"""Train the last layers in full: the usual way to save memory in fine-tuning."""

from __future__ import annotations

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.filling import longest
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import fits, require_fit
from medyate_planner.planning.request import PlanRequest


def last_k(request: PlanRequest) -> Decision:
    """The last k layers in full, with their biases and the biases of the norms after the first of them.

    k is `settings.last_layers`, else the largest that fits; with forced layers at least as many as reach the first of
    those. Layers are counted in order of first use, norms and the head are not.

    Raises:
        InfeasibleBudgetError: the fewest layers do not fit.
        ContradictionError: they break a side constraint.
        InputError: there are not that many layers.

    Source: a common baseline; "last 12 layers" of Sparse Update (arXiv 2206.15472).
    """
    layers = _layers(request)
    wanted = request.settings.last_layers
    if not layers or (wanted or 0) > len(layers):
        raise InputError(f"--last-layers {wanted or 1}: there are {len(layers)} layers beside the head to be updated")
    least = wanted or _reaching_forced(request, layers)
    smallest = _last(request, layers, least)
    require_allowed(request, smallest, strategy="last-k")
    require_fit(request, smallest, spent_on=f"the last {least} layer{'s' * (least > 1)} in full")
    most = least if wanted else len(layers)
    count = longest(most, lambda k: fits(request, _last(request, layers, k)), low=least)
    return Decision(
        updates=_last(request, layers, count),
        strategy="last-k",
        status="optimal" if wanted else "feasible",
        facts={"last_layers": count},
    )


def _layers(request: PlanRequest) -> list[Layer]:
    return [layer for layer in request.layers if layer.kind != "norm"]


def _reaching_forced(request: PlanRequest, layers: list[Layer]) -> int:
    return max((len(layers) - i for i, layer in enumerate(layers) if layer.name in request.forced), default=1)


def _last(request: PlanRequest, layers: list[Layer], count: int) -> Updates:
    chosen = {layer.name: request.most(layer) for layer in layers[-count:]}
    position = request.memory.graph.position
    first = position[layers[-count].sites[0]]
    biases = frozenset(
        unit.name
        for unit in request.biases
        if unit.name in chosen or (unit.kind == "norm" and position[unit.sites[0]] > first)
    )
    return request.updates(chosen, biases)
