"""Every error of the package: facts as attributes, one line of text, an exit code.

Exit codes: 1 a check did not hold, 2 bad input or usage, 3 the budget can not be met, 130 interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar


class MedyateWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class MedyateError(Exception):
    """Base of all errors raised on purpose. `facts` holds what went wrong, for machines."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        """The error as `--json` prints it: error, message, exit_code and the facts."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "exit_code": self.exit_code,
            **self.facts,
        }


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: such numbers become text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}


class InputError(MedyateError):
    """Something handed in is not what it should be: a name, a file, a shape, a number."""


def closest(name: str, known: Iterable[str], *, count: int = 3) -> tuple[str, ...]:
    """The known names that look most like a misspelt one, the nearest first; capitals do not matter."""
    folded = {other.lower(): other for other in reversed(list(known))}
    return tuple(folded[match] for match in get_close_matches(name.lower(), folded, n=count, cutoff=0.6))


def did_you_mean(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """`did you mean a, b? `, to be followed by what else can be said; nothing where no known name is near."""
    close = closest(name, known, count=count)
    return f"did you mean {', '.join(close)}? " if close else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a word that is none of a few, with the nearest of them."""
    words = list(known)
    choice = " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
    return InputError(f"{what} {name!r} is unknown; {did_you_mean(name, words, count=1)}choose {choice}")


class TraceError(MedyateError):
    """A model could not be captured, or holds an operator nothing is known about."""


class PlanMismatchError(MedyateError):
    """A plan was applied to a model it was not made for."""


class StepOrderError(MedyateError):
    """A session was used in an order that would give wrong gradients."""


class DivergenceError(MedyateError):
    """The loss became NaN or infinite."""

    exit_code = 1


class CertificationError(MedyateError):
    """The closed form and the dry run disagree about a plan."""

    exit_code = 1


class SolverError(MedyateError):
    """The solver stopped without any plan."""

    exit_code = 1


class BudgetExceededError(MedyateError):
    """A training step held more than its budget, as measured. `undone`: before it had updated anything."""

    exit_code = 1

    def __init__(
        self, *, budget_bytes: int, measured_bytes: int, scope: str, epoch: int, step: int, undone: bool
    ) -> None:
        when = "before it updated anything" if undone else "after it"
        super().__init__(
            f"epoch {epoch}, step {step} held {measured_bytes:,} B (scope {scope}), above the budget of "
            f"{budget_bytes:,} B: training stopped {when}; does the loss keep more than the one that was planned with? "
            "plan again with it, or with a larger --budget",
            budget_bytes=budget_bytes,
            measured_bytes=measured_bytes,
            scope=scope,
            epoch=epoch,
            step=step,
        )
        self.budget_bytes = budget_bytes
        self.measured_bytes = measured_bytes
        self.undone = undone


class InterruptedByUser(MedyateError):
    """Ctrl-C."""

    exit_code = 130


class ContradictionError(InputError):
    """Demands on a plan that no budget could meet together. `demands` is the smallest such set, in words."""

    def __init__(self, demands: tuple[str, ...]) -> None:
        one = len(demands) == 1
        text = demands[0] if one else f"{' and '.join(demands)} together"
        super().__init__(
            f"no plan can meet {text}, whatever the budget; drop {'it' if one else 'one of them'}",
            demands=list(demands),
        )
        self.demands = demands


class InfeasibleBudgetError(MedyateError):
    """No plan fits the budget. `minimum_bytes` is the smallest budget that can be met.

    `demands` is the smallest set of demands that contradict each other, the budget among them, in words.
    """

    exit_code = 3

    def __init__(
        self,
        *,
        budget_bytes: int,
        minimum_bytes: int,
        scope: str,
        spent_on: str,
        demands: tuple[str, ...] = (),
        option: str = "--budget",
    ) -> None:
        others = " and ".join(d for d in demands if not d.startswith("--budget"))
        instead = f", or drop {others}" if others else ""
        if "in full" in others:
            instead += " (--head-by-channels, or fewer classes with --num-classes)"
        super().__init__(
            f"budget {budget_bytes:,} B (scope {scope}) can not be met: the smallest possible one is "
            f"{minimum_bytes:,} B, for {spent_on}; pass {option} {minimum_bytes}B or more{instead}",
            budget_bytes=budget_bytes,
            minimum_bytes=minimum_bytes,
            scope=scope,
            spent_on=spent_on,
            **({"demands": list(demands)} if demands else {}),
        )
        self.budget_bytes = budget_bytes
        self.minimum_bytes = minimum_bytes
        self.scope = scope
        self.spent_on = spent_on
        self.demands = demands
