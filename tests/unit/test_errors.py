"""Every error: attributes, text, exit code, and what `--json` prints of it."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest

from medyate_planner import errors
from medyate_planner.errors import (
    BudgetExceededError,
    ContradictionError,
    InfeasibleBudgetError,
    MedyateError,
    MedyateWarning,
)

EXIT_CODES = {
    "MedyateError": 2,
    "InputError": 2,
    "ContradictionError": 2,
    "TraceError": 2,
    "PlanMismatchError": 2,
    "InterruptedByUser": 130,
    "StepOrderError": 2,
    "CertificationError": 1,
    "BudgetExceededError": 1,
    "DivergenceError": 1,
    "SolverError": 1,
    "InfeasibleBudgetError": 3,
}
OWN_TEXT = ("InfeasibleBudgetError", "ContradictionError", "BudgetExceededError")


def test_every_error_class_is_listed_here() -> None:
    found = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MedyateError)}
    assert found == set(EXIT_CODES)


@pytest.mark.parametrize(("name", "exit_code"), [(n, c) for n, c in EXIT_CODES.items() if n not in OWN_TEXT])
def test_error_carries_message_facts_and_exit_code(name: str, exit_code: int) -> None:
    error = getattr(errors, name)("layer a: expected 3, got 4", layer="a", expected=3)
    assert isinstance(error, MedyateError)
    assert str(error) == error.message == "layer a: expected 3, got 4"
    assert error.facts == {"layer": "a", "expected": 3}
    assert error.exit_code == type(error).exit_code == exit_code
    assert json.loads(json.dumps(error.to_dict())) == {
        "error": name,
        "message": "layer a: expected 3, got 4",
        "exit_code": exit_code,
        "layer": "a",
        "expected": 3,
    }


def test_error_without_facts() -> None:
    assert errors.InputError("no").to_dict() == {"error": "InputError", "message": "no", "exit_code": 2}


def test_infeasible_budget_error_states_the_smallest_budget() -> None:
    error = InfeasibleBudgetError(
        budget_bytes=1000, minimum_bytes=123456, scope="training", spent_on="1 channel of a and the head (b) in full"
    )
    assert isinstance(error, MedyateError)
    assert (error.budget_bytes, error.minimum_bytes, error.scope) == (1000, 123456, "training")
    assert error.spent_on == "1 channel of a and the head (b) in full"
    assert str(error) == (
        "budget 1,000 B (scope training) can not be met: the smallest possible one is 123,456 B, "
        "for 1 channel of a and the head (b) in full; pass --budget 123456B or more"
    )
    assert error.to_dict() == {
        "error": "InfeasibleBudgetError",
        "message": str(error),
        "exit_code": 3,
        "budget_bytes": 1000,
        "minimum_bytes": 123456,
        "scope": "training",
        "spent_on": "1 channel of a and the head (b) in full",
    }


def test_infeasible_budget_error_names_what_contradicts_the_budget() -> None:
    error = InfeasibleBudgetError(
        budget_bytes=1000,
        minimum_bytes=5000,
        scope="training",
        spent_on="1 channel of a",
        demands=("--budget 1000B", "--force-layer a"),
    )
    assert str(error).endswith("; pass --budget 5000B or more, or drop --force-layer a")
    assert error.to_dict()["demands"] == ["--budget 1000B", "--force-layer a"]


def test_contradiction_error_names_the_demands() -> None:
    error = ContradictionError(("--force-layer a*", "--max-layers 1"))
    assert str(error) == (
        "no plan can meet --force-layer a* and --max-layers 1 together, whatever the budget; drop one of them"
    )
    assert error.demands == ("--force-layer a*", "--max-layers 1")
    assert (error.exit_code, error.to_dict()["demands"]) == (2, ["--force-layer a*", "--max-layers 1"])


@pytest.mark.parametrize("undone", [True, False])
def test_budget_exceeded_error_tells_where_and_by_how_much(undone: bool) -> None:
    error = BudgetExceededError(
        budget_bytes=512_000, measured_bytes=530_000, scope="training", epoch=1, step=7, undone=undone
    )
    when = "before it updated anything" if undone else "after it"
    assert str(error) == (
        f"epoch 1, step 7 held 530,000 B (scope training), above the budget of 512,000 B: training stopped {when}; "
        "does the loss keep more than the one that was planned with? plan again with it, or with a larger --budget"
    )
    assert (error.budget_bytes, error.measured_bytes, error.undone) == (512_000, 530_000, undone)
    assert error.to_dict() == {
        "error": "BudgetExceededError",
        "message": str(error),
        "exit_code": 1,
        "budget_bytes": 512_000,
        "measured_bytes": 530_000,
        "scope": "training",
        "epoch": 1,
        "step": 7,
    }


def test_warning_is_a_user_warning() -> None:
    assert issubclass(MedyateWarning, UserWarning)
    with pytest.warns(MedyateWarning, match="be aware"):
        warnings.warn("be aware", MedyateWarning, stacklevel=1)
