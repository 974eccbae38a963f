"""Which distinct weights a graph uses, and which of them are its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import networkx as nx
from torch import nn

from medyate_planner.errors import InputError, did_you_mean
from medyate_planner.families import ADDMM, CONV, CONV_TRANSPOSE, EMBEDDING, LINEAR
from medyate_planner.graph import Layer, LayerKind, ModelGraph, Op
from medyate_planner.trace.fake import dtype_name


def find_layers(
    ops: Sequence[Op], parameters: Mapping[str, nn.Parameter], excluded: frozenset[int]
) -> tuple[Layer, ...]:
    """Distinct weights in order of first use. Two names of one tensor (tied weights) make one layer."""
    first_name: dict[int, str] = {}
    sites: dict[str, list[Op]] = {}
    for op in ops:
        if op.weight is not None and id(parameters[op.weight]) not in excluded:
            name = first_name.setdefault(id(parameters[op.weight]), op.weight)
            sites.setdefault(name, []).append(op)
    layers = []
    for weight, users in sites.items():
        parameter = parameters[weight]
        groups = _groups(users[0])
        bias = _own_bias(users, ops, parameters, excluded)
        layers.append(
            Layer(
                name=weight.removesuffix(".weight"),
                kind=_kind(users[0], tuple(parameter.shape), groups),
                weight=weight,
                weight_shape=tuple(parameter.shape),
                dtype=dtype_name(parameter),
                bias=bias,
                trainable=parameter.requires_grad,
                groups=groups,
                sites=tuple(op.name for op in users),
            )
        )
    return tuple(layers)


def find_norms(
    ops: Sequence[Op], parameters: Mapping[str, nn.Parameter], excluded: frozenset[int]
) -> tuple[Layer, ...]:
    """Distinct scales of norms in order of first use, by the rules of `find_layers`."""
    norms = [replace(op, weight=op.scale, bias=op.shift) for op in ops if op.scale is not None]
    scales = {id(parameters[op.scale]) for op in norms if op.scale is not None}
    shifts = {id(parameters[op.shift]) for op in norms if op.shift is not None}
    return find_layers(norms, parameters, excluded | (scales & shifts))


def _own_bias(
    users: Sequence[Op], ops: Sequence[Op], parameters: Mapping[str, nn.Parameter], excluded: frozenset[int]
) -> str | None:
    """The bias of a layer, if it is one that all its sites and nothing else use, and that the user did not freeze."""
    names = {op.bias for op in users}
    name = names.pop() if len(names) == 1 else None
    if name is None:
        return None
    parameter = parameters[name]
    own = {op.name for op in users}
    if parameter.dtype != parameters[str(users[0].weight)].dtype:  # what they cost is counted in one type
        return None
    elsewhere = any(op.bias and parameters[op.bias] is parameter and op.name not in own for op in ops)
    return None if elsewhere or id(parameter) in excluded or not parameter.requires_grad else name


def _groups(op: Op) -> int:
    groups = op.attributes.get("6", 1) if op.family in (CONV, CONV_TRANSPOSE) else 1
    assert isinstance(groups, int)
    return groups


def _kind(op: Op, weight_shape: tuple[int, ...], groups: int) -> LayerKind:
    if op.scale is not None:
        return "norm"
    if op.family == LINEAR:
        return "linear"
    if op.family == EMBEDDING:
        return "embedding"
    if op.family in (CONV_TRANSPOSE, ADDMM):
        return "transposed"
    if groups == 1:
        return "conv"
    return "depthwise" if weight_shape[1] == 1 else "grouped"


def find_head(graph: ModelGraph, pattern: str | None) -> tuple[str, ...]:
    """Names of the layers trained in full: those matching `pattern`, or the last ones, which feed no other layer.

    Raises:
        InputError: the pattern matches nothing.
    """
    if pattern == "none":
        return ()
    if pattern is not None:
        names = tuple(layer.name for layer in graph.layers if fnmatchcase(layer.name, pattern))
        if not names:
            known = [layer.name for layer in graph.layers]
            raise InputError(
                f"head pattern {pattern!r} matches no layer; {did_you_mean(pattern, known)}the last layers are "
                f"{', '.join(known[-3:])}; pass --head none for no head"
            )
        return names
    sites = {op.name for op in graph.ops if op.weight is not None and op.name in graph.feeds_output}
    last = {site for site in sites if sites.isdisjoint(nx.descendants(graph.flow, site))}
    return tuple(
        layer.name
        for layer in graph.layers
        if layer.trainable and (seen := sites.intersection(layer.sites)) and last.issuperset(seen)
    )
