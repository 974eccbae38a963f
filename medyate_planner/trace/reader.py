"""Read a `ModelGraph` off one run of the captured FX graph under FakeTensorMode, which allocates nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from medyate_planner import families as f
from medyate_planner.errors import TraceError
from medyate_planner.graph import Attribute, MeasuredKeep, ModelGraph, Op, Storage, StorageKind, TensorSpec
from medyate_planner.trace.casts import INSERTED, behind_cast, call_under_autocast, is_cast
from medyate_planner.trace.fake import dtype_name, fake_twin, is_inplace, lookup, operator_name, storage_key
from medyate_planner.trace.layers import find_head, find_layers, find_norms
from medyate_planner.trace.observe import Observer
from medyate_planner.trace.workspace import FreshTracker, Workspaces

if TYPE_CHECKING:
    from medyate_planner.trace.capture import InputSpec, Trace


_LARGEST_WINDOW = 256  # a place inside a larger one does not fit into a byte


class GraphReader:
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
        self.workspaces = Workspaces(self.mode, self.env)
        self.observer = Observer(self.mode, self.env, lambda value: self._storage(value, "activation"))

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
                self._remember_outputs(node)
            else:
                raise TraceError(f"{node.name}: {node.op} nodes are not supported; {_source_line(node)}")
        weights = {op.name: (op.weight, op.bias) for op in self.ops if op.weight is not None}
        scales = {op.name: (op.scale, op.shift) for op in self.ops if op.scale is not None}
        graph = ModelGraph(
            batch_size=self.batch_size,
            ops=tuple(self.ops),
            layers=find_layers(self.ops, parameters, self._parameters_used_otherwise(parameters, weights)),
            norms=find_norms(self.ops, parameters, self._parameters_used_otherwise(parameters, scales)),
            values=self.values,
            storages=self.storages,
            inputs=tuple(input_names),
            outputs=outputs,
            head=(),
            parameters={n: (tuple(p.shape), dtype_name(p)) for n, p in module.named_parameters()},
            buffer_bytes=_bytes_beside_parameters(module),
        )
        return replace(graph, head=find_head(graph, self.traced.head_pattern))

    def _remember_outputs(self, node: fx.Node) -> None:
        """The outputs' shapes in the form the model returns them, so that a loss can be run without the model."""
        flat = fx.node.map_arg(node.args[0], lambda n: self.env[n])
        nest = self.traced.module.graph.process_outputs(flat)
        self.traced._outputs[self.batch_size] = tree_map(_as_template, nest)

    def _parameters_used_otherwise(
        self, parameters: Mapping[str, nn.Parameter], owned: Mapping[str, tuple[str | None, str | None]]
    ) -> frozenset[int]:
        """Parameters that also others use than the operators that `owned` says they are the weight or bias of: their
        gradient has unseen parts."""
        return frozenset(
            id(parameters[name])
            for node, name in self.parameter_nodes.items()
            for user in node.users
            if name not in owned.get(self._past_cast(user).name, ())
        )

    def _input(self, node: fx.Node, spec: InputSpec) -> Tensor:
        with self.mode:
            batch = spec.empty(self.batch_size, self.traced.device)
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

    def _past_cast(self, node: fx.Node) -> fx.Node:
        """The layer's operator that a cast of its weight or bias is made for; any other node is its own."""
        if behind_cast(node) is node or behind_cast(node) not in self.parameter_nodes:
            return node
        user: fx.Node = next(iter(node.users))
        family = f.family_of(operator_name(user.target)) if user.op == "call_function" else f.MEASURED
        if family not in f.WEIGHTED or family == f.EMBEDDING or not self._is_layer(user, family):
            return node
        return user if behind_cast(node) in (_weight_node(user, family), _bias_of(user, family)) else node

    def _call(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.env[n])
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        if is_cast(node) and self._past_cast(node) is not node:  # part of that operator
            with self.mode:
                self.env[node] = target(*args)
            return
        name = operator_name(target)
        family = self._family(node, args)
        candidates = [n for n in node.all_input_nodes if n.name in self.flows or n.op == "placeholder"]
        sources = tuple(n.name for n in candidates if _is_floating(self.env[n]))
        measured = None
        if family == f.MEASURED and sources:
            sources, measured = self.observer.observe(node, sources)
        try:
            with self.mode, torch.no_grad(), FreshTracker() as fresh:
                result = target(*args, **kwargs)
        except Exception as error:
            raise TraceError(
                f"operator {node.target} ({node.name}) fails at batch size {self.batch_size}: {error}; "
                f"{_source_line(node)}"
            ) from error
        self.env[node] = result
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
        if not tensors:
            return
        specs = tuple(self._note(node.name, t, "activation") for t in reversed(tensors))[::-1]
        self.values[node.name] = specs[0]
        if not any(spec.is_floating for spec in specs) or name == "detach":
            sources = ()
        if sources or family in f.WEIGHTED:  # a layer starts a gradient even where its input has none
            self.flows.add(node.name)
        space = self.workspaces.of(node, fresh, result, family, sources, is_inplace(node))
        self.ops.append(replace(self._op(node, family, sources, specs, measured), workspace=space))

    def _family(self, node: fx.Node, args: Sequence[Any]) -> str:
        """Family of the call, `MEASURED` where its arguments make it another operator than the family's rule is for."""
        if node.target is operator.getitem:
            return f.KEEPS_NOTHING
        name = operator_name(node.target)
        family = f.family_of(name)
        if family in f.LEAN and family not in f.WEIGHTED and getattr(node.args[0], "op", "") == "get_attr":
            return f.MEASURED  # of a parameter, which is no activation
        if family in f.WEIGHTED and not self._is_layer(node, family):
            return f.MEASURED
        if family == f.GROUP_NORM and not _is_dense(args[0]):  # PyTorch keeps a copy of it
            return f.MEASURED
        if family == f.MAX_POOL and _window_elements(args[1]) > _LARGEST_WINDOW:
            return f.MEASURED
        if family == f.BATCH_NORM and (args[5] or args[3] is None):
            return f.MEASURED
        if family == f.PRODUCT and not isinstance(args[1], Tensor):
            return f.KEEPS_NOTHING
        if family == f.KEEPS_INPUT and name.rstrip("_") == "pow" and not isinstance(args[1], (int, float)):
            return f.MEASURED
        if family in (f.MAX_POOL, f.AVG_POOL) and args[0].dim() != 4:
            return f.MEASURED
        if name == "pad" and len(args) > 2 and args[2] != "constant":
            return f.MEASURED
        return family

    def _is_layer(self, node: fx.Node, family: str) -> bool:
        """Whether the weight is a parameter, and the bias absent or one, and not something computed with a gradient of
        its own; and whether the call is of a form that can be updated by channels."""
        if _weight_node(node, family) not in self.parameter_nodes:
            return False
        if family == f.ADDMM and (node.kwargs or len(self.env[_weight_node(node, family)].shape) != 2):
            return False
        if family == f.EMBEDDING:  # gradients scaled by frequency, and sparse ones, are PyTorch's own
            return not any(node.args[3:5])
        bias = _bias_of(node, family)
        if family == f.CONV_TRANSPOSE:
            groups = node.args[6] if len(node.args) > 6 else 1
            if groups not in (1, self.env[_weight_node(node, family)].shape[0]):
                return False
        plain = isinstance(bias, fx.Node) and bias.op == "get_attr"
        if family == f.ADDMM:
            return plain and len(self.env[bias].shape) == 1
        return bias is None or plain

    def _norm_parameters(self, node: fx.Node, family: str, sources: tuple[str, ...]) -> tuple[str | None, str | None]:
        """Names of the scale, `(C,)`, and of the bias, if it is a parameter, of a norm; twice None for other calls and
        for norms that can not be updated by channels."""
        name = operator_name(node.target)
        place, x = f.NORM_SCALES.get(name), node.args[0] if node.args else None
        if place is None or node.kwargs or not isinstance(x, fx.Node) or sources != (x.name,):
            return None, None
        scale, shift = [*node.args[place : place + 2], None, None][:2]
        if not isinstance(scale, fx.Node) or scale not in self.parameter_nodes or self.env[scale].dim() != 1:
            return None, None
        bias = self.parameter_nodes.get(shift) if isinstance(shift, fx.Node) else None
        given, own = self.env[x], self.env[scale]
        possible = {
            "batch_norm": family == f.BATCH_NORM,
            "layer_norm": True,
            "group_norm": _is_dense(given),  # of others PyTorch keeps a copy
            "rms_norm": given.dtype == own.dtype,
        }
        computed = isinstance(shift, fx.Node) and shift.op != "get_attr"
        return (
            (self.parameter_nodes[scale], bias) if possible[name] and given.dim() > 1 and not computed else (None, None)
        )

    def _statistics(self, node: fx.Node, family: str) -> Mapping[str, Attribute]:
        """The type of a norm's statistics, where its parameters are of another than its input."""
        place = f.NORM_SCALES.get(operator_name(node.target))
        if place is None or family == f.MEASURED:
            return {}
        own = [self.env[n] for n in node.args[place : place + 4] if isinstance(n, fx.Node)]
        types = [t.dtype for t in own if isinstance(t, Tensor)]
        given: torch.dtype = self.env[node.args[0]].dtype  # type: ignore[index]
        if not types or types[0] == given:
            return {}
        return {f.STATISTICS: str(torch.promote_types(given, types[0])).removeprefix("torch.")}

    def _note(self, name: str, tensor: Tensor, kind: StorageKind) -> TensorSpec:
        spec = TensorSpec(
            shape=tuple(int(s) for s in tensor.shape),
            dtype=dtype_name(tensor),
            storage=self._storage(tensor, kind),
        )
        self.values[name] = spec
        self.alive.append(tensor)
        return spec

    def _storage(self, tensor: Tensor, kind: StorageKind) -> int:
        key = storage_key(tensor)
        if key not in self.ids:
            self.ids[key] = len(self.ids)
            self.storages[self.ids[key]] = Storage(nbytes=int(tensor.untyped_storage().nbytes()), kind=kind)
        return self.ids[key]

    def _op(
        self,
        node: fx.Node,
        family: str,
        sources: tuple[str, ...],
        specs: tuple[TensorSpec, ...],
        measured: tuple[tuple[MeasuredKeep, ...], ...] | None,
    ) -> Op:
        if measured is not None:  # results named -1, -2, ... are this operator's own outputs
            measured = tuple(
                tuple(
                    replace(k, storage=specs[-1 - k.storage].storage) if k.storage is not None and k.storage < 0 else k
                    for k in keeps
                )
                for keeps in measured
            )
        has_weight = family in f.WEIGHTED
        bias_node = _bias_of(node, family) if has_weight else None
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        scale, shift = self._norm_parameters(node, family, sources)
        return Op(
            name=node.name,
            family=family,
            target=_target(node),
            operands=self._operands(node, family),
            sources=sources,
            outputs=specs,
            inplace=is_inplace(node),
            attributes={**_attributes(node, family), **self._statistics(node, family)},
            measured=measured,
            weight=self.parameter_nodes[_weight_node(node, family)] if has_weight else None,
            bias=self.parameter_nodes.get(bias_node) if isinstance(bias_node, fx.Node) else None,
            scale=scale,
            shift=shift,
            module_path=path,
            source_line=_source_line(node),
            inserted=INSERTED in node.meta,
            cast_bytes=sum(self.env[n].nbytes for n in node.all_input_nodes if self._past_cast(n) is node),
        )

    def _operands(self, node: fx.Node, family: str) -> tuple[str, ...]:
        inputs = [node.args[f.PLACES[family][0] if family in f.PLACES else 0]]
        nodes = inputs if family in f.WEIGHTED else node.all_input_nodes
        return tuple(n.name for n in nodes if isinstance(n, fx.Node) and isinstance(self.env[n], (Tensor, tuple, list)))


