"""The frozen prefix: what runs before the reach and gives the same for a sample in every epoch, cut off the lean graph.

An edge is a value that the reach reads and something before it makes. The rest of the graph (the suffix) can be run
without what came before, if each edge is read from elsewhere at its first use: so no more is live than ever. A value
that can not be kept by samples, because its batch axis is merged with another or its memory has gaps, is made in the
suffix again, from what it was made of.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen

from medyate_planner.errors import InputError
from medyate_planner.memory.model import MemoryModel
from medyate_planner.trace.fake import is_inplace, lookup
from medyate_planner.training.nodes import fake_values, holder, reached_from, upstream
from medyate_planner.training.prefix_cache import memory_order
from medyate_planner.training.session import Session

Recorder = Callable[[str, Tensor], None]
Reader = Callable[[str, Tensor], Tensor]
PLACES = "medyate_places"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A value at the edge of the reach: its name, the operator that makes it, the axis of the batch, and bytes."""

    name: str
    made_by: str
    batch_axis: int
    sample_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A lean graph cut at the reach. `prefix(inputs…)` gives the edges' values; `weights` are those that it reads, and
    `skipped` is how many operators it has."""

    edges: tuple[Edge, ...]
    weights: Mapping[str, Tensor]
    skipped: int
    prefix: fx.GraphModule
    _recording: fx.Graph
    _suffix: fx.Graph
    _lean: fx.GraphModule

    @property
    def sample_bytes(self) -> int:
        """Bytes of all edges of one sample."""
        return sum(edge.sample_bytes for edge in self.edges)

    def recording(self, record: Recorder) -> fx.GraphModule:
        """The lean graph, which also tells every edge's value just before the reach first reads it."""
        return self._with_callees(self._recording, record)

    def suffix(self, read: Reader) -> fx.GraphModule:
        """What is left of the lean graph: of the samples' places in the training set it makes the flat outputs, and
        asks for every edge's value when it is first used."""
        return self._with_callees(self._suffix, read)

    def _with_callees(self, graph: fx.Graph, callee: Callable[[str, Tensor], Tensor | None]) -> fx.GraphModule:
        root = holder(self._lean)
        for edge in self.edges:
            root.add_module(edge.name, _Callee(edge.name, callee))
        return fx.GraphModule(root, graph)


