"""`medyate train`"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.live import live_training
from medyate_planner.cli.options import DataOptions, OutputOptions, batches_of, check_classes, read_data
from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.prefix import PrefixOptions
from medyate_planner.cli.progress import progress_bar
from medyate_planner.cli.train_options import DrawOptions, RecipeOptions

if TYPE_CHECKING:
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.subject import Subject
    from medyate_planner.training.loop import Batches, Epoch, Recipe
    from medyate_planner.training.progress import Checkpoint
    from medyate_planner.training.run import RunFolder


def train(
    plan: Path,
    /,
    *,
    data: str,
    epochs: int,
    out_dir: Annotated[Path, Parameter(name=["--out", "--out-dir"])] = Path("run"),
    resume: bool = False,
    checkpoint_every: int | None = None,
    enforce: Annotated[bool, Parameter(negative="")] = False,
    importance: Path | None = None,
    weights: Path | None = None,
    recipe: RecipeOptions = RecipeOptions(),
    draws: DrawOptions = DrawOptions(),
    prefix: PrefixOptions = PrefixOptions(),
    reading: DataOptions = DataOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Really train inside the budget, redrawing channels every epoch, measured every epoch.

    Ctrl-C ends cleanly; --resume goes on from the last checkpoint, bit for bit, as after a kill at any moment.

    Example: medyate train plan.json --data imagefolder:photos --epochs 2 --out run

    Parameters
    ----------
    plan
        A file from `medyate plan`.
    data
        As for `medyate rank`.
    epochs
        Epochs to train in all.
    out_dir
        Folder for metrics, selections, checkpoint and final weights.
    resume
        Go on with the run in that folder.
    checkpoint_every
        Write a checkpoint after so many steps too, not only at the end of each epoch.
    enforce
        Measure every step, and stop after the first that exceeds the budget, if not in its middle.
    importance
        The importance file, where it is not beside the plan.
    weights
        Weights file, where it moved since the plan was made.
    """
    from medyate_planner.cli.rebuild import importance_path, model_of, read_importance
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.text import render_run
    from medyate_planner.subject import subject_for
    from medyate_planner.training.loop import Watch
    from medyate_planner.training.run import RunFolder

    Watch(checkpoint_every=checkpoint_every)  # fail before anything is read
    file = Plan.load(plan)
    importance_file = importance_path(file, plan, importance)
    loaded_plan = draws.applied(file, importance_file)
    chosen = recipe.recipe(epochs, loaded_plan)
    run = RunFolder(out_dir)
    cache = prefix.cache(loaded_plan, reading, data=data, seed=recipe.seed, run=run.path)
    if importance_file is not None and importance_file.suffix != ".json":
        Importance.load(importance_file)
    loaded = model_of(loaded_plan, weights=weights)
    say(f"model: {loaded.spec}, weights: {loaded.weights_source}")
    bundle = read_data(data, loaded, reading, recipe.seed)
    check_classes(loaded, bundle, "plan again with --num-classes {}")
    source = batches_of(bundle, loaded_plan.batch_size, seed=recipe.seed, workers=reading.workers)
    subject = subject_for(loaded.model, loaded_plan)
    measured = read_importance(importance_file, subject)
    facts = _facts(loaded_plan, measured, data, reading, recipe.head_epochs)
    checkpoint = None
    if resume:
        checkpoint = _resume(run, subject, loaded_plan, chosen, facts)
    else:
        run.start(loaded_plan, chosen, facts, force=out.force)
    head_in_full = any(layer.head for layer in loaded_plan.layers)
    if checkpoint is None and (measured is None or not measured.head) and head_in_full and recipe.head_epochs:
        _warm_head(subject, source, chosen, recipe.head_epochs)
    options = {
        "resume": checkpoint,
        "checkpoint_every": checkpoint_every,
        "enforce": enforce,
        "importance": measured,
        "batches_for": cache and partial(cache.batches, bundle=bundle, source=source),
    }
    _fit(subject, loaded_plan, source, chosen, run, options)
    if cache is not None:
        cache.finish()
    if out.json:
        emit_json({"kind": "run", "folder": str(out_dir), "metrics": run.metrics()})
    else:
        show(render_run(run.metrics(), loaded_plan.budget_bytes))
    return 0