def _target(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return str(node.args[0] if node.target is call_under_autocast else node.target)


def _as_template(value: Any) -> Any:
    """A tensor without memory or mode."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _bytes_beside_parameters(module: nn.Module) -> int:
    """Buffers and constants: storages that are there anyway and are no parameters'."""
    storages: dict[int, int] = {}
    for owner in module.modules():
        for value in [*owner._buffers.values(), *vars(owner).values()]:
            if isinstance(value, Tensor):
                storages[storage_key(value)] = int(value.untyped_storage().nbytes())
    for parameter in module.parameters():
        storages.pop(storage_key(parameter), None)
    return sum(storages.values())


def _weight_node(node: fx.Node, family: str) -> fx.Node:
    found = node.args[f.PLACES.get(family, (0, 1, 2))[1]]
    found = found if family == f.EMBEDDING else behind_cast(found)
    assert isinstance(found, fx.Node)
    return found


def _bias_of(node: fx.Node, family: str) -> Any:
    place = f.PLACES.get(family, (0, 1, 2))[2]
    return behind_cast(node.args[place]) if place is not None and len(node.args) > place else None


def _window_elements(kernel: Any) -> int:
    sides = [kernel, kernel] if isinstance(kernel, int) else [*kernel, *kernel][:2]
    return int(sides[0]) * int(sides[1])


def _is_dense(x: Tensor) -> bool:
    """Whether the kernel of GroupNorm takes x as it is."""
    last = x.device.type == "cpu" and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last or x.is_contiguous()


def _is_floating(value: Any) -> bool:
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(t, Tensor) and t.is_floating_point() for t in tensors)


def _source_line(node: fx.Node) -> str:
    """`file.py:102, in forward` of the innermost line outside torch."""
    frames = [
        line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")
    ]
    own = [frame for frame in frames if "/torch/nn/" not in frame and "/torch/_" not in frame] or frames
    if not own:
        return "source line unknown"
    parts = own[-1].split(",")
    file = parts[0].removeprefix("File ").strip('"')
    return f"{file.rsplit('/', 1)[-1]}:{parts[1].strip().removeprefix('line ')}"


def _attributes(node: fx.Node, family: str) -> Mapping[str, Attribute]:
    """Literal arguments that distinguish two operators of one family (strides, bounds, slices)."""
    if family == f.MEASURED:
        return {}
    literals: dict[str, Attribute] = {}
    for index, arg in enumerate(node.args):
        if isinstance(arg, (int, float, bool, str)):
            literals[str(index)] = arg
        elif isinstance(arg, (list, tuple)) and arg and all(isinstance(a, int) for a in arg):
            literals[str(index)] = tuple(a for a in arg if isinstance(a, int))
    return literals
