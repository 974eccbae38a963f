"""Torch model + example inputs -> `Trace` (an FX graph of ATen operators) -> `ModelGraph` at any batch size.

The model is captured once by `torch.export` (non-strict, dynamic batch); its FX module shares the model's
parameters. Shapes, storages and what unknown operators keep are then read off a run under FakeTensorMode, which
allocates nothing, also for models on the meta device.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export

from medyate_planner.errors import InputError, TraceError
from medyate_planner.families import BATCH_NORM, CONV, DROPOUT, LINEAR, MEASURED, family_of
from medyate_planner.graph import (
    Attribute,
    Layer,
    LayerKind,
    MeasuredKeep,
    ModelGraph,
    Op,
    Storage,
    TensorSpec,
)

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
_CAPTURE_BATCH = 2  # torch.export specialises a batch of 1


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Shape (without the batch dimension) and type of one model input; `name` is set for keyword inputs."""

    shape: tuple[int, ...]
    dtype: str
    name: str | None = None

    def example(self, batch_size: int, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
        """A batch of random input of this shape (integers are 0 or 1); images are channels_last."""
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        full = (batch_size, *self.shape)
        if dtype.is_floating_point:
            batch = torch.randn(full, generator=generator).to(dtype)
        else:
            batch = torch.randint(0, 2, full, generator=generator).to(dtype)
        if batch.dim() == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch.to(device)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A captured model: the FX module that is planned is the one that runs."""

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    head_pattern: str | None = None
    device: str = "cpu"
    _graphs: dict[int, ModelGraph] = field(default_factory=dict, compare=False, repr=False)

    def graph(self, batch_size: int) -> ModelGraph:
        """The operators, layers and storages at one batch size."""
        if batch_size not in self._graphs:
            self._graphs[batch_size] = _GraphReader(self, batch_size).read()
        return self._graphs[batch_size]

    def examples(self, batch_size: int, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Random positional and keyword inputs of the right shapes."""
        batches = [(spec, spec.example(batch_size, self.device, seed)) for spec in self.inputs]
        return (
            tuple(batch for spec, batch in batches if spec.name is None),
            {spec.name: batch for spec, batch in batches if spec.name is not None},
        )


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    head: str | None = None,
    dropout: str = "off",
    device: str = "cpu",
) -> Trace:
    """Capture a model in evaluation mode (norms frozen, dropout off unless `dropout="keep"`).

    Args:
        model: Any module that torch.export can capture; on the meta device too. Left as it was found.
        example_inputs: A tensor, a tuple of them, or a dict of keyword inputs, batch first; values do not matter.
        head: Pattern of layer names to train in full, "none", or None for the last weight layers.
        dropout: "off" or "keep".
        device: Where the model is to be trained; predictions are made for this device.

    Raises:
        InputError: the example inputs have no common batch dimension.
        TraceError: torch.export can not capture the model; the text names the cause.
    """
    args, kwargs = _split_inputs(example_inputs)
    specs = _input_specs(args, kwargs)
    modes = [(module, module.training) for module in model.modules()]
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    args = tuple(_at_batch(batch, _CAPTURE_BATCH, where) for batch in args)
    kwargs = {name: _at_batch(batch, _CAPTURE_BATCH, where) for name, batch in kwargs.items()}
    batch = Dim("batch")
    shapes: Any = {0: batch}
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = export(
                model,
                args,
                kwargs,
                dynamic_shapes=(
                    [shapes] * len(args) and tuple([shapes] * len(args)),
                    {k: shapes for k in kwargs},
                )
                if kwargs
                else tuple([shapes] * len(args)),
                strict=False,
            )
            module = program.module(check_guards=False)
    except Exception as error:
        raise TraceError(_capture_failure(model, error)) from error
    finally:
        for submodule, training in modes:
            submodule.training = training
    assert isinstance(module, fx.GraphModule)
    _clean(module, dropout)
    return Trace(module=module, inputs=specs, head_pattern=head, device=device)


