"""Which strategy plans: one of ours by name, or a function of the user's own, whose answers are checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medyate_planner.errors import InputError, MedyateError, did_you_mean
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.models.factory import first_line, import_factory
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.limits import require_allowed
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import CHANGES_QUOTAS, DRAWS_BY_IMPORTANCE, STRATEGIES, Strategy

FORMS = f"{', '.join(STRATEGIES)}, package.module:function or path/to/file.py:function"


def read_strategy(spec: str, *, what: str = "strategy") -> str | Strategy:
    """A strategy as the command line names it: the name of one of ours, or the function that a spec names.

    What the function raises becomes an error of one line, as with a model's factory.

    Raises:
        InputError: an unknown name, or no such file or function.
    """
    if spec in STRATEGIES:
        return spec
    if ":" not in spec:
        nearest = did_you_mean(spec, STRATEGIES, count=1)
        raise InputError(f"{what} {spec!r} is unknown; {nearest}choose one of {FORMS}")
    function = import_factory(spec, what="strategy")

    def decide(request: PlanRequest) -> Decision:
        try:
            return function(request)  # type: ignore[no-any-return]
        except MedyateError:
            raise
        except Exception as error:
            raise InputError(f"strategy {spec!r} raised {first_line(error)}") from error

    decide.__name__ = spec.rpartition(":")[2]
    return decide


def chosen_strategy(
    strategy: str | Strategy, importance: Importance | None = None, mode: UpdateMode = FUSED
) -> Strategy:
    """The planner of that name, or the user's own function with its answers checked.

    Raises:
        InputError: there is none, it draws by importance and none was measured, or its quotas change and `mode` wants
            parameters of constant shape.
    """
    found = read_strategy(strategy) if isinstance(strategy, str) else strategy
    if not isinstance(found, str):
        return _checked(found, mode)
    if found in DRAWS_BY_IMPORTANCE and importance is None:
        raise InputError(
            f"strategy {found} draws by the importance of channels; pass --importance FILE from `medyate rank`"
        )
    if found in CHANGES_QUOTAS and not mode.is_fused:
        raise InputError(_changes_quotas(found))
    return STRATEGIES[found]


def _checked(function: Strategy, mode: UpdateMode) -> Strategy:
    """The user's function, whose decisions keep the budget and every other demand, or are refused."""
    name = getattr(function, "__name__", type(function).__name__)

    def decide(request: PlanRequest) -> Decision:
        found = function(request)
        if not isinstance(found, Decision):
            raise InputError(
                f"strategy {name}: expected a Decision, got {type(found).__name__}; return "
                f"Decision(updates=request.updates(quotas), strategy={name!r})"
            )
        if found.draws and not mode.is_fused:
            raise InputError(_changes_quotas(name))
        for updates in found.all_updates:
            request.memory.check(updates)
            for fault in _faults(request, updates):
                raise InputError(f"strategy {name}: {fault}")
            require_allowed(request, updates, strategy=name)
        return replace(found, strategy=name) if found.strategy in STRATEGIES else found  # not ours, though it may ask

    return decide


def _faults(request: PlanRequest, updates: Updates) -> Iterator[str]:
    for layer, quota in updates.quotas.items():
        if not isinstance(quota, int) or isinstance(quota, bool):
            yield f"expected whole numbers of channels, got {quota!r} of {layer}; round down with int()"
    if updates.full != request.head:
        yield (
            f"trains {_names(updates.full)} in full, expected the head, {_names(request.head)}; make updates with "
            "request.updates(quotas, biases)"
        )
    if not any(updates.quotas.values()) and not updates.biases:
        yield "updates nothing beside the head; give at least one layer a channel, or choose strategy head-only"
    needed = scope_bytes(request, updates)
    if needed > request.limit_bytes:
        yield (
            f"its updates need {needed:,} B (scope {request.scope}) of {request.limit_bytes:,} B; ask "
            "planning.recompute.fits(request, updates) before returning them"
        )


def _names(layers: frozenset[str]) -> str:
    return " and ".join(sorted(layers)) or "nothing"


def _changes_quotas(name: str) -> str:
    return (
        f"strategy {name} changes quotas between intervals, which needs update mode fused: compact parameters "
        "have constant shapes; leave out --update optimizer, or choose another strategy"
    )
