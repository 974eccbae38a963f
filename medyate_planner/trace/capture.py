"""Capture: one torch.export of a model in evaluation mode (non-strict, dynamic batch).

The captured FX module shares the model's parameters. Nothing of the model's size is allocated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map

from medyate_planner.errors import InputError, MedyateError, TraceError
from medyate_planner.families import CONV, DROPOUTS, family_of
from medyate_planner.graph import ModelGraph
from medyate_planner.trace.casts import autocasting, check_autocast, explicit_casts
from medyate_planner.trace.failure import cause_of, quiet_torch
from medyate_planner.trace.fake import dtype_name, fake_twin, operator_name
from medyate_planner.trace.inline import inline_regions
from medyate_planner.trace.twin import fake_copy

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
_CAPTURE_BATCH = 2  # torch.export specialises a batch of 1


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Shape (without the batch dimension), type and memory format of one model input.

    `name` is set for keyword inputs.
    """

    shape: tuple[int, ...]
    dtype: str
    name: str | None = None
    channels_last: bool = False

    def empty(self, batch_size: int, device: str | torch.device) -> Tensor:
        """A batch without values; under a FakeTensorMode a fake one."""
        return self._laid_out(torch.empty((batch_size, *self.shape), dtype=getattr(torch, self.dtype), device=device))

    def example(self, batch_size: int, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
        """A batch of random input (integers are 0 or 1)."""
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        full = (batch_size, *self.shape)
        if dtype.is_floating_point:
            batch = torch.randn(full, generator=generator).to(dtype)
        else:
            batch = torch.randint(0, 2, full, generator=generator).to(dtype)
        return self._laid_out(batch).to(device)

    def _laid_out(self, batch: Tensor) -> Tensor:
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A captured model: the FX module that is planned is the one that runs."""

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    head_pattern: str | None = None
    device: str = "cpu"
    autocast: str | None = None
    _graphs: dict[int, ModelGraph] = field(default_factory=dict, compare=False, repr=False)
    _outputs: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def graph(self, batch_size: int) -> ModelGraph:
        """The operators, layers and storages at one batch size."""
        if batch_size not in self._graphs:
            from medyate_planner.trace.reader import GraphReader

            try:
                with quiet_torch(), autocasting(None, self.device):
                    self._graphs[batch_size] = GraphReader(self, batch_size).read()
            except MedyateError:
                raise
            except Exception as error:
                raise TraceError(
                    f"the captured graph can not be read at batch {batch_size}: {cause_of(error)}"
                ) from error
        return self._graphs[batch_size]

    def fake_outputs(self, batch_size: int, mode: FakeTensorMode) -> Any:
        """What the model returns at a batch size, in its own form, as fake tensors of `mode`."""
        self.graph(batch_size)

        def fake(value: Any) -> Any:
            return fake_twin(value, mode, self.device) if isinstance(value, Tensor) else value

        return tree_map(fake, self._outputs[batch_size])

    def examples(self, batch_size: int, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Random positional and keyword inputs of the right shapes."""
        return as_arguments(self.inputs, lambda spec: spec.example(batch_size, self.device, seed))


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    head: str | None = None,
    dropout: str = "off",
    device: str = "cpu",
    autocast: str | None = None,
) -> Trace:
    """Capture a model in evaluation mode (norms frozen, dropout off unless `dropout="keep"`).

    Args:
        model: Any module that torch.export can capture; on the meta device too. Left as it was found.
        example_inputs: A tensor, a tuple of them, or a dict of keyword inputs, batch first; values do not matter.
        head: Pattern of layer names to train in full, "none", or None for the last weight layers.
        dropout: "off" or "keep": dropout modules run as in training (not what a model draws by itself in training
            mode alone, such as stochastic depth or the dropout inside attention).
        device: Where the model is to be trained; predictions are made for this device.
        autocast: "bfloat16": capture what the model does under torch.autocast, its casts as operators.

    Raises:
        InputError: the example inputs have no common batch dimension; an unknown device or type.
        TraceError: torch.export can not capture the model; the text names the cause.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got a {type(model).__name__}")
    check_device(device)
    check_autocast(autocast)
    args, kwargs = _split_inputs(example_inputs)
    specs = input_specs(example_inputs)
    modes = [(module, module.training) for module in model.modules()]
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    _check_names(model)
    model.eval()
    try:
        with _without_cache(model), quiet_torch(), autocasting(autocast, device):
            if where.type == torch.device(device).type:
                module = _export(model, args, kwargs, where)
            else:
                module = _export_elsewhere(model, args, kwargs, device)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(_capture_failure(model, error)) from error
    finally:
        for submodule, training in modes:
            submodule.training = training
    inline_regions(module, device)
    _clean(module, dropout)
    with quiet_torch():
        explicit_casts(module, [spec.empty(_CAPTURE_BATCH, "meta") for spec in specs], device, autocast)
    return Trace(module=module, inputs=specs, head_pattern=head, device=device, autocast=autocast)


def _export(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], where: torch.device
) -> fx.GraphModule:
    args = tuple(_at_batch(batch, _CAPTURE_BATCH, where) for batch in args)
    kwargs = {name: _at_batch(batch, _CAPTURE_BATCH, where) for name, batch in kwargs.items()}
    shapes: Any = {0: Dim("batch")}
    with warnings.catch_warnings(), redirect_stderr(StringIO()):  # torch prints a graph where it fails
        warnings.simplefilter("ignore")
        program = export(
            model,
            args,
            dict(kwargs),
            dynamic_shapes=dict.fromkeys(kwargs, shapes) if kwargs else tuple([shapes] * len(args)),
            strict=False,
        )
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def _export_elsewhere(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], device: str
) -> fx.GraphModule:
    """Export a fake twin on the device predictions are for (the meta device takes other kernels).

    The module gets the model's own parameters and buffers, so that it is the model's as after any other capture.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    twin = fake_copy(model, mode, device)
    with mode:
        module = _export(twin, args, kwargs, torch.device(device))
    for named, table in ((model.named_parameters, "_parameters"), (model.named_buffers, "_buffers")):
        for name, tensor in named(remove_duplicate=False):
            path, _, leaf = name.rpartition(".")
            try:
                owner = module.get_submodule(path)
            except AttributeError:  # nothing below it is read
                continue
            if leaf in getattr(owner, table):
                getattr(owner, table)[leaf] = tensor
    return module