def fake_twin(tensor: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    """A fake tensor of the same shape, strides and type on `device`; reads no memory of the original."""
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def storage_key(tensor: Tensor) -> int:
    """Identity of the storage a tensor lives in, valid while the storage lives."""
    return int(tensor.untyped_storage()._cdata)


def lookup(module: nn.Module, target: str) -> Tensor:
    """The parameter, buffer or constant that a get_attr node names."""
    *path, leaf = target.split(".")
    owner: Any = module
    for name in path:
        owner = getattr(owner, name)
    found: Tensor = getattr(owner, leaf)
    return found


def _split_inputs(example_inputs: ExampleInputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs), {}


def _input_specs(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> tuple[InputSpec, ...]:
    named: list[tuple[str | None, Tensor]] = [(None, batch) for batch in args]
    named += list(kwargs.items())
    if not named:
        raise InputError("example inputs: expected at least one tensor, got none")
    for name, batch in named:
        if not isinstance(batch, Tensor) or batch.dim() < 1:
            raise InputError(
                f"example input {name or 0}: expected a tensor with a batch dimension, got {batch!r}"
            )
    sizes = {batch.shape[0] for _, batch in named}
    if len(sizes) > 1:
        raise InputError(f"example inputs: expected one batch size, got {sorted(sizes)}; put the batch first")
    return tuple(
        InputSpec(shape=tuple(batch.shape[1:]), dtype=str(batch.dtype).removeprefix("torch."), name=name)
        for name, batch in named
    )


def _at_batch(batch: Tensor, size: int, device: torch.device) -> Tensor:
    shape = (size, *batch.shape[1:])
    resized = torch.zeros(shape, dtype=batch.dtype, device=device)
    if batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        resized = resized.contiguous(memory_format=torch.channels_last)
    return resized


def _capture_failure(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[0] if lines else type(error).__name__
    user_lines = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    where = f" at {user_lines[-1]}" if user_lines else ""
    return (
        f"{type(model).__name__} can not be captured by torch.export{where}: {type(error).__name__}: {cause[:300]}; "
        "check the input shape, and make shapes and branches independent of the data"
    )


def _clean(module: fx.GraphModule, dropout: str) -> None:
    """Drop what only checks, turn `conv2d(padding='same')` into explicit padding, set the dropout mode."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = operator_name(node.target)
        if name in ("_assert_tensor_metadata", "_assert_scalar") and not node.users:
            graph.erase_node(node)
        elif family_of(name) == CONV and len(node.args) > 4 and isinstance(node.args[4], str):
            _explicit_padding(graph, node)
        elif family_of(name) == DROPOUT:
            if dropout == "keep":
                node.args = (*node.args[:2], True)
            else:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _explicit_padding(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrite string padding as integers; what ATen itself does, so the result stays bit-identical."""
    padding = node.args[4]
    kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
    dilation = node.args[5] if len(node.args) > 5 else 1
    dilations = _spread(dilation, len(kernel))
    total = (
        [d * (int(k) - 1) for d, k in zip(dilations, kernel, strict=True)]
        if padding == "same"
        else [0] * len(kernel)
    )
    rest = list(node.args)
    if any(t % 2 for t in total):
        pads = [side for t in reversed(total) for side in (0, t % 2)]
        with graph.inserting_before(node):
            padded = graph.call_function(torch.ops.aten.constant_pad_nd.default, (node.args[0], pads, 0.0))
        padded.meta = dict(node.meta)
        rest[0] = padded
    rest[4] = [t // 2 for t in total]
    overloads = {1: torch.ops.aten.conv1d, 2: torch.ops.aten.conv2d, 3: torch.ops.aten.conv3d}
    node.target = overloads[len(kernel)].default
    node.args = tuple(rest)


def _spread(value: Any, length: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * length if len(values) == 1 else values


def operator_name(target: Any) -> str:
    """`conv2d` for aten.conv2d.default, `getitem` for operator.getitem."""
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__) if packet is not None else str(getattr(target, "__name__", target))


class _GraphReader:
    """One run of the FX graph under FakeTensorMode, noting shapes, storages and what unknown operators keep."""

    def __init__(self, traced: Trace, batch_size: int) -> None:
        self.traced = traced
        self.batch_size = batch_size
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.env: dict[fx.Node, Any] = {}
        self.fakes: dict[int, Tensor] = {}
        self.storages: dict[int, Storage] = {}
        self.ids: dict[int, int] = {}
        self.alive: list[Any] = []
        self.values: dict[str, TensorSpec] = {}
        self.ops: list[Op] = []
        self.parameter_nodes: dict[fx.Node, str] = {}
        self.flows: set[str] = set()

    def read(self) -> ModelGraph:
        module = self.traced.module
        inputs = iter(self.traced.inputs)
        input_names: list[str] = []
        outputs: tuple[str, ...] = ()
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self._input(node, next(inputs))
                input_names.append(node.name)
            elif node.op == "get_attr":
                self.env[node] = self._attribute(node, module, parameters)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = tuple(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in self.values))
            else:
                raise TraceError(f"{node.name}: {node.op} nodes are not supported; {_source_line(node)}")
        layers = _layers(self.ops, parameters)
        graph = ModelGraph(
            batch_size=self.batch_size,
            ops=tuple(self.ops),
            layers=layers,
            values=self.values,
            storages=self.storages,
            inputs=tuple(input_names),
            outputs=outputs,
            head=(),
            parameters={n: (tuple(p.shape), _dtype(p)) for n, p in module.named_parameters()},
            buffer_bytes=sum(b.nbytes for b in module.buffers()),
        )
        return _with_head(graph, self.traced.head_pattern)

    def _input(self, node: fx.Node, spec: InputSpec) -> Tensor:
        with self.mode:
            batch = torch.empty(
                (self.batch_size, *spec.shape), dtype=getattr(torch, spec.dtype), device=self.traced.device
            )
            if batch.dim() == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
        self._note(node.name, batch, "input")
        return batch

    def _attribute(self, node: fx.Node, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Any:
        target = str(node.target)
        tensor = lookup(module, target)
        if not isinstance(tensor, Tensor):
            return tensor
        if id(tensor) not in self.fakes:
            self.fakes[id(tensor)] = fake_twin(tensor, self.mode, self.traced.device)
        fake = self.fakes[id(tensor)]
        if target in parameters:
            self.parameter_nodes[node] = target
        self._storage(fake, "parameter" if target in parameters else "buffer")
        self.alive.append(fake)
        return fake

    def _call(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.env[n])
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        name = operator_name(target)
        inplace = name.endswith("_") and not name.startswith("_")
        family = self._family(node, name, args)
        candidates = [n for n in node.all_input_nodes if n.name in self.flows or n.op == "placeholder"]
        sources = tuple(n.name for n in candidates if _is_floating(self.env[n]))
        measured = None
        if family == MEASURED and sources:
            sources, measured = self._measure(node, target, sources)
        try:
            with self.mode, torch.no_grad():
                result = target(*args, **kwargs)
        except Exception as error:
            raise TraceError(
                f"operator {node.target} ({node.name}) fails at batch size {self.batch_size}: {error}; {_source_line(node)}"
            ) from error
        self.env[node] = result
        tensors = [
            t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)
        ]
        if not tensors:
            return
        specs = tuple(self._note(node.name, t, "activation") for t in reversed(tensors))[::-1]
        self.values[node.name] = specs[0]
        if not any(spec.is_floating for spec in specs) or name == "detach":
            sources = ()
        if sources:
            self.flows.add(node.name)
        self.ops.append(self._op(node, name, family, sources, specs, measured, inplace))

    def _family(self, node: fx.Node, name: str, args: Sequence[Any]) -> str:
        if node.target is operator.getitem:
            return family_of("alias")
        family = family_of(name)
        frozen_weight = len(node.args) > 1 and node.args[1] in self.parameter_nodes
        if family in (CONV, LINEAR) and not frozen_weight:
            return MEASURED
        if family == BATCH_NORM and (args[5] or args[3] is None):
            return MEASURED
        if family == "product" and not isinstance(args[1], Tensor):
            return family_of("add")
        if family == "keeps_input" and name.rstrip("_") == "pow" and not isinstance(args[1], (int, float)):
            return MEASURED
        if family in ("max_pool", "avg_pool") and args[0].dim() != 4:
            return MEASURED
        if name in ("pad",) and len(args) > 2 and args[2] != "constant":
            return MEASURED
        return family

    def _note(self, name: str, tensor: Tensor, kind: Any) -> TensorSpec:
        spec = TensorSpec(
            shape=tuple(int(s) for s in tensor.shape),
            dtype=_dtype(tensor),
            storage=self._storage(tensor, kind),
        )
        self.values[name] = spec
        self.alive.append(tensor)
        return spec

    def _storage(self, tensor: Tensor, kind: Any) -> int:
        key = storage_key(tensor)
        if key not in self.ids:
            self.ids[key] = len(self.ids)
            self.storages[self.ids[key]] = Storage(nbytes=int(tensor.untyped_storage().nbytes()), kind=kind)
        return self.ids[key]

    def _measure(
        self, node: fx.Node, target: Callable[..., Any], sources: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[tuple[MeasuredKeep, ...], ...]]:
        """Run one operator with autograd on fake tensors, once per source, and note what PyTorch keeps."""
        found = [(source, self._kept_for(node, target, (source,))) for source in sources]
        flowing = [(source, kept) for source, kept in found if kept is not None]
        alone = [kept for _, kept in flowing]
        together = (
            self._kept_for(node, target, tuple(source for source, _ in flowing)) if len(flowing) > 1 else None
        )
        return tuple(source for source, _ in flowing), _label_fresh(alone, together)

    def _kept_for(
        self, node: fx.Node, target: Callable[..., Any], sources: tuple[str, ...]
    ) -> tuple[MeasuredKeep, ...] | None:
        """What is kept when these sources need a gradient; None when no gradient can flow."""
        inplace = operator_name(target).endswith("_")
        renamed: dict[int, int] = {}
        kept: dict[int, MeasuredKeep] = {}
        held: list[Tensor] = []

        def leaf(n: fx.Node) -> Any:
            value = self.env[n]
            if not isinstance(value, Tensor):
                return value
            plain = value.detach()
            if n.name in sources:
                plain = plain.requires_grad_()
            if inplace:
                plain = plain.clone()
            renamed[storage_key(plain)] = self._storage(value, "activation")
            held.append(plain)
            return plain

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)
            key = storage_key(tensor)
            number = renamed.get(key, self.ids.get(key))
            kept[key] = MeasuredKeep(storage=number, nbytes=int(tensor.untyped_storage().nbytes()))
            return tensor

        with self.mode, torch.enable_grad():
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), leaf)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = target(*args, **kwargs)
        outs = [
            t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)
        ]
        if not any(t.requires_grad for t in outs):
            return None
        own = {storage_key(t): index for index, t in enumerate(outs)}
        return tuple(
            replace(keep, storage=-1 - own[key]) if keep.storage is None and key in own else keep
            for key, keep in kept.items()
        )

    def _op(
        self,
        node: fx.Node,
        name: str,
        family: str,
        sources: tuple[str, ...],
        specs: tuple[TensorSpec, ...],
        measured: tuple[tuple[MeasuredKeep, ...], ...] | None,
        inplace: bool,
    ) -> Op:
        if measured is not None:  # results named -1, -2, ... are this operator's own outputs
            measured = tuple(
                tuple(
                    replace(k, storage=specs[-1 - k.storage].storage)
                    if k.storage is not None and k.storage < 0
                    else k
                    for k in keeps
                )
                for keeps in measured
            )
        has_weight = family in (CONV, LINEAR)
        bias_node = node.args[2] if has_weight and len(node.args) > 2 else None
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        return Op(
            name=node.name,
            family=family,
            target=str(node.target) if node.target is not operator.getitem else "getitem",
            operands=self._operands(node, has_weight),
            sources=sources,
            outputs=specs,
            inplace=inplace,
            attributes=_attributes(node, family),
            measured=measured,
            weight=self.parameter_nodes[node.args[1]] if has_weight else None,  # type: ignore[index]
            bias=self.parameter_nodes.get(bias_node) if isinstance(bias_node, fx.Node) else None,
            module_path=path,
            source_line=_source_line(node),
        )

    def _operands(self, node: fx.Node, has_weight: bool) -> tuple[str, ...]:
        nodes = [node.args[0]] if has_weight else node.all_input_nodes
        return tuple(
            n.name for n in nodes if isinstance(n, fx.Node) and isinstance(self.env[n], (Tensor, tuple, list))
        )


