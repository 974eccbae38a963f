"""Modules as a tree with roll-up sums: what each holds with all that is below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medyate_planner.errors import unknown_name
from medyate_planner.reporting.view import ReportedModule

SORT_KEYS = ("order", "name", "parameters", "weights", "gradients", "optimizer", "saved", "total")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNode:
    """A module and its submodules; the sums include them."""

    name: str
    path: str
    kind: str
    parameters: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    children: tuple[ModuleNode, ...]

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.saved_bytes

    def walk(self, depth: int, level: int = 0) -> Iterator[tuple[int, ModuleNode]]:
        """This node and those at most `depth` levels below it, each with its level, parents first."""
        yield level, self
        if level < depth:
            for child in self.children:
                yield from child.walk(depth, level + 1)


def check_sort(sort: str) -> None:
    """Raise `InputError` for an unknown sort key."""
    if sort not in SORT_KEYS:
        raise unknown_name("--sort", sort, SORT_KEYS)


def module_tree(modules: Iterable[ReportedModule], *, sort: str = "order") -> ModuleNode:
    """The tree of a report's modules; each level in the model's own order, or by a name or the largest figure first.

    Raises:
        InputError: an unknown sort key.
    """
    check_sort(sort)
    own: dict[tuple[str, ...], ReportedModule] = {}
    below: dict[tuple[str, ...], list[tuple[str, ...]]] = {(): []}
    for module in modules:
        parts = tuple(module.path.split(".")) if module.path else ()
        own[parts] = module
        for length in range(1, len(parts) + 1):  # parents that hold nothing themselves are not in the list
            if parts[:length] not in below:
                below[parts[:length]] = []
                below[parts[: length - 1]].append(parts[:length])
    return _node((), own, below, sort)


def _node(
    parts: tuple[str, ...],
    own: dict[tuple[str, ...], ReportedModule],
    below: dict[tuple[str, ...], list[tuple[str, ...]]],
    sort: str,
) -> ModuleNode:
    children = tuple(_sorted([_node(child, own, below, sort) for child in below[parts]], sort))
    mine = own.get(parts)

    def total(figure: str) -> int:
        return sum(int(getattr(part, figure)) for part in (mine, *children) if part is not None)

    return ModuleNode(
        name=parts[-1] if parts else "",
        path=".".join(parts),
        kind=mine.kind if mine is not None else "",
        parameters=total("parameters"),
        weights_bytes=total("weights_bytes"),
        gradients_bytes=total("gradients_bytes"),
        optimizer_bytes=total("optimizer_bytes"),
        saved_bytes=total("saved_bytes"),
        children=children,
    )


def _sorted(nodes: list[ModuleNode], sort: str) -> list[ModuleNode]:
    if sort == "order":
        return nodes
    if sort == "name":
        return sorted(nodes, key=lambda node: node.name)
    figure = sort if sort == "parameters" else f"{sort}_bytes"
    return sorted(nodes, key=lambda node: -int(getattr(node, figure)))
