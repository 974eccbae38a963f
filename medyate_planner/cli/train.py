"""`medyate train`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import DataOptions, OutputOptions, batches_of, check_classes, read_data
from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.subject import Subject
    from medyate_planner.training.loop import Batches, Epoch, Recipe
    from medyate_planner.training.run import RunFolder


def train(
    plan: Path,
    /,
    *,
    data: str,
    epochs: int,
    out_dir: Annotated[Path, Parameter(name=["--out", "--out-dir"])] = Path("run"),
    resume: bool = False,
    importance: Path | None = None,
    weights: Path | None = None,
    lr: float = 0.02,
    warmup_epochs: float = 0.5,
    clip: float = 5.0,
    weight_decay: float = 0.0,
    head_epochs: int = 2,
    seed: int = 0,
    reading: DataOptions = DataOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Really train inside the budget, redrawing channels every epoch, measured every epoch.

    Ctrl-C ends cleanly; --resume goes on from the last whole epoch, bit for bit.

    Example: medyate train plan.json --data tar:sign_digits.tar --epochs 4 --out run/

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
    importance
        The importance file, where it is not beside the plan.
    weights
        Weights file, where it moved since the plan was made.
    lr
        Learning rate after warm-up.
    warmup_epochs
        Epochs of linear warm-up before the cosine.
    clip
        Largest gradient norm of a layer; larger ones are scaled down.
    weight_decay
        Weight decay of what is updated.
    head_epochs
        Epochs of training the head alone where the plan has no importance file.
    seed
        Seed of data order and augmentation.
    """
    from medyate_planner.cli.rebuild import importance_path, model_of, read_importance
    from medyate_planner.errors import InputError
    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.text import render_run
    from medyate_planner.subject import subject_for
    from medyate_planner.training.loop import Recipe
    from medyate_planner.training.run import RunFolder

    loaded_plan = Plan.load(plan)
    recipe = Recipe(epochs=epochs, lr=lr, warmup_epochs=warmup_epochs, clip=clip, weight_decay=weight_decay, seed=seed)
    if head_epochs < 0:
        raise InputError(f"--head-epochs: expected 0 or more, got {head_epochs}")
    run = RunFolder(out_dir)
    importance_file = importance_path(loaded_plan, plan, importance)
    if importance_file is not None and importance_file.suffix != ".json":
        Importance.load(importance_file)  # fail before the data is read
    loaded = model_of(loaded_plan, weights=weights)
    say(f"model: {loaded.spec}, weights: {loaded.weights_source}")
    bundle = read_data(data, loaded, reading, seed)
    check_classes(loaded, bundle, "plan again with --num-classes {}")
    source = batches_of(bundle, loaded_plan.batch_size, seed=seed, workers=reading.workers)
    subject = subject_for(loaded.model, loaded_plan)
    measured = read_importance(importance_file, subject)
    facts = {"data": data, "reading": asdict(reading), "head_epochs": head_epochs}
    start = 0
    if resume:
        start = _resume(run, subject, loaded_plan, recipe, facts)
    else:
        run.start(loaded_plan, recipe, facts, force=out.force)
    head_in_full = any(layer.head for layer in loaded_plan.layers)
    if not start and (measured is None or not measured.head) and head_in_full and head_epochs:
        _warm_head(subject, source, recipe, head_epochs)
    _fit(subject, loaded_plan, source, recipe, run, measured, start)
    if out.json:
        emit_json({"kind": "run", "folder": str(out_dir), "metrics": run.metrics()})
    else:
        show(render_run(run.metrics(), loaded_plan.budget_bytes))
    return 0


def _fit(
    subject: Subject,
    plan: Plan,
    source: Batches,
    recipe: Recipe,
    run: RunFolder,
    importance: Importance | None,
    start: int,
) -> None:
    from medyate_planner.api import train as execute
    from medyate_planner.errors import InterruptedByUser

    steps = source.steps_per_epoch

    def on_epoch(epoch: Epoch) -> None:
        run.record(epoch, subject.model)
        say(_one_line(epoch, recipe.epochs, plan.budget_bytes))

    with progress_bar(recipe.epochs * steps, "training") as update:
        try:
            execute(
                subject,
                plan,
                source,
                recipe,
                importance=importance,
                start_epoch=start,
                sampler=run.sampler() if start else None,
                on_step=lambda epoch, step, loss: update(epoch * steps + step + 1, f"loss {loss:.3f}"),
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            raise InterruptedByUser(f"interrupted: go on with --resume --out {run.path}") from None
    run.finish(subject.model)
    say(f"wrote {run.model_file}")


def _resume(run: RunFolder, subject: Subject, plan: Plan, recipe: Recipe, facts: dict[str, Any]) -> int:
    import json

    from medyate_planner.errors import InputError
    from medyate_planner.planning.plan import Plan as PlanFile

    before = run.settings()
    asked = json.loads(json.dumps({"recipe": asdict(recipe), **facts}))
    changed = [key for key, value in asked.items() if before.get(key) != value]
    if PlanFile.load(run.path / "plan.json") != plan:
        changed.append("plan")
    if changed:
        raise InputError(
            f"{run.path} was started with another {changed[0]}: {before.get(changed[0], 'see its plan.json')}; give "
            "the same to resume, or start over with --force"
        )
    start = run.resume(subject.model)
    say(f"resuming after epoch {start}" if start else "resuming from the start: no epoch was finished")
    return start


def _warm_head(subject: Subject, source: Batches, recipe: Recipe, epochs: int) -> None:
    from dataclasses import replace

    from medyate_planner.api import warm_head

    say(f"the plan has no importance file: training the head alone for {epochs} epochs first")
    steps = source.steps_per_epoch
    with progress_bar(epochs * steps, "head") as update:
        warm_head(
            subject,
            source.train,
            replace(recipe, epochs=epochs),
            steps,
            on_step=lambda epoch, step: update(epoch * steps + step, ""),
        )


def _one_line(epoch: Epoch, epochs: int, budget_bytes: int) -> str:
    metrics = epoch.metrics
    accuracy = "" if metrics.test_accuracy is None else f", test accuracy {metrics.test_accuracy:.4f}"
    return (
        f"epoch {metrics.epoch + 1}/{epochs}: loss {metrics.train_loss:.4f}{accuracy}, measured training memory "
        f"{metrics.measured_training_bytes:,} B of {budget_bytes:,} B, {metrics.seconds:.1f} s"
    )
