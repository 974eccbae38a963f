"""The numbers of a benchmark as charts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from medyate_planner.bench.agreement import Stability
from medyate_planner.bench.analysis import Standing
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record
from medyate_planner.reporting.scatter import Chart, Point, Series


def frontier_chart(found: Sequence[Standing]) -> Chart | None:
    """Share of full fine-tuning's accuracy against share of its memory: those with several budgets, or none."""
    return _against(
        found,
        lambda entry: entry.memory_ratio,
        id="frontier",
        caption="Share of full fine-tuning's accuracy against measured training memory as a share of full "
        "fine-tuning's, means over networks, tasks and seeds; up and to the left is better.",
        x_name="training memory, share of full fine-tuning's (logarithmic)",
        x_log=True,
    )


def time_chart(found: Sequence[Standing]) -> Chart | None:
    """Share of full fine-tuning's accuracy against share of its time of a step."""
    return _against(
        found,
        lambda entry: entry.time_ratio,
        id="step-time",
        caption="Share of full fine-tuning's accuracy against the median time of a step as a share of full "
        "fine-tuning's, on the same network and task; times of a machine that ran several trainings at once.",
        x_name="time of a step, share of full fine-tuning's",
        x_log=False,
    )


def _against(
    found: Sequence[Standing],
    x_of: Callable[[Standing], float | None],
    *,
    id: str,
    caption: str,
    x_name: str,
    x_log: bool,
) -> Chart | None:
    series = []
    for name in dict.fromkeys(entry.contender for entry in found):
        own = [entry for entry in found if entry.contender == name]
        if len(own) == 1 and own[0].budget is not None:
            continue
        points = [
            Point(x=x, y=100 * entry.share_of_full, text=f"{name}, budget {entry.budget or 'none'}: {_words(entry)}")
            for entry in own
            if (x := x_of(entry)) is not None and entry.share_of_full is not None
        ]
        if points:
            series.append(Series(name=name, points=tuple(sorted(points, key=lambda point: point.x))))
    if not series:
        return None
    return Chart(
        id=id, caption=caption, x_name=x_name, y_name="accuracy, share of full fine-tuning's",
        series=tuple(series), x_log=x_log, x_text=_as_percent, y_text="{:g} %".format,
    )  # fmt: skip


def _as_percent(value: float) -> str:
    return f"{100 * value:g} %"


def _words(entry: Standing) -> str:
    return f"{entry.share_of_full:.1%} of the accuracy, {entry.memory_ratio:.2%} of the memory"


def layers_chart(matrix: Matrix, runs: Sequence[Record]) -> Chart | None:
    """Accuracy against K, of contenders that are told how many layers to draw from."""
    told = [c for c in matrix.contenders if c.settings.get("top_layers")]
    series = []
    for strategy, boost in dict.fromkeys((c.strategy, c.settings.get("boost", 0.0)) for c in told):
        points = []
        for contender in told:
            if (contender.strategy, contender.settings.get("boost", 0.0)) == (strategy, boost):
                own = [float(r["accuracy"]) for r in runs if r["contender"] == contender.name and not r.get("failure")]
                if own:
                    count, mean = contender.settings["top_layers"], statistics.fmean(own)
                    points.append(Point(x=count, y=mean, text=f"K = {count}: {mean:.4f}, {len(own)} runs"))
        if points:
            name = strategy if not boost else f"{strategy}, boosted"
            series.append(Series(name=name, points=tuple(sorted(points, key=lambda point: point.x))))
    if not series:
        return None
    return Chart(
        id="layers",
        caption="Mean accuracy against K, the number of layers that channels are drawn from, over all networks, tasks "
        "and seeds that were run.",
        x_name="K (logarithmic)", y_name="accuracy", series=tuple(series), x_log=True,
    )  # fmt: skip


def stability_chart(found: Sequence[Stability]) -> Chart | None:
    """Likeness of importance to that at the start, against epochs trained."""
    names = {"layers": "layers, Spearman", "channels": "channels, Spearman", "best": "best quarter the same"}
    series = [
        Series(
            name=f"{entry.contender}: {words}",
            points=tuple(
                Point(x=number, y=seen[key], text=f"{entry.contender}, after epoch {number}: {words} {seen[key]:.3f}")
                for number, seen in enumerate(entry.epochs, start=1)
                if key in seen
            ),
        )
        for entry in found
        for key, words in names.items()
    ]
    if not series:
        return None
    return Chart(
        id="stability-over-epochs",
        caption="Importance after each epoch of training compared with that before it, on the same batches; mean over "
        "networks and tasks.",
        x_name="epochs trained",
        y_name="likeness",
        series=tuple(series),
    )