def _label_fresh(
    alone: Sequence[tuple[MeasuredKeep, ...]], together: tuple[MeasuredKeep, ...] | None
) -> tuple[tuple[MeasuredKeep, ...], ...]:
    """Tell whether the fresh storages seen for different sources are the same ones (a statistic) or not (copies).

    Seen alone they can not be told apart; seen together their sum decides. In doubt they count separately.
    """
    by_source = [
        tuple(replace(k, label=f"{i}") if k.storage is None else k for i, k in enumerate(keeps))
        for keeps in alone
    ]
    if together is None:
        return tuple(by_source)
    shared = {(k.label, k.nbytes) for keeps in by_source for k in keeps if k.storage is None}
    if sum(nbytes for _, nbytes in shared) == sum(k.nbytes for k in together if k.storage is None):
        return tuple(by_source)
    return tuple(
        tuple(replace(k, label=f"{source}.{k.label}") if k.storage is None else k for k in keeps)
        for source, keeps in enumerate(by_source)
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_floating(value: Any) -> bool:
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(t, Tensor) and t.is_floating_point() for t in tensors)


def _source_line(node: fx.Node) -> str:
    """`file.py:102, in forward` of the innermost line outside torch."""
    frames = [
        line.strip()
        for line in (node.meta.get("stack_trace") or "").splitlines()
        if line.strip().startswith("File ")
    ]
    own = [frame for frame in frames if "/torch/nn/" not in frame and "/torch/_" not in frame] or frames
    if not own:
        return "source line unknown"
    parts = own[-1].split(",")
    file = parts[0].removeprefix("File ").strip('"')
    return f"{file.rsplit('/', 1)[-1]}:{parts[1].strip().removeprefix('line ')}"


