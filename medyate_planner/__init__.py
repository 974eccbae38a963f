"""Fine-tune any torch model inside a memory budget.

    model -> trace -> memory -> rank -> plan -> train -> report

`report` tells where training memory goes; `rank` measures what matters on your data; `plan` decides, with an exact
integer program, which layers are updated and how many channels in each; `prepare` and `train` really train inside the
budget; `verify` proves it. Method: MeDyate (arXiv 2510.20979).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medyate_planner.api import plan, prepare, rank, train, verify
    from medyate_planner.errors import InfeasibleBudgetError, InputError, MedyateError
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_view import FrontierReport
    from medyate_planner.reporting.verification import Verification
    from medyate_planner.reporting.view import MemoryReport
    from medyate_planner.survey import report
    from medyate_planner.sweep import frontier
    from medyate_planner.training.loop import Batches, Recipe
    from medyate_planner.training.session import Session

_HOMES = {
    "frontier": "sweep", "plan": "api", "prepare": "api", "rank": "api", "report": "survey", "train": "api",
    "verify": "api",
    "InfeasibleBudgetError": "errors", "InputError": "errors", "MedyateError": "errors",
    "Importance": "importance.energy", "Plan": "planning.plan",
    "FrontierReport": "reporting.frontier_view", "MemoryReport": "reporting.view",
    "Verification": "reporting.verification",
    "Batches": "training.loop", "Recipe": "training.loop", "Session": "training.session",
}  # fmt: skip

__all__ = [
    "Batches",
    "FrontierReport",
    "Importance",
    "InfeasibleBudgetError",
    "InputError",
    "MedyateError",
    "MemoryReport",
    "Plan",
    "Recipe",
    "Session",
    "Verification",
    "frontier",
    "plan",
    "prepare",
    "rank",
    "report",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import medyate_planner` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
