"""An imported Sparse Update scheme: the last biases, and a fraction of some convolutions' channels, for good."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medyate_planner.errors import InputError
from medyate_planner.graph import Layer
from medyate_planner.memory.accounting import SparseUpdateScheme, convolutions
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import require_fit
from medyate_planner.planning.request import PlanRequest


def sparse_update(request: PlanRequest) -> Decision:
    """The scheme of `settings.scheme`: int(C * ratio) channels of each convolution it names, those with the largest
    L2 norm of the pre-trained weights, and the biases of the last n_bias convolutions.

    Without `request.magnitudes` the first channels are taken. Equal norms: the first.

    Raises:
        InfeasibleBudgetError: the scheme does not fit; it costs what it costs.
        ContradictionError: it breaks a side constraint.
        InputError: there is no scheme, or it is another model's.

    Source: Sparse Update (arXiv 2206.15472).
    Limits: the paper folds norms into convolutions. Where a convolution has no bias of its own, the bias of the norms
        that read its output stands in; where there is none either, nothing does.
    """
    scheme = request.settings.scheme
    if scheme is None:
        raise InputError("strategy sparse-update needs a scheme: pass --scheme FILE")
    scheme.check(request.memory.graph)
    layers = request.memory.graph.layer_by_name
    counts = {name: int(layers[name].channels * ratio) for name, ratio in scheme.ratios.items()}
    chosen = {name: _largest(request, layers[name], count) for name, count in counts.items() if count}
    updates = request.updates({name: len(found) for name, found in chosen.items()}, _biases(request, scheme))
    require_allowed(request, updates, strategy="sparse-update")
    require_fit(request, updates, spent_on="the channels and biases of the scheme")
    return Decision(
        updates=updates,
        strategy="sparse-update",
        status="optimal",
        sampling={"method": "fixed", "channels": chosen, "boost": 0.0},
    )


def _largest(request: PlanRequest, layer: Layer, count: int) -> tuple[int, ...]:
    if request.magnitudes is None:
        return tuple(range(count))
    order = np.argsort(-request.magnitudes.energy[layer.name], kind="stable")
    return tuple(sorted(int(c) for c in order[:count]))


def _biases(request: PlanRequest, scheme: SparseUpdateScheme) -> frozenset[str]:
    known = convolutions(request.memory.graph)
    return frozenset(name for layer in known[len(known) - scheme.n_bias :] for name in _bias_units(request, layer))


def _bias_units(request: PlanRequest, layer: Layer) -> Iterator[str]:
    """The convolution itself, or the norms that read its output directly."""
    if layer.bias is not None:
        yield layer.name
        return
    graph = request.memory.graph
    for norm in graph.norms:
        if norm.bias is not None and any(graph.op_by_name[site].operands[0] in layer.sites for site in norm.sites):
            yield norm.name
