"""The tree of modules: sums include what is below, each level is sorted, nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medyate_planner.errors import InputError
from medyate_planner.reporting.tree import SORT_KEYS, ModuleNode, check_sort, module_tree
from medyate_planner.reporting.view import ReportedModule

FIGURES = ("parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes")


def _module(path: str, kind: str = "Linear", *amounts: int) -> ReportedModule:
    return ReportedModule(path=path, kind=kind, **dict(zip(FIGURES, (*amounts, *[0] * 5)[:5], strict=True)))


MODULES = (
    _module("", "Net"),
    _module("stem", "Conv2d", 1, 40, 4, 8, 100),
    _module("blocks.0.conv", "Conv2d", 2, 30, 5, 7, 300),
    _module("blocks.0.norm", "BatchNorm2d", 3, 20, 6, 9, 50),
    _module("blocks.10.conv", "Conv2d", 4, 10, 7, 6, 200),
    _module("blocks.2.conv", "Conv2d", 5, 60, 3, 5, 150),
)


def _all(node: ModuleNode) -> list[ModuleNode]:
    return [found for _, found in node.walk(99)]


def test_sums_include_all_that_is_below() -> None:
    root = module_tree(MODULES)
    assert [getattr(root, figure) for figure in FIGURES] == [15, 160, 25, 35, 800]
    assert root.total_bytes == 160 + 25 + 35 + 800
    blocks = root.children[1]
    assert (blocks.name, blocks.path, blocks.kind) == ("blocks", "blocks", "")
    assert (blocks.parameters, blocks.saved_bytes) == (14, 700)
    assert (blocks.children[0].path, blocks.children[0].weights_bytes) == ("blocks.0", 50)


def test_order_is_the_models_own() -> None:
    assert [node.path for node in _all(module_tree(MODULES))] == [
        "", "stem", "blocks", "blocks.0", "blocks.0.conv", "blocks.0.norm", "blocks.10", "blocks.10.conv", "blocks.2",
        "blocks.2.conv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["0", "10", "2"]),
        ("parameters", ["0", "2", "10"]),
        ("weights", ["2", "0", "10"]),
        ("gradients", ["0", "10", "2"]),
        ("optimizer", ["0", "10", "2"]),
        ("saved", ["0", "10", "2"]),
        ("total", ["0", "10", "2"]),
    ],
)
def test_each_level_is_sorted_by_the_key(sort: str, expected: list[str]) -> None:
    blocks = next(node for node in module_tree(MODULES, sort=sort).children if node.name == "blocks")
    assert [node.name for node in blocks.children] == expected


def test_the_largest_figure_comes_first_on_every_level() -> None:
    for sort in set(SORT_KEYS) - {"order", "name"}:
        figure = sort if sort == "parameters" else f"{sort}_bytes"
        for node in _all(module_tree(MODULES, sort=sort)):
            amounts = [getattr(child, figure) for child in node.children]
            assert amounts == sorted(amounts, reverse=True)


def test_equal_figures_keep_the_models_order() -> None:
    equal = [_module(name, "Linear", 1, 4) for name in ("b", "a", "c")]
    assert [node.name for node in module_tree(equal, sort="total").children] == ["b", "a", "c"]


def test_depth_ends_the_walk() -> None:
    root = module_tree(MODULES)
    assert [node.path for _, node in root.walk(0)] == [""]
    assert [(level, node.path) for level, node in root.walk(1)] == [(0, ""), (1, "stem"), (1, "blocks")]


def test_an_unknown_key_is_refused_with_those_that_are_known() -> None:
    for refuse in (lambda: module_tree(MODULES, sort="size"), lambda: check_sort("size")):
        with pytest.raises(InputError, match="size") as caught:
            refuse()
        assert all(key in caught.value.message for key in SORT_KEYS)


def test_a_model_of_nothing_is_a_tree_of_one() -> None:
    root = module_tree([])
    assert (root.children, root.total_bytes, root.path) == ((), 0, "")


PATHS = st.lists(st.lists(st.sampled_from("abc"), max_size=4).map(".".join), unique=True, max_size=12)


@given(PATHS, st.sampled_from(SORT_KEYS), st.randoms(use_true_random=False))
def test_nothing_is_lost_or_counted_twice(paths: list[str], sort: str, random: object) -> None:
    modules = [_module(path, "M", *[random.randrange(100) for _ in FIGURES]) for path in paths]  # type: ignore[attr-defined]
    root = module_tree(modules, sort=sort)
    for figure in FIGURES:
        assert getattr(root, figure) == sum(getattr(module, figure) for module in modules)
        for node in _all(root):
            own = sum(getattr(module, figure) for module in modules if module.path == node.path)
            assert getattr(node, figure) == own + sum(getattr(child, figure) for child in node.children)
    found = [node.path for node in _all(root)]
    assert len(found) == len(set(found))
    assert set(paths) <= set(found) | {""}
