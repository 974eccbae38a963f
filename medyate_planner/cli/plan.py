"""`medyate plan`"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import ModelOptions, OutputOptions, check_output, load, make_subject
from medyate_planner.cli.output import emit_json, say, show


def plan(
    model: str,
    /,
    *,
    budget: str,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    importance: Path | None = None,
    scope: str = "training",
    strategy: str = "optimal",
    objective: str = "norm",
    curve: str = "uniform",
    sampling: str = "uniform",
    alpha: float = 1.0,
    update: str = "fused",
    optimizer: str = "sgd",
    norm: str = "frozen",
    biases: bool = True,
    max_layers: int | None = None,
    granularity: int = 1,
    force_layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    forbid_layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    gap: float = 1e-3,
    time_limit: float | None = None,
    options: ModelOptions = ModelOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Decide which layers are updated, and how many channels in each, under a memory budget.

    Example: medyate plan mcunet-5fps --num-classes 10 --budget 512kB --importance importance.safetensors -o plan.json

    Parameters
    ----------
    model
        As for `medyate report`.
    budget
        Such as 512kB (1000 B each), 512KiB (1024 B each) or 0.5MB.
    output
        Write plan.json here.
    importance
        File from `medyate rank`; without it, mean squared weight per channel.
    scope
        training: the largest moment of a step; update: plain sum of gradients and selected activations.
    strategy
        optimal (exact integer program), head-only or full.
    objective
        norm (root of captured energy per layer) or energy.
    curve
        uniform, weighted or top: how n channels are valued.
    sampling
        uniform, weighted, top or static: how channels are redrawn each epoch.
    alpha
        Exponent of the importance in weighted sampling.
    update
        fused: updates happen during backward.
    optimizer
        sgd.
    norm
        frozen: norms use their stored statistics.
    biases
        Also buy biases.
    max_layers
        Update at most this many layers.
    granularity
        Quotas are multiples of this.
    force_layer
        Pattern of layers that must be updated.
    forbid_layer
        Pattern of layers that must not be updated.
    gap
        Relative gap at which the solver may stop; 0 proves the optimum.
    time_limit
        Seconds for the solver.
    """
    from medyate_planner.api import plan as make_plan
    from medyate_planner.errors import InputError
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Sampling
    from medyate_planner.reporting.text import render_plan
    from medyate_planner.units import parse_bytes

    for name, given, known in (
        ("--optimizer", optimizer, "sgd"),
        ("--norm", norm, "frozen"),
        ("--update", update, "fused"),
    ):
        if given != known:
            raise InputError(f"{name} {given} is not available in this version; choose {known}")
    _check_sampling(sampling, importance, alpha)
    budget_bytes = parse_bytes(budget)
    check_output(output, force=out.force)
    measured = Importance.load(importance) if importance else None
    loaded = load(model, options)
    say(f"model: {loaded.spec}, weights: {loaded.weights_source}")
    if measured is None:
        say("importance: mean squared weight per channel (no data seen); measure it with `medyate rank`")
    request: dict[str, Any] = {
        "scope": scope, "objective": objective, "curve": curve, "buy_biases": biases, "max_layers": max_layers,
        "granularity": granularity, "force_layers": force_layer, "forbid_layers": forbid_layer,
        "gap_ratio": gap, "time_limit_seconds": time_limit, "seed": options.seed,
    }  # fmt: skip
    made = make_plan(
        make_subject(loaded, options),
        None,
        budget_bytes,
        measured,
        strategy=strategy,
        sampling=Sampling(method=sampling, seed=options.seed, alpha=alpha),  # type: ignore[arg-type]
        model_facts=model_facts(loaded, options),
        importance_file=_reference(importance, measured),
        request=request,
    )
    if output is not None:
        made.save(output, force=out.force)
        say(f"wrote {output}")
    if out.json:
        emit_json(made.to_dict())
    else:
        show(render_plan(made))
    return 0


def model_facts(loaded: Any, options: ModelOptions) -> dict[str, Any]:
    """What a plan file keeps of the model, so that `verify` and `train` can build it again."""
    return {
        "spec": loaded.spec,
        "weights": str(options.weights.resolve()) if options.weights else None,
        "num_classes": options.num_classes,
        "input_shape": loaded.input_shape,
    }


def _check_sampling(sampling: str, importance: Path | None, alpha: float) -> None:
    from medyate_planner.errors import InputError
    from medyate_planner.planning.sampling import METHODS

    if sampling not in METHODS:
        raise InputError(f"--sampling {sampling!r} is unknown; choose one of {', '.join(METHODS)}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"--alpha: expected a finite number of 0 or more, got {alpha}")
    if sampling in ("weighted", "top") and importance is None:
        raise InputError(
            f"--sampling {sampling} needs the importance of channels; pass --importance FILE from `medyate rank`"
        )


def _reference(path: Path | None, measured: Any) -> Any:
    from medyate_planner.files import sha256_of
    from medyate_planner.planning.plan import ImportanceRef

    if path is None:
        return None
    return ImportanceRef(source=measured.source, file=path.name, sha256=sha256_of(path))