def as_arguments(
    inputs: Sequence[InputSpec], make: Callable[[InputSpec], Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A batch for each input, as positional and keyword arguments of the model."""
    made = [(spec.name, make(spec)) for spec in inputs]
    return (
        tuple(batch for name, batch in made if name is None),
        {name: batch for name, batch in made if name is not None},
    )


def check_device(name: str) -> None:
    """Raise `InputError` unless torch has this device here (a fake tensor on one that it lacks ends the process)."""
    try:
        torch.empty(1, device=name) if name != "meta" else None
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not available here ({cause[:120]}); choose cpu") from error


def _split_inputs(example_inputs: ExampleInputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs), {}


def input_specs(example_inputs: ExampleInputs) -> tuple[InputSpec, ...]:
    """Shapes and types of example inputs.

    Raises:
        InputError: no common batch dimension.
    """
    args, kwargs = _split_inputs(example_inputs)
    named: list[tuple[str | None, Tensor]] = [(None, batch) for batch in args]
    named += list(kwargs.items())
    if not named:
        raise InputError("example inputs: expected at least one tensor, got none")
    for name, batch in named:
        if not isinstance(batch, Tensor) or batch.dim() < 1:
            raise InputError(f"example input {name or 0}: expected a tensor with a batch dimension, got {batch!r}")
    sizes = {batch.shape[0] for _, batch in named}
    if 0 in sizes:
        raise InputError("example inputs: expected at least one sample, got an empty batch")
    if len(sizes) > 1:
        raise InputError(f"example inputs: expected one batch size, got {sorted(sizes)}; put the batch first")
    return tuple(
        InputSpec(
            shape=tuple(batch.shape[1:]), dtype=dtype_name(batch), name=name, channels_last=_is_channels_last(batch)
        )
        for name, batch in named
    )


def _is_channels_last(batch: Tensor) -> bool:
    return batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last) and not batch.is_contiguous()


def _at_batch(batch: Tensor, size: int, device: torch.device) -> Tensor:
    resized = torch.zeros((size, *batch.shape[1:]), dtype=batch.dtype, device=device)
    return resized.contiguous(memory_format=torch.channels_last) if _is_channels_last(batch) else resized


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A generating transformer hands out its keys and values, which nobody reads in training: do not capture them."""
    owned: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in owned if getattr(config, "use_cache", False)}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


def _capture_failure(model: nn.Module, error: Exception) -> str:
    return (
        f"{type(model).__name__} can not be captured by torch.export: {cause_of(error)}; "
        "check the input shape, and make shapes and branches independent of the data"
    )


def _check_names(model: nn.Module) -> None:
    """torch.fx writes names into code that it runs: refuse those that could end a string there."""
    for name, _ in [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]:
        if any(c in "\"'\\" or not c.isprintable() for c in name):
            raise TraceError(
                f"{type(model).__name__} can not be captured: the name {name!r} holds a quote, a backslash or a "
                "control character; rename the module"
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
        elif name.rstrip("_") in DROPOUTS:
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
        [d * (int(k) - 1) for d, k in zip(dilations, kernel, strict=True)] if padding == "same" else [0] * len(kernel)
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
