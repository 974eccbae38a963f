"""`medyate demo`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.live import live_training
from medyate_planner.cli.output import console, emit_json, say, show
from medyate_planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from torch import nn

    from medyate_planner.importance.energy import Importance
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.verification import Verification
    from medyate_planner.subject import Subject
    from medyate_planner.training.loop import Batches, Epoch, Recipe


FULL_LR = 0.005  # the best of 0.02, 0.005 and 0.002 on this task; the other rows use the default


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the closing table."""

    name: str
    test_accuracy: float
    training_bytes: int
    seconds_per_epoch: float


def demo(
    *,
    budget: str = "1MB",
    epochs: int = 4,
    size: int = 112,
    batch_size: int = 8,
    seed: int = 0,
    threads: int = 1,
    out_dir: Annotated[Path, Parameter(name=["--out", "--out-dir"])] = Path("medyate-demo"),
    json: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run the whole pipeline on a pre-trained network and real photographs, in a few minutes.

    report → rank → plan → verify → train, then head only and full fine-tuning beside it. `medyate demo` alone takes
    about four minutes; smaller pictures and fewer epochs one.

    Example: medyate demo --epochs 1 --size 32

    Parameters
    ----------
    budget
        Training memory for the plan.
    epochs
        Epochs of each of the three trainings.
    size
        Side of the images in pixels.
    batch_size
        Samples in a step.
    seed
        Seed of everything random.
    threads
        Threads for torch; more than one is slower wherever other work runs.
    out_dir
        Folder for report.json, importance.safetensors, plan.json and the run.
    json
        Machine output on stdout.
    debug
        Show the traceback of an error.
    """
    del debug
    import torch

    from medyate_planner.errors import InputError
    from medyate_planner.training.loop import Recipe
    from medyate_planner.units import parse_bytes

    budget_bytes = parse_bytes(budget)
    recipe = Recipe(epochs=epochs, seed=seed)
    if batch_size < 1 or size < 32 or threads < 1:
        raise InputError(
            f"expected --batch-size 1, --size 32 and --threads 1 or more, got {batch_size}, {size} and {threads}"
        )
    torch.set_num_threads(threads)
    stage = _Stage(size=size, batch_size=batch_size, seed=seed, out=out_dir)
    say(f"1/5 report: {stage.describe()}")
    report = stage.report()
    say("2/5 rank: warm the head, then measure gradient energy per channel")
    importance = stage.rank()
    say(f"3/5 plan: the exact integer program under {budget_bytes:,} B of training memory")
    plan = stage.plan(importance, budget_bytes)
    say("4/5 verify: one real step against the prediction")
    verification = stage.verify(plan)
    say(f"5/5 train: {epochs} epochs each of the plan, the head alone, and all weights in plain PyTorch")
    rows = [
        stage.train("head only", stage.plan(importance, budget_bytes, strategy="head-only"), importance, recipe),
        stage.train("planned", plan, importance, recipe, keep=True),
        stage.full(importance, replace(recipe, lr=FULL_LR)),
    ]
    if json:
        emit_json(_as_json(report, plan, verification, rows))
    else:
        _print(report, plan, verification, rows)
    return 0 if verification.ok else 1


class _Stage:
    """The demo's model, data and files."""

    def __init__(self, *, size: int, batch_size: int, seed: int, out: Path) -> None:
        from medyate_planner import demo as material
        from medyate_planner.data import load_data
        from medyate_planner.data.batches import batches_of
        from medyate_planner.models import example_input
        from medyate_planner.subject import subject_of

        self.shape, self.seed, self.out = (3, size, size), seed, out
        self.spec = material.MODEL
        self.loaded = self._load()
        self.bundle = load_data(material.DATA, self.loaded.preprocessing, seed=seed)
        self.source: Batches = batches_of(self.bundle, batch_size, seed=seed)
        model: nn.Module = self.loaded.model
        example = example_input(model, self.loaded.input_shape, batch_size=batch_size)
        self.subject: Subject = subject_of(model, example)
        self.initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def _load(self) -> Any:
        from medyate_planner.models import load_model

        return load_model(self.spec, num_classes=2, input_shape=self.shape, seed=self.seed)

    def describe(self) -> str:
        return f"EfficientNet-Lite0, ImageNet weights; {self.bundle.description}"

    def report(self) -> Any:
        from medyate_planner.survey import report

        made = report(self.subject, spec="efficientnet-lite0")
        made.save(self.out / "report.json")
        return made

    def rank(self) -> Importance:
        from medyate_planner.api import rank
        from medyate_planner.training.loop import Recipe

        steps, epochs = self.source.steps_per_epoch, 2
        with progress_bar((epochs + 1) * steps, "ranking") as update:
            importance = rank(
                self.subject,
                self.source.train,
                self.subject.loss,
                steps_per_epoch=steps,
                recipe=Recipe(epochs=epochs, seed=self.seed),
                on_step=lambda phase, s, _of: update(s if phase == "head" else epochs * steps + s, phase),
            )
        importance.save(self.out / "importance.safetensors")
        return importance

    def plan(self, importance: Importance, budget_bytes: int, strategy: str = "optimal") -> Plan:
        from medyate_planner.api import plan
        from medyate_planner.files import sha256_of
        from medyate_planner.planning.plan import ImportanceRef, Sampling

        file = self.out / "importance.safetensors"
        made = plan(
            self.subject,
            None,
            budget_bytes,
            importance,
            strategy=strategy,
            sampling=Sampling(seed=self.seed),
            model_facts={"spec": self.spec, "num_classes": 2, "input_shape": self.shape},
            importance_file=ImportanceRef(source=importance.source, file=file.name, sha256=sha256_of(file)),
        )
        if strategy == "optimal":
            made.save(self.out / "plan.json")
        return made

    def verify(self, plan: Plan) -> Verification:
        from medyate_planner.api import verify

        return verify(self.subject, plan)

    def train(self, name: str, plan: Plan, importance: Importance, recipe: Recipe, *, keep: bool = False) -> Row:
        from medyate_planner.api import train
        from medyate_planner.training.run import RunFolder

        self._reset()
        run = RunFolder(self.out / "run")
        if keep:
            run.start(plan, recipe, {"data": "demo"}, force=True)
        steps = self.source.steps_per_epoch
        with live_training(plan, recipe.epochs, steps, name) as view:

            def on_epoch(epoch: Epoch) -> None:
                view.on_epoch(epoch)
                if keep:
                    run.record(epoch, self.subject.model)

            epochs = train(
                self.subject,
                plan,
                self.source,
                recipe,
                importance=importance,
                on_step=view.on_step,
                on_draw=view.on_draw,
                on_measured=view.on_measured,
                on_epoch=on_epoch,
            )
        if keep:
            run.finish(self.subject.model)
        metrics = [epoch.metrics for epoch in epochs]
        return Row(
            name=name,
            test_accuracy=metrics[-1].test_accuracy or 0.0,
            training_bytes=max(m.measured_training_bytes for m in metrics),
            seconds_per_epoch=sum(m.seconds for m in metrics) / len(metrics),
        )

    def full(self, importance: Importance, recipe: Recipe) -> Row:
        import time

        from medyate_planner.training.baseline import fine_tune_fully
        from medyate_planner.training.run import load_weights

        self._reset()
        load_weights(self.subject.model, importance.head)
        steps = self.source.steps_per_epoch
        began = time.perf_counter()
        with progress_bar(recipe.epochs * steps, "full") as update:
            result = fine_tune_fully(
                self.subject.model,
                self.source,
                self.subject.loss,
                recipe,
                on_step=lambda e, s, loss: update(e * steps + s + 1, f"loss {loss:.3f}"),
            )
        return Row(
            name="full fine-tuning (PyTorch)",
            test_accuracy=result.test_accuracy[-1] or 0.0,
            training_bytes=result.training_bytes,
            seconds_per_epoch=(time.perf_counter() - began) / recipe.epochs,
        )

    def _reset(self) -> None:
        from medyate_planner.training.run import load_weights

        load_weights(self.subject.model, self.initial)


def _as_json(report: Any, plan: Plan, verification: Verification, rows: list[Row]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "kind": "demo",
        "full_saved_bytes": report.full.saved_bytes,
        "plan": plan.to_dict(),
        "verify": verification.to_dict(),
        "rows": [asdict(row) for row in rows],
    }


def _print(report: Any, plan: Plan, verification: Verification, rows: list[Row]) -> None:
    from medyate_planner.reporting.text import render_comparison, render_plan, render_verification

    parts = [*render_plan(plan), *render_verification(verification)]
    show([*parts, *render_comparison([(r.name, r.test_accuracy, r.training_bytes, r.seconds_per_epoch) for r in rows])])
    console().print(f"\nsaved for backward by full fine-tuning, predicted: {report.full.saved_bytes:,} B")
