"""Imports go only downwards, and modules stay small enough to be understood."""

from __future__ import annotations

import ast
from pathlib import Path

import medyate_planner

PACKAGE = Path(medyate_planner.__file__).parent
# From the bottom to the top: a module may import what stands before it (and its own group).
ORDER = (
    "errors", "units", "files", "families", "summary", "graph", "trace", "memory", "importance",
    "planning", "models", "losses", "strategy", "training", "data", "subject", "planfile", "plancheck", "reporting",
    "survey", "api", "integrations", "sweep", "bench", "demo", "cli",
)  # fmt: skip
HARD_LIMIT_LINES = 400


def group_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_groups(path: Path) -> set[str]:
    """Groups of the package that a module imports, wherever the import stands; type-checking blocks excepted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medyate_planner"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("medyate_planner.")}
    return names


def test_imports_go_only_downwards() -> None:
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        group = group_of(path)
        if group in ("__init__", "__main__"):
            continue
        assert group in ORDER, f"{path}: give {group} a place in ORDER"
        upward += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imported_groups(path)
            if other in ORDER and ORDER.index(other) > ORDER.index(group)
        ]
    assert upward == []


def test_only_solve_imports_the_solver() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import pulp" in path.read_text(encoding="utf-8")
    }
    assert users == {"planning/solve.py"}


def test_modules_stay_small() -> None:
    lengths = {p.relative_to(PACKAGE).as_posix(): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > HARD_LIMIT_LINES} == {}


def test_importing_the_package_is_quick() -> None:
    """No heavy import happens before something is used."""
    import subprocess
    import sys

    code = "import sys, medyate_planner; print([m for m in ('torch', 'pulp', 'rich', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
