"""Turn the traced FX graph into the one that trains: operators of the reach become lean sites, the rest stays."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from medyate_planner import families as f
from medyate_planner.errors import TraceError
from medyate_planner.graph import ModelGraph, Op
from medyate_planner.trace.casts import behind_cast, cast_of
from medyate_planner.trace.fake import operator_name
from medyate_planner.training import norms, passing
from medyate_planner.training.merge import merge_activations
from medyate_planner.training.slots import Slot
from medyate_planner.training.weighted import AddmmSite, ConvSite, EmbeddingSite, LinearSite, TransposedSite

_PASSING: Mapping[str, type[passing.PassingSite]] = {
    f.RELU: passing.ReluSite,
    f.CLAMP: passing.ClampSite,
    f.LEAKY_RELU: passing.LeakyReluSite,
    f.HARD_SIGMOID: passing.HardSigmoidSite,
    f.DROPOUT: passing.DropoutSite,
    f.BATCH_NORM: passing.BatchNormSite,
    f.MAX_POOL: passing.MaxPoolSite,
    f.AVG_POOL: passing.AvgPoolSite,
    f.ADAPTIVE_AVG_POOL: passing.AdaptiveAvgPoolSite,
}


def rewrite(
    module: fx.GraphModule,
    graph: ModelGraph,
    active: frozenset[str],
    slots: Mapping[str, Slot],
) -> fx.GraphModule:
    """A copy of `module` that shares its parameters, in which the operators named in `active` are lean.

    `slots` maps operator names (call sites) to the slot of their layer.
    """
    with warnings.catch_warnings():  # torch's own graph copy warns about a deprecation of its own
        warnings.simplefilter("ignore", FutureWarning)
        lean = fx.GraphModule(module, copy.deepcopy(module.graph))
    for name, tensor in _constants(module):
        if not hasattr(lean, name):
            setattr(lean, name, tensor)
    nodes = {node.name: node for node in lean.graph.nodes}
    for op in graph.ops:
        if op.family == f.BATCH_NORM_TRAIN:
            _use_statistics_of_batch(nodes[op.name])
        if op.name in active and (op.family in f.LEAN or op.name in slots):
            _replace(lean, nodes[op.name], op, slots.get(op.name))
    _cut_what_the_loss_ignores(lean, graph, active)
    merge_activations(lean)
    lean.graph.eliminate_dead_code()
    lean.recompile()
    return lean


def batch_counters(model: nn.Module, module: fx.GraphModule, graph: ModelGraph) -> list[torch.Tensor]:
    """The counters of batches that BatchNorms advance in training mode, of those that run so."""
    trained = {op.name for op in graph.ops if op.family == f.BATCH_NORM_TRAIN}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    means = [node.args[3] for node in module.graph.nodes if node.name in trained]
    names = [str(mean.target).removesuffix("running_mean") + "num_batches_tracked" for mean in means]
    return [buffers[name] for name in names if name in buffers]


def _cut_what_the_loss_ignores(lean: fx.GraphModule, graph: ModelGraph, active: frozenset[str]) -> None:
    """Operators that lead only to outputs the loss does not read must keep nothing: hand them detached values."""
    aside = {op.name for op in graph.ops if op.name not in graph.feeds_output}
    for node in list(lean.graph.nodes):
        if node.name not in aside:
            continue
        for source in [n for n in node.all_input_nodes if n.name.removeprefix("lean_") in active]:
            with lean.graph.inserting_before(node):
                cut = lean.graph.call_function(torch.ops.aten.detach.default, (source,))
            node.replace_input_with(source, cut)


def _use_statistics_of_batch(node: fx.Node) -> None:
    """`(x, scale, shift, mean, variance, training, …)`"""
    node.args = (*node.args[:5], True, *node.args[6:])


def _replace(lean: fx.GraphModule, node: fx.Node, op: Op, slot: Slot | None) -> None:
    if op.family in f.WEIGHTED:
        site, inputs = _weighted_site(node, op)
        site.slot = slot
    elif slot is not None and op.scale is not None:
        site, inputs = _norm_site(node, op)
        site.slot = slot
    elif op.family == f.BATCH_NORM:
        site, inputs = passing.BatchNormSite(node.target, tuple(node.args[5:]), False), tuple(node.args[:5])
    else:
        site, inputs = _passing_site(node, op)
    name = f"lean_{op.name}"
    lean.add_submodule(name, site)
    with lean.graph.inserting_before(node):
        replacement = lean.graph.call_module(name, inputs)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    lean.graph.erase_node(node)


def _weighted_site(node: fx.Node, op: Op) -> tuple[Any, tuple[Any, ...]]:
    """A layer's site, and its inputs with the parameters themselves in place of what autocast makes of them."""
    site: Any
    if op.family == f.EMBEDDING:
        return EmbeddingSite(tuple(node.args[2:])), tuple(node.args[:2])
    if op.family == f.CONV:
        site, inputs = _conv_site(node)
    elif op.family == f.CONV_TRANSPOSE:
        site, inputs = _transposed_site(node)
    elif op.family == f.LINEAR:
        site, inputs = LinearSite(), (*node.args[:2], node.args[2] if len(node.args) > 2 else None)
    else:
        site, inputs = AddmmSite(), tuple(node.args[:3])
    own = [behind_cast(n) if op.cast_bytes else n for n in inputs]
    site.cast = next((cast_of(n) for n, found in zip(inputs, own, strict=True) if found is not n), None)
    return site, tuple(own)