def _attributes(node: fx.Node, family: str) -> Mapping[str, Attribute]:
    """Literal arguments that distinguish two operators of one family (strides, bounds, slices)."""
    if family == MEASURED:
        return {}
    literals: dict[str, Attribute] = {}
    for index, arg in enumerate(node.args):
        if isinstance(arg, (int, float, bool, str)):
            literals[str(index)] = arg
        elif isinstance(arg, (list, tuple)) and arg and all(isinstance(a, int) for a in arg):
            literals[str(index)] = tuple(a for a in arg if isinstance(a, int))
    return literals


def _layers(ops: Sequence[Op], parameters: Mapping[str, nn.Parameter]) -> tuple[Layer, ...]:
    """Distinct weights in order of first use. Two names of one tensor (tied weights) make one layer."""
    first_name: dict[int, str] = {}
    sites: dict[str, list[Op]] = {}
    for op in ops:
        if op.weight is not None:
            name = first_name.setdefault(id(parameters[op.weight]), op.weight)
            sites.setdefault(name, []).append(op)
    layers = []
    for weight, users in sites.items():
        parameter = parameters[weight]
        groups = _groups(users[0])
        biases = {op.bias for op in users}
        layers.append(
            Layer(
                name=weight.removesuffix(".weight"),
                kind=_kind(users[0], tuple(parameter.shape), groups),
                weight=weight,
                weight_shape=tuple(parameter.shape),
                dtype=_dtype(parameter),
                bias=biases.pop() if len(biases) == 1 else None,
                groups=groups,
                sites=tuple(op.name for op in users),
            )
        )
    return tuple(layers)