def _facts(
    plan: Plan, importance: Importance | None, data: str, reading: DataOptions, head_epochs: int
) -> dict[str, Any]:
    """What a run is made of beside plan and recipe: with anything else it can not be resumed."""
    return {
        "data": data,
        "reading": asdict(reading),
        "head_epochs": head_epochs,
        "warmed": sorted(importance.head) if importance is not None else [],
        "sampling": plan.sampling.model_dump(mode="json", include={"method", "interval", "alpha", "boost"}),
    }


def _fit(
    subject: Subject, plan: Plan, source: Batches, recipe: Recipe, run: RunFolder, options: Mapping[str, Any]
) -> None:
    from medyate_planner.api import train as execute
    from medyate_planner.errors import InterruptedByUser

    steps = recipe.steps_in(source.steps_per_epoch)

    with live_training(plan, recipe.epochs, steps) as view:

        def on_epoch(epoch: Epoch) -> None:
            run.record(epoch, subject.model)
            view.on_epoch(epoch)
            say(_one_line(epoch, recipe.epochs, plan))

        try:
            execute(
                subject,
                plan,
                source,
                recipe,
                on_step=view.on_step,
                on_draw=view.on_draw,
                on_measured=view.on_measured,
                on_epoch=on_epoch,
                on_checkpoint=lambda checkpoint: run.save(checkpoint, subject.model),
                **options,
            )
        except KeyboardInterrupt:
            raise InterruptedByUser(f"interrupted: go on with --resume --out {run.path}") from None
    run.finish(subject.model)
    say(f"wrote {run.model_file}")


def _resume(run: RunFolder, subject: Subject, plan: Plan, recipe: Recipe, facts: dict[str, Any]) -> Checkpoint | None:
    import json

    from medyate_planner.errors import InputError

    before = run.settings()
    asked = json.loads(json.dumps({"recipe": asdict(recipe), **facts}))
    changed = [key for key, value in asked.items() if before.get(key) != value]
    if run.plan(plan) != plan:
        changed = [key for key in changed if key != "warmed"] + ["plan"]  # another plan may have another importance
    if changed:
        raise InputError(
            f"{run.path} was started with another {_difference(changed[0], before.get(changed[0]), asked)}; "
            "give the same to resume, or start anew with --force or another --out"
        )
    found = run.resume(subject.model)
    at = None if found is None else found.progress
    if at is not None and at.epoch >= recipe.epochs:
        say(f"the run is complete already: {at.epoch} of {recipe.epochs} epochs are done")
    elif at is None or not at.steps_done:
        say("resuming from the start: no step is in a checkpoint")
    else:
        say(f"resuming after epoch {at.epoch}" + (f" and {at.step} steps of the next" if at.step else ""))
    return found


def _difference(key: str, before: Any, asked: Mapping[str, Any]) -> str:
    """What differs between a run's settings and those asked for, with the values; of several, each part that does."""
    if key not in asked:
        return "plan: see its plan.json"
    now = asked[key]
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{key}: {before}, not {now}"
    parts = [name for name in now if before.get(name) != now[name]]
    return f"{key}: {', '.join(f'{name} {before.get(name)}, not {now[name]}' for name in parts)}"


def _warm_head(subject: Subject, source: Batches, recipe: Recipe, epochs: int) -> None:
    from dataclasses import replace

    from medyate_planner.api import warm_head

    say(f"the plan has no importance file: training the head alone for {epochs} epochs first")
    steps = source.steps_per_epoch
    with progress_bar(epochs * steps, "head") as update:
        warm_head(
            subject,
            source.train,
            replace(recipe, epochs=epochs, accumulation=1),
            steps,
            on_step=lambda epoch, step: update(epoch * steps + step, ""),
        )


def _one_line(epoch: Epoch, epochs: int, plan: Plan) -> str:
    metrics = epoch.metrics
    accuracy = "" if metrics.test_accuracy is None else f", test accuracy {metrics.test_accuracy:.4f}"
    memory = f"training memory {metrics.measured_training_bytes:,} B"
    if plan.scope == "peak":
        memory = f"live peak {metrics.measured_live_peak_bytes - plan.predicted.weights_in_flash_bytes:,} B"
    limit = "" if plan.scope == "update" else f" of {plan.budget_bytes:,} B"
    return (
        f"epoch {metrics.epoch + 1}/{epochs}: loss {metrics.train_loss:.4f}{accuracy}, measured {memory}{limit}, "
        f"{metrics.seconds:.1f} s"
    )
