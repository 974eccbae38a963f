"""The bare ATen calls that a plan's training step needs, recorded once from a network of our zoo: a floor for its time.

Forward of every operator; backward of the reach alone: activations (with their input stored), input gradients, and
gradients of the selected slices, which are given. Nothing is packed, selected, updated or kept; there is no loss.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from medyate_planner.graph import Op
from medyate_planner.memory.model import Updates
from medyate_planner.subject import Subject
from medyate_planner.trace.fake import lookup
from medyate_planner.training.straight import called_directly

_aten = torch.ops.aten
_VIEWS = ("permute", "reshape", "view", "expand", "t")
Values = dict[str, tuple[tuple[Any, ...], Tensor]]


def straight_calls(subject: Subject, updates: Updates, x: Tensor) -> Callable[[], object]:
    """All calls as straight Python code, each result handed on to the next and freed: the fastest form we know."""
    recorder = _Recorder(subject, updates, x)
    forward, constants = fx.GraphModule({}, recorder.graph).forward, recorder.constants

    def run() -> object:
        with torch.no_grad():
            return forward(*constants)

    return run


def looped_calls(subject: Subject, updates: Updates, x: Tensor) -> Callable[[], None]:
    """The same calls bound to stored tensors, views included, in a plain loop."""
    recorder = _Recorder(subject, updates, x)
    calls: list[Callable[[], object]] = []
    env: dict[fx.Node, Any] = {}
    constants = iter(recorder.constants)
    with torch.no_grad():
        for node in recorder.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(constants)
            elif node.op != "output":
                given = fx.node.map_arg(node.args, env.__getitem__)
                if node.op == "call_method":
                    env[node] = getattr(given[0], str(node.target))(*given[1:])
                    continue
                if node.target is not operator.getitem:
                    calls.append(partial(node.target, *given))
                env[node] = node.target(*given)

    def run() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    return run


class _Recorder:
    """The graph of calls; its placeholders are `constants`: the input, parameters and what a real step would keep."""

    def __init__(self, subject: Subject, updates: Updates, x: Tensor) -> None:
        self.graph, self.constants = fx.Graph(), list[Tensor]()
        self.updates, self.memory = updates, subject.memory
        self.values = _values(subject.traced.module, x)
        self.by_name: dict[str, fx.Node] = {}
        names = {op.name for op in subject.graph.ops}
        for node in subject.traced.module.graph.nodes:
            if node.op == "placeholder":
                self.by_name[node.name] = self.constant(x)
            elif node.op == "get_attr":
                self.by_name[node.name] = self.constant(lookup(subject.traced.module, str(node.target)).detach())
            elif node.name in names:
                args = fx.node.map_arg(node.args, lambda n: self.by_name[n.name])
                self.by_name[node.name] = self.call(called_directly(node.target), *args)
        self.nodes = {node.name: node for node in subject.traced.module.graph.nodes}
        active = self.memory.active(updates)
        self._backward([op for op in subject.graph.ops if op.name in active])

    def constant(self, value: Tensor) -> fx.Node:
        self.constants.append(value)
        return self.graph.placeholder(f"given_{len(self.constants)}")

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def view(self, name: str, *args: Any) -> fx.Node:
        assert name in _VIEWS
        return self.graph.call_method(name, args)

    def _backward(self, reach: list[Op]) -> None:
        needed: set[str] = set()
        for op in reach:
            if self._quota(op) or needed.intersection(op.sources):
                needed.add(op.name)
        last = reach[-1].name
        gradients = {last: self.constant(torch.randn_like(self.values[last][1]))}
        results = [self.by_name[last]]
        for op in reversed(reach):
            below, own = self._of(op, gradients.pop(op.name), wanted=bool(needed.intersection(op.sources)))
            results += own
            for source in op.sources if below is not None else ():
                if source in needed:
                    earlier = gradients.get(source)
                    gradients[source] = below if earlier is None else self.call(torch.add, earlier, below)
        self.graph.output(results[0])

    def _quota(self, op: Op) -> int:
        layer = self.memory.site_layer.get(op.name)
        if layer is None:
            return 0
        return layer.channels if layer.name in self.updates.full else self.updates.quotas.get(layer.name, 0)

    def _of(self, op: Op, gradient: fx.Node, *, wanted: bool) -> tuple[fx.Node | None, list[fx.Node]]:
        """The gradient of the operator's input, and those of its own weight and bias."""
        (x, *_), out = self.values[op.name]
        if op.family == "conv":
            return self._conv(op, gradient, wanted=wanted)
        if op.family == "linear":
            weight = self.by_name[str(self.nodes[op.name].args[1])]
            rows = self.view("t", gradient)
            own = [self.call(torch.mm, rows, self.constant(x)), self.call(torch.sum, gradient, 0)]
            return self.call(torch.mm, gradient, weight), own
        if op.family == "clamp":
            low, high = self.nodes[op.name].args[1:3]
            return self.call(_aten.hardtanh_backward.default, gradient, self.constant(x), low, high), []
        if op.target.startswith("aten.mean"):
            spread = self.view("expand", self.view("view", gradient, *out.shape, 1, 1), *x.shape)
            return self.call(torch.div, spread, float(x.shape[2] * x.shape[3])), []
        if op.target.startswith("aten.add"):
            return gradient, []
        raise SystemExit(f"{op.name}: {op.target} is not an operator of our zoo's networks")

    def _conv(self, op: Op, gradient: fx.Node, *, wanted: bool) -> tuple[fx.Node | None, list[fx.Node]]:
        (x, weight, *rest), out = self.values[op.name]
        stride, padding, dilation, groups = (*rest[1:], *([1, 1], [0, 0], [1, 1], 1)[len(rest) - 1 :])
        options = (None, stride, padding, dilation, False, [0, 0])
        pointwise = weight.shape[2:] == (1, 1) and groups == 1 and set(stride) == {1}
        rows, below, own, n = None, None, list[fx.Node](), self._quota(op)
        if pointwise:
            rows = self.view("reshape", self.view("permute", gradient, 0, 2, 3, 1), -1, weight.shape[0])
        if wanted and rows is not None:
            flat = self.call(torch.mm, rows, self.constant(weight.detach().view(weight.shape[:2])))
            batch, channels, height, width = x.shape
            below = self.view("permute", self.view("view", flat, batch, height, width, channels), 0, 3, 1, 2)
        elif wanted:
            given = (gradient, self.constant(x), self.by_name[str(self.nodes[op.name].args[1])])
            found = self.call(_aten.convolution_backward.default, *given, *options, groups, [True, False, False])
            below = self.call(operator.getitem, found, 0)
        if n:
            part = x[:, :n].contiguous(memory_format=torch.channels_last)
            if rows is not None:
                selected = self.constant(part.permute(0, 2, 3, 1).reshape(-1, n))
                own = [self.call(torch.mm, self.view("t", rows), selected)]
            else:
                own = [self._slice(gradient, out, part, weight.detach(), options, groups)]
        return below, own

    def _slice(
        self, gradient: fx.Node, out: Tensor, part: Tensor, weight: Tensor, options: tuple[Any, ...], groups: int
    ) -> fx.Node:
        """Gradient of the weight's slice; of a depthwise convolution, that of its own output channels is given too."""
        n = part.shape[1]
        if groups > 1:
            like = out[:, :n].contiguous(memory_format=torch.channels_last)
            gradient, sliced = self.constant(torch.randn_like(like)), weight[:n].contiguous()
        else:
            sliced = weight[:, :n].contiguous(memory_format=torch.channels_last)
        given = (gradient, self.constant(part), self.constant(sliced))
        return self.call(
            _aten.convolution_backward.default, *given, *options, n if groups > 1 else 1, [False, True, False]
        )


def _values(module: fx.GraphModule, x: Tensor) -> Values:
    """Arguments as they came in, and result, of every call of a graph."""
    found: Values = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op != "call_function":
                return super().run_node(n)
            args = fx.node.map_aggregate(
                self.fetch_args_kwargs_from_env(n)[0], lambda a: a.clone() if isinstance(a, Tensor) else a
            )
            result = super().run_node(n)
            found[n.name] = (args, result)  # type: ignore[assignment]
            return result

    with torch.no_grad():
        Noting(module).run(x)
    return found