def _groups(op: Op) -> int:
    groups = op.attributes.get("6", 1) if op.family == CONV else 1
    assert isinstance(groups, int)
    return groups


def _kind(op: Op, weight_shape: tuple[int, ...], groups: int) -> LayerKind:
    if op.family == LINEAR:
        return "linear"
    if groups == 1:
        return "conv"
    return "depthwise" if weight_shape[1] == 1 else "grouped"


def _with_head(graph: ModelGraph, pattern: str | None) -> ModelGraph:
    """Set the head: layers matching `pattern`, or those from which no other layer lies between them and an output."""
    if pattern == "none":
        return replace(graph, head=())
    if pattern is not None:
        names = tuple(layer.name for layer in graph.layers if fnmatchcase(layer.name, pattern))
        if not names:
            known = ", ".join(layer.name for layer in graph.layers[-3:])
            raise InputError(
                f"head pattern {pattern!r} matches no layer; the last layers are {known}; pass --head none for no head"
            )
        return replace(graph, head=names)
    site_of = {site: layer.name for layer in graph.layers for site in layer.sites}
    head: list[str] = []
    for output in graph.outputs:
        upstream = [output, *nx.bfs_tree(graph.flow, output, reverse=True)] if output in graph.flow else []
        blocked: set[str] = set()
        for name in upstream:
            if name in blocked:
                continue
            if name in site_of:
                head.append(site_of[name])
                blocked |= nx.ancestors(graph.flow, name)
    ordered = tuple(layer.name for layer in graph.layers if layer.name in head)
    return replace(graph, head=ordered)
