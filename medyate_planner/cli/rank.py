"""`medyate rank`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import (
    DataOptions,
    ModelOptions,
    OutputOptions,
    batches_of,
    check_classes,
    check_output,
    load,
    make_subject,
    read_data,
    tell_model,
)
from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.progress import progress_bar

ROUND_FACTS = ("budget_bytes", "rounds", "measured_training_bytes", "beyond_budget")


def rank(
    model: str,
    /,
    *,
    data: str,
    output: Annotated[Path, Parameter(name=["-o", "--output"])] = Path("importance.safetensors"),
    metric: str = "lara",
    head_epochs: int = 2,
    lr: float = 0.02,
    clip: float = 5.0,
    batches: int | None = None,
    within_budget: str | None = None,
    options: ModelOptions = ModelOptions(),
    reading: DataOptions = DataOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Measure how much each layer and channel matters on your data.

    Trains the head alone for a short while, then measures the gradient energy of every channel.

    Example: medyate rank mcunet-5fps --data imagefolder:photos --num-classes 3 -o importance.safetensors

    Parameters
    ----------
    model
        As for `medyate report`.
    data
        imagefolder:DIR, tar:FILE, npz:FILE, module:factory or file.py:factory.
    output
        File for the importance and the warmed head.
    metric
        sized, raw, rgn or lara: how the printed table ranks layers.
    head_epochs
        Epochs of training the head alone.
    lr
        Learning rate of that.
    clip
        Per-layer clipping of that.
    batches
        Measure on this many batches at most; by default on an epoch, within a budget on 8.
    within_budget
        Never keep more training memory than this, such as 512kB: channels are measured in rounds that each fit.
    """
    from medyate_planner.api import rank as measure
    from medyate_planner.errors import InputError, unknown_name
    from medyate_planner.importance.metrics import METRICS, rank_layers
    from medyate_planner.reporting.text import render_ranking
    from medyate_planner.training.loop import Recipe

    if metric not in METRICS:
        raise unknown_name("--metric", metric, METRICS)
    if head_epochs < 0 or (batches is not None and batches < 1):
        raise InputError(
            f"expected --head-epochs of 0 or more and --batches of 1 or more, got {head_epochs} and {batches}"
        )
    check_output(output, force=out.force)
    loaded = load(model, options)
    tell_model(loaded, options)
    bundle = read_data(data, loaded, reading, options.seed)
    check_classes(loaded, bundle)
    source = batches_of(bundle, options.batch_size, seed=options.seed, workers=reading.workers)
    subject = make_subject(loaded, options)
    recipe = Recipe(epochs=max(1, head_epochs), lr=lr, clip=clip, seed=options.seed)
    steps = source.steps_per_epoch
    probed = min(steps, batches or steps)
    warmed = head_epochs * steps
    with progress_bar(warmed + probed, "ranking") as update:
        importance = measure(
            subject,
            source.train,
            subject.loss,
            steps_per_epoch=steps,
            warm_head_epochs=head_epochs,
            recipe=recipe,
            max_batches=batches,
            within_budget=within_budget,
            on_step=lambda phase, step, of: (
                update(step, phase) if phase == "head" else update(warmed + step, phase, total=warmed + of)
            ),
        )
    _tell_rounds(importance.facts)
    importance.save(output, force=out.force)
    say(f"wrote {output}")
    costs = {layer.name: subject.memory.costs[layer.name].update_bytes for layer in subject.graph.layers}
    weights = {layer.name: layer.elements_per_channel for layer in subject.graph.layers}
    ranking = rank_layers(importance, metric, {n: c for n, c in costs.items() if n not in subject.graph.head}, weights)
    if out.json:
        layers = [{"name": e.name, "score": e.score, "share": e.share} for e in ranking]
        facts = {key: importance.facts[key] for key in ROUND_FACTS if key in importance.facts}
        about = {"schema_version": 1, "kind": "ranking", "metric": metric, "source": importance.source}
        emit_json({**about, **facts, "layers": layers})
    else:
        show(render_ranking(importance.source, metric, ranking))
    return 0


def _tell_rounds(facts: Mapping[str, Any]) -> None:
    """Of importance measured within a budget: what was used of it, and what it was too small for."""
    if "rounds" not in facts:
        return
    beyond, budget = facts["beyond_budget"], f"{facts['budget_bytes']:,} B"
    say(
        f"importance: {facts['rounds']} rounds, at most {facts['measured_training_bytes']:,} B measured of {budget} of "
        "training memory"
    )
    if beyond:
        say(f"importance: 0 for {len(beyond)} layers of which not one channel fits {budget}: {', '.join(beyond)}")
