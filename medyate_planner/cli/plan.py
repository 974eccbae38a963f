"""`medyate plan`"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import ModelOptions, OutputOptions, check_output, load, make_subject, tell_model
from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.plan_options import (
    BudgetOptions,
    BuyOptions,
    PlanOptions,
    StrategyOptions,
    UpdateOptions,
    ValueOptions,
    check_belonging,
    check_words,
    read_interval,
)
from medyate_planner.cli.progress import stages
from medyate_planner.cli.rebuild import read_importance

if TYPE_CHECKING:
    from medyate_planner.planning.decision import Strategy


def plan(
    model: str | None = None,
    /,
    *,
    budget: str | None = None,
    budgets: str | None = None,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    plans: Path | None = None,
    importance: Path | None = None,
    strategy: str = "optimal",
    explain: Annotated[bool, Parameter(negative="")] = False,
    check: Path | None = None,
    updating: UpdateOptions = UpdateOptions(),
    limits: BudgetOptions = BudgetOptions(),
    buy: BuyOptions = BuyOptions(),
    value: ValueOptions = ValueOptions(),
    settings: StrategyOptions = StrategyOptions(),
    options: ModelOptions = ModelOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Decide which layers are updated, and how many channels in each, under a memory budget.

    Example: medyate plan mcunet-5fps --num-classes 3 --budget 512kB -o plan.json

    Parameters
    ----------
    model
        As for `medyate report`. Without --weights and --importance: fresh weights, mean squared weight per channel.
    budget
        Such as 512kB (1000 B each), 512KiB (1024 B each), 0.5MB or 2_000_000B.
    budgets
        Several, to see what each buys: 64kB:2MB:12 (from, to, how many) or a list 64kB,512kB.
    output
        Write plan.json here; with --budgets a .json, .csv, .png, .svg or .html of the curve.
    plans
        With --budgets: write one plan file each into this folder.
    importance
        File from `medyate rank`, or your own numbers (.json); without it, mean squared weight per channel.
    strategy
        optimal (exact integer program), one of the published ones (a wrong name lists them all), or file.py:function.
    explain
        Say of each layer why it is in or out, and what the next 100 kB would buy.
    check
        Instead of planning: does this plan, edited by hand, keep its budget? Exit 1 if not; -o FILE corrects figures.
    """
    if check is not None:
        return _check(check, (model, budget, budgets, plans), output, importance, out)
    from medyate_planner.errors import InputError
    from medyate_planner.strategy import read_strategy

    if model is None:
        raise InputError("expected a MODEL to plan for, or --check PLAN; see `medyate plan --help`")
    updating.mode()
    decide = read_strategy(strategy, what="--strategy")
    check_words(limits, value)
    if (budget is None) == (budgets is None):
        raise InputError("expected --budget (one plan) or --budgets (what each of several buys), and one of them only")
    if plans is not None and budgets is None:
        raise InputError("--plans belongs to --budgets; for one plan pass -o FILE")
    if budgets is not None and explain:
        raise InputError("--explain belongs to --budget: it explains one plan")
    if settings.write_lp is not None and (strategy != "optimal" or budgets is not None):
        raise InputError("--write-lp belongs to --strategy optimal and one --budget: no other makes one program")
    check_output(settings.write_lp, force=out.force)
    check_belonging(strategy, settings, limits)
    _check_sampling(value, strategy, importance)
    chosen = PlanOptions(updating=updating, budget=limits, buy=buy, value=value, strategy=settings)
    if budgets is not None:
        return _frontier(model, budgets, (output, plans), importance, decide, chosen, options, out)
    return _one(model, str(budget), output, importance, decide, chosen, options, out, explain=explain)


def _check(
    file: Path, given: tuple[object, ...], output: Path | None, importance: Path | None, out: OutputOptions
) -> int:
    from medyate_planner.cli.check import run_check
    from medyate_planner.errors import InputError

    if any(value is not None for value in given):
        raise InputError(
            "--check reads model and budget from the plan; leave out MODEL, --budget, --budgets and --plans"
        )
    return run_check(file, output, importance, out)


def _one(
    model: str,
    budget: str,
    output: Path | None,
    importance: Path | None,
    strategy: str | Strategy,
    chosen: PlanOptions,
    options: ModelOptions,
    out: OutputOptions,
    *,
    explain: bool,
) -> int:
    from medyate_planner.api import plan as make_plan
    from medyate_planner.reporting.text import render_plan
    from medyate_planner.units import parse_bytes

    budget_bytes = parse_bytes(budget, what="--budget")
    check_output(output, force=out.force)
    facts = _prepare(model, importance, chosen, options)
    with stages() as on_stage:
        on_stage("choosing layers and channels" + (", and saying why" if explain else ""))
        made = make_plan(
            facts["subject"], None, budget_bytes, facts["importance"], strategy=strategy, sampling=facts["sampling"],
            model_facts=facts["model_facts"], importance_file=facts["reference"], request=facts["request"],
            explain=explain,
        )  # fmt: skip
    if output is not None:
        made.save(output, force=out.force)
        say(f"wrote {output}")
    if out.json:
        emit_json(made.to_dict())
    else:
        show(render_plan(made))
    return 0


