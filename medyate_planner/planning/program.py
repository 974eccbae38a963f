"""An integer linear program under construction: variables, named constraints, and three things PuLP has no word for.

The solver's module is handed in by solve.py, which alone knows where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Expression = Any


class Program:
    """A maximisation problem. Every variable and constraint has a readable name, unique in the .lp file."""

    def __init__(self, pulp: Any) -> None:
        self.pulp = pulp
        self.problem = pulp.LpProblem("medyate_plan", pulp.LpMaximize)
        self.integers = 0
        self._taken: set[str] = set()
        self._maxima: dict[tuple[int, ...], Expression] = {}
        self._alive: list[Expression] = []  # keeps the ids in _maxima unique

    def variable(self, name: str, low: float | None, high: float | None, kind: str = "Continuous") -> Expression:
        self.integers += kind != "Continuous"
        return self.problem.add_variable(self._unique(name), low, high, kind)

    def require(self, constraint: Any, name: str) -> None:
        """Add a constraint; one without a variable in it is checked at once."""
        if isinstance(constraint, bool):
            if constraint:
                return
            constraint = self.pulp.lpSum([]) >= 1
        self.problem += (constraint, self._unique(name))

    def maximise(self, terms: Sequence[Expression]) -> None:
        self.problem.setObjective(self.sum(terms))

    def sum(self, terms: Sequence[Expression]) -> Expression:
        return self.pulp.lpSum(terms)

    def any_of(self, causes: Sequence[Expression], name: str, *, kind: str = "Continuous") -> Expression:
        """The maximum of binaries: a constant or the one cause where that suffices, else a variable above each.

        It takes whole values of itself, so its kind only tells the solver whether to branch on it.
        """
        if any(isinstance(c, float) and c >= 1.0 for c in causes):
            return 1.0
        distinct = [c for c in causes if not isinstance(c, float)]
        distinct = [c for i, c in enumerate(distinct) if not any(c is d for d in distinct[:i])]
        if not distinct:
            return 0.0
        if len(distinct) == 1:
            return distinct[0]
        key = tuple(sorted(id(c) for c in distinct))
        if key not in self._maxima:
            variable = self.variable(name, 0, 1, kind)
            for i, cause in enumerate(distinct):
                self.require(variable >= cause, f"{name}_because_{i}")
            self._maxima[key] = variable
            self._alive += distinct
        return self._maxima[key]

    def named_sum(self, before: Expression, added: Sequence[Expression], name: str) -> Expression:
        """before + added as a variable of its own, so that later constraints stay short."""
        if not added:
            return before
        total = self.variable(name, None, None)
        self.require(total == before + self.sum(added), f"{name}_is")
        return total

    def _unique(self, name: str) -> str:
        plain = "".join(c if c.isalnum() or c == "_" else "_" for c in name)[:200]
        unique, number = plain, 1
        while unique in self._taken:
            number += 1
            unique = f"{plain}_{number}"
        self._taken.add(unique)
        return unique


def is_zero(expression: Expression) -> bool:
    """Whether an expression is the constant 0."""
    return isinstance(expression, (int, float)) and expression == 0