def _conv_site(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    spatial = node.args[1].meta["val"].dim() - 2  # type: ignore[union-attr]
    defaults: list[Any] = [None, None, None, [1] * spatial, [0] * spatial, [1] * spatial, 1]
    args = [*node.args, *defaults[len(node.args) :]]
    _only_positional(node)
    stride, padding, dilation = (_spread(args[i], spatial) for i in (3, 4, 5))
    kernel = tuple(node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]
    site = ConvSite(node.target, kernel, stride, padding, dilation, int(args[6]))
    return site, tuple(args[:3])


def _transposed_site(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    spatial = node.args[1].meta["val"].dim() - 2  # type: ignore[union-attr]
    defaults: list[Any] = [None, None, None, [1] * spatial, [0] * spatial, [0] * spatial, 1, [1] * spatial]
    args = [*node.args, *defaults[len(node.args) :]]
    _only_positional(node)
    stride, padding, output_padding, dilation = (_spread(args[i], spatial) for i in (3, 4, 5, 7))
    kernel = tuple(node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]
    site = TransposedSite(node.target, kernel, (stride, padding, output_padding, int(args[6]), dilation))
    return site, tuple(args[:3])


def _norm_site(node: fx.Node, op: Op) -> tuple[norms.NormSite, tuple[Any, ...]]:
    _only_positional(node)
    name, x, rest = operator_name(node.target), node.args[0], node.args[1:]
    if name == "batch_norm":
        kind = norms.BatchNormSite if op.family == f.BATCH_NORM else norms.TrainingBatchNormSite
        return kind(node.target, tuple(rest[4:])), (x, *rest[:4])
    if name == "rms_norm":  # what PyTorch keeps of it was measured
        assert op.measured is not None
        site = norms.RmsNormSite(node.target, (rest[0], *rest[2:]))
        site.keeps_copy = sum(keep.storage is None for keep in op.measured[0]) > 1  # beside the statistics
        return site, (x, rest[1])
    scale, shift = [*rest[1:3], None][:2]
    return norms.SITES[name](node.target, (rest[0], *rest[3:4])), (x, scale, shift)


def _passing_site(node: fx.Node, op: Op) -> tuple[nn.Module, tuple[Any, ...]]:
    _only_positional(node)
    aliased = op.inplace and isinstance(node.args[0], fx.Node) and _is_view(node.args[0])
    target: Any = node.target
    inplace = op.inplace
    if aliased:  # an in-place custom function on a view is not differentiable: use the copying form
        target, inplace = getattr(torch.ops.aten, op.target.split(".")[1].rstrip("_")).default, False
    return _PASSING[op.family](target, tuple(node.args[1:]), inplace), (node.args[0],)


def _is_view(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return bool(getattr(value, "_is_view", lambda: False)())


def _only_positional(node: fx.Node) -> None:
    if node.kwargs:
        raise TraceError(
            f"operator {node.target} ({node.name}): keyword arguments {dict(node.kwargs)} are not supported"
        )


def _spread(value: Any, length: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * length if len(values) == 1 else values


def _constants(module: fx.GraphModule) -> list[tuple[str, Any]]:
    """Plain tensor attributes that are neither parameters nor buffers."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