def _frontier(
    model: str,
    budgets: str,
    files: tuple[Path | None, Path | None],
    importance: Path | None,
    strategy: str | Strategy,
    chosen: PlanOptions,
    options: ModelOptions,
    out: OutputOptions,
) -> int:
    from medyate_planner.cli.frontier import check_frontier, run_frontier

    check_frontier(budgets, *files, force=out.force)
    facts = _prepare(model, importance, chosen, options)
    return run_frontier(
        facts["subject"], facts["loaded"], facts["request"], strategy, budgets, *files, facts["sampling"],
        facts["model_facts"], facts["reference"], facts["importance"], out,
    )  # fmt: skip


def _prepare(model: str, importance: Path | None, chosen: PlanOptions, options: ModelOptions) -> dict[str, Any]:
    """The model traced, the importance read, the options as a request."""
    from medyate_planner.planning.plan import Sampling

    if importance is not None and importance.suffix != ".json":
        _exists(importance)
    updating = chosen.updating
    with stages() as on_stage:
        on_stage("reading the model")
        loaded = load(model, options)
        tell_model(loaded, options)
        on_stage("tracing")
        subject = make_subject(loaded, options, mode=updating.mode(), norm=updating.norm, autocast=updating.autocast)
    measured = read_importance(importance, subject)
    if measured is None:
        say("importance: mean squared weight per channel (no data seen); measure it with `medyate rank`")
    value = chosen.value
    return {
        "loaded": loaded,
        "subject": subject,
        "importance": measured,
        "request": chosen.request(subject, options.seed),
        "sampling": Sampling(
            method=value.sampling,  # type: ignore[arg-type]
            seed=options.seed,
            interval=read_interval(value.interval),
            alpha=value.alpha,
            metric=value.draws_by,  # type: ignore[arg-type]
            boost=value.boost,
        ),
        "model_facts": model_facts(loaded, options),
        "reference": _reference(importance, measured),
    }


def model_facts(loaded: Any, options: ModelOptions) -> dict[str, Any]:
    """What a plan file keeps of the model, so that `verify` and `train` can build it again."""
    return {
        "spec": loaded.spec,
        "weights": str(options.weights.resolve()) if options.weights else None,
        "num_classes": options.num_classes,
        "input_shape": loaded.input_shape,
    }


def _exists(importance: Path) -> None:
    """Fail before the model is traced."""
    from medyate_planner.importance.energy import Importance

    Importance.load(importance)


def _check_sampling(value: ValueOptions, strategy: str, importance: Path | None) -> None:
    from medyate_planner.errors import InputError
    from medyate_planner.planning.strategies import CHANGES_QUOTAS, DRAWS, DRAWS_BY_IMPORTANCE

    if not (math.isfinite(value.alpha) and value.alpha >= 0):
        raise InputError(f"--alpha: expected a finite number of 0 or more, got {value.alpha}")
    once = value.sampling == "static" or strategy in DRAWS - CHANGES_QUOTAS
    if read_interval(value.interval) != "epoch" and once:
        what = f"strategy {strategy}" if strategy in DRAWS else "--sampling static"
        raise InputError(f"--interval says how often channels are redrawn: {what} draws once, for good; leave it out")
    if strategy in DRAWS and value.sampling != "uniform":
        raise InputError(f"--sampling {value.sampling}: strategy {strategy} has draws of its own; leave it out")
    by_importance = value.sampling in ("weighted", "top") or strategy in DRAWS_BY_IMPORTANCE
    if by_importance and importance is None:
        what = f"--strategy {strategy}" if strategy in DRAWS_BY_IMPORTANCE else f"--sampling {value.sampling}"
        raise InputError(f"{what} needs the importance of channels; pass --importance FILE from `medyate rank`")
    if value.boost and not by_importance:
        raise InputError("--boost changes the importance that draws go by: it needs --sampling weighted")


def _reference(path: Path | None, measured: Any) -> Any:
    from medyate_planner.files import sha256_of
    from medyate_planner.planning.plan import ImportanceRef

    if path is None:
        return None
    return ImportanceRef(source=measured.source, file=path.name, sha256=sha256_of(path))
