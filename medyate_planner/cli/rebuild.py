"""From a plan file back to the model it was made for, and the importance beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medyate_planner.importance.energy import Importance
    from medyate_planner.models import LoadedModel
    from medyate_planner.planning.plan import Plan
    from medyate_planner.subject import Subject


def model_of(
    plan: Plan, *, weights: Path | None = None, need_weights: bool = False, allocate: bool = True
) -> LoadedModel:
    """Build the model a plan names; without `allocate` no weights are read, and it is on the meta device if it can be.

    Raises:
        InputError: the plan was made for a model in Python, which has no spec.
    """
    from medyate_planner.cli.options import check_device
    from medyate_planner.errors import InputError
    from medyate_planner.models import load_model

    check_device(plan.device)
    facts = plan.model
    if facts.spec is None:
        raise InputError(
            "the plan names no model (it was made in Python); use medyate_planner.prepare(model, plan) there"
        )
    loaded = load_model(
        facts.spec,
        weights=weights or facts.weights if allocate else None,
        num_classes=facts.num_classes,
        input_shape=facts.input_shape,
        dtype=plan.dtype,
        seed=plan.sampling.seed,
        head=None if facts.head_pattern == "none" else facts.head_pattern,
        require_weights=need_weights,
        allocate=allocate,
    )
    if allocate:
        loaded.model.to(plan.device)
    return loaded


def importance_path(plan: Plan, plan_path: Path, given: Path | None) -> Path | None:
    """The importance file a plan was made from: given, or found beside the plan, its hash checked.

    Raises:
        InputError: it is named in the plan but can not be found, or is another file.
    """
    from medyate_planner.errors import InputError
    from medyate_planner.files import sha256_of

    reference = plan.importance
    if given is None and reference.file is None:
        return None
    path = given or plan_path.parent / str(reference.file)
    if not path.is_file():
        raise InputError(f"importance file {path}, which the plan was made from: no such file; pass --importance FILE")
    if reference.sha256 and sha256_of(path) != reference.sha256:
        raise InputError(
            f"importance file {path} is not the one the plan was made from (its SHA-256 differs); plan again"
        )
    return path


def read_importance(path: Path | None, subject: Subject) -> Importance | None:
    """A file of `medyate rank`, or the user's own numbers in JSON."""
    from medyate_planner.importance.energy import Importance
    from medyate_planner.importance.own import read_numbers

    if path is None:
        return None
    return read_numbers(path, subject.graph) if path.suffix == ".json" else Importance.load(path)