class _Callee(nn.Module):
    def __init__(self, name: str, callee: Callable[[str, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.name, self.callee = name, callee

    def forward(self, given: Tensor) -> Tensor | None:
        return self.callee(self.name, given)


def cut_prefix(session: Session) -> Cut:
    """Cut the lean graph of a session whose layers are fixed.

    Raises:
        InputError: the reach begins at the inputs; something before it is random, or is changed in place after the
            reach has read it.
    """
    return _Cutter(session).cut()


class _Cutter:
    """What is known of each node of the lean graph while it is cut."""

    def __init__(self, session: Session) -> None:
        self.lean, self.graph = session.lean, session.graph
        self.nodes = list(self.lean.graph.nodes)
        self.place = {node: index for index, node in enumerate(self.nodes)}
        active = MemoryModel(session.graph).active(session.updates)
        self.suffix: set[fx.Node] = set()
        for node in self.nodes:
            is_active = node.op != "get_attr" and node.name.removeprefix("lean_") in active
            if node.op == "output" or is_active or any(n in self.suffix for n in node.all_input_nodes):
                self.suffix.add(node)
        before = [node for node in self.nodes if node not in self.suffix]
        first = next(iter(session.model.parameters()))
        self.dtype, batch = first.dtype, session.graph.batch_size
        self.small = fake_values(self.lean, before, batch, first.device)
        self.large = fake_values(self.lean, before, batch + 1, first.device)
        self.sampled = reached_from([node for node in before if node.op == "placeholder"], before)
        self.edges: dict[fx.Node, int] = {}

    def cut(self) -> Cut:
        for node in sorted(self.suffix, key=self.place.__getitem__):
            for value in node.all_input_nodes:
                self._need(value)
        edges = sorted(self.edges, key=self.place.__getitem__)
        if all(node.op == "placeholder" for node in edges):
            raise InputError(
                "--cache-prefix: what is trained begins at the model's inputs, so there is nothing before it to keep; "
                "leave it out, or plan with --forbid-layer for the first layers"
            )
        skipped = upstream(edges) - self.suffix
        self._check_random(skipped)
        self._check_inplace()
        names = {node: f"medyate_edge_{number}" for number, node in enumerate(edges)}
        attributes = {str(node.target) for node in skipped if node.op == "get_attr"}
        return Cut(
            edges=tuple(
                Edge(
                    name=names[node],
                    made_by=node.name,
                    batch_axis=self.edges[node],
                    sample_bytes=self.large[node].nbytes - self.small[node].nbytes,
                )
                for node in edges
            ),
            weights={name: lookup(self.lean, name) for name in sorted(attributes)},
            skipped=sum(node.op not in ("get_attr", "placeholder") for node in skipped),
            prefix=self._prefix_module(edges, skipped),
            _recording=self._recording_graph(names),
            _suffix=self._suffix_graph(names),
            _lean=self.lean,
        )

    def _need(self, node: fx.Node) -> None:
        """Let the suffix have this value: as an edge, or made there from values that it gets in turn."""
        if node in self.suffix or node in self.edges or self._size(node) is not None:
            return
        axis = self._batch_axis(node)
        if node in self.sampled and axis is not None:
            self.edges[node] = axis
            return
        if node.op == "placeholder":
            raise InputError(f"--cache-prefix: the input {node.name} can not be kept by samples; leave it out")
        self.suffix.add(node)
        for value in node.all_input_nodes:
            self._need(value)

    def _size(self, node: fx.Node) -> int | None:
        """A number that is so many times the batch size (0: that does not depend on it)."""
        small, large = self.small.get(node), self.large.get(node)
        if not isinstance(small, int) or not isinstance(large, int) or isinstance(small, bool):
            return None
        step = large - small
        return step if step in (0, small // self.graph.batch_size) else None

    def _batch_axis(self, node: fx.Node) -> int | None:
        """The axis of the batch, if samples lie one after the other in memory, without gaps."""
        small, large = self.small[node], self.large[node]
        if not isinstance(small, Tensor) or small.dim() == 0:
            return None
        axes = [d for d in range(small.dim()) if small.shape[d] != large.shape[d]]
        sizes = (self.graph.batch_size, self.graph.batch_size + 1)
        if len(axes) != 1 or (small.shape[axes[0]], large.shape[axes[0]]) != sizes:
            return None
        kept_as_is = small.dtype == self.dtype or not small.dtype.is_floating_point
        return axes[0] if kept_as_is and not small.is_complex() and memory_order(large, axes[0]) is not None else None

    def _check_random(self, skipped: Iterable[fx.Node]) -> None:
        for node in skipped:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise InputError(
                    f"--cache-prefix: {node.name} draws random numbers before what is trained, so that a sample has no "
                    "value of its own; plan with --dropout off, or leave it out"
                )

    def _check_inplace(self) -> None:
        """Raise `InputError` for what reading edges from elsewhere would not show: two names of one memory."""
        storages = {node: self._storage(node) for node in self.edges}
        for node in self.nodes:
            if node.op == "output" or not is_inplace(node):
                continue
            sharing = [edge for edge, storage in storages.items() if storage == self._storage(node.all_input_nodes[0])]
            late = [e for e in sharing if node not in self.suffix and self.place[node] > self._first_use(e)]
            if late or (node in self.suffix and len(sharing) > 1):
                raise InputError(
                    f"--cache-prefix: {node.name} changes {sharing[0].name} in place, which is read under another name "
                    "too; leave it out"
                )

    def _storage(self, node: fx.Node) -> int:
        spec = self.graph.values.get(node.name.removeprefix("lean_"))
        return -1 - self.place[node] if spec is None else spec.storage

    def _first_use(self, edge: fx.Node) -> int:
        return min(self.place[user] for user in edge.users if user in self.suffix)

    def _prefix_module(self, edges: Sequence[fx.Node], skipped: Set[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        codegen = self.lean.graph._codegen
        if isinstance(codegen, _PyTreeCodeGen):  # inputs come in as they do there
            graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=None)))
        env: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder" or node in skipped:
                env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(tuple(env[edge] for edge in edges))
        return fx.GraphModule(holder(self.lean), graph)

    def _suffix_graph(self, names: Mapping[fx.Node, str]) -> fx.Graph:
        graph = fx.Graph()
        env: dict[fx.Node, Any] = {}
        places = graph.placeholder(PLACES)
        batch = graph.call_function(torch.ops.aten.sym_size.int, (places, 0))
        for node in [node for node in self.nodes if node in self.suffix]:
            for value in node.all_input_nodes:
                size = self._size(value)
                if value in names and value not in env:
                    env[value] = graph.call_module(names[value], (places,))
                elif size is not None and value not in env:
                    env[value] = graph.call_function(operator.mul, (batch, size)) if size else self.small[value]
            if node.op != "output":
                env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(fx.node.map_arg(self.nodes[-1].args[0], env.__getitem__))
        if not batch.users:
            graph.erase_node(batch)
        return graph

    def _recording_graph(self, names: Mapping[fx.Node, str]) -> fx.Graph:
        with warnings.catch_warnings():  # torch's own graph copy warns about a deprecation of its own
            warnings.simplefilter("ignore", FutureWarning)
            graph = copy.deepcopy(self.lean.graph)
        twins = dict(zip(self.nodes, graph.nodes, strict=True))
        for edge, name in names.items():
            with graph.inserting_before(twins[self.nodes[self._first_use(edge)]]):
                graph.call_module(name, (twins[edge],))
        return graph
