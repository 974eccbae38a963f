"""Seconds of an epoch with and without a cached prefix: mcunet-5fps on the hand signs, 128 px, batch 8, 512 kB.

    python reports/prefix.py > reports/prefix.txt      (about 10 minutes, one thread; needs the data files)

Both are trained from the same weights in the same order, one after the other, each several times in turn, and end with
the same bits (checked). An epoch's seconds are those of its steps, without evaluation (of the first, making ready too):
of the processor, because the machine is shared, and on the clock. The pictures were decoded before.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from subjects import zoo_importance, zoo_subject

from medyate_planner.api import plan, train
from medyate_planner.data import load_data
from medyate_planner.data.chosen import load_places, places_by_batch
from medyate_planner.importance.energy import Importance
from medyate_planner.models import assets_dir
from medyate_planner.models.zoo import ZOO_PREPROCESSING
from medyate_planner.planning.plan import Plan
from medyate_planner.subject import Subject
from medyate_planner.training.batches import Batches
from medyate_planner.training.prefixed import PrefixedTraining, Samples
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.session import Session

NETWORK, BUDGET, BATCH, EPOCHS, REPETITIONS = "mcunet-5fps", "512kB", 8, 4, 3
Seconds = tuple[float, float]  # of the processor, and on the clock
MAY_TRAIN = (None, 24, 12)  # so many of the last layers, beside the head; None: all


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    subject = zoo_subject(NETWORK, BATCH)
    importance = zoo_importance(NETWORK, subject)
    samples = _samples()
    print(f"{NETWORK}, sign_digits ({samples.count:,} samples), 128 px, batch {BATCH}, {BUDGET}, {EPOCHS} epochs, ")
    print(f"{REPETITIONS} runs of each in turn, one thread; seconds of an epoch's steps: median (least - most)\n")
    heads = "".join(f"{title:>22}" for title in ("without", "first epoch", "later epochs"))
    print(f"{'plan':24}{'skipped':>8}{'B/sample':>10}{'B on disk':>14}{'seconds':>11}{heads}{'later/without':>15}")
    others = [unit.name for unit in subject.graph.units if unit.name not in subject.graph.head]
    for last in MAY_TRAIN:
        forbidden = () if last is None else tuple(others[:-last])
        made = plan(
            subject,
            None,
            BUDGET,
            importance,
            request={"forbid_layers": forbidden, "objective": "norm", "metric": "raw"},
        )
        name = "the optimum" if last is None else f"of the last {last} layers"
        _compare(name, subject, made, importance, samples)


def _compare(name: str, subject: Subject, made: Plan, importance: Importance, samples: Samples) -> None:
    taken: dict[str, list[Seconds]] = {"without": [], "first": [], "later": []}
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    for _ in range(REPETITIONS):
        seconds, weights, _ = _train(subject, made, importance, samples, None)
        subject.model.load_state_dict(before)
        taken["without"] += seconds
        with tempfile.TemporaryDirectory() as folder:
            seconds, cached, used = _train(subject, made, importance, samples, Path(folder) / "prefix")
        subject.model.load_state_dict(before)
        taken["first"] += seconds[:1]
        taken["later"] += seconds[1:]
        assert used is not None
        assert all(torch.equal(weights[key], cached[key]) for key in before)
    cut, cache = used.cut, used.cache
    sizes = f"{cut.skipped:>8}{cut.sample_bytes:>10,}{cache.needed_bytes:>14,}"
    for clock, title in enumerate(("processor", "clock")):
        columns = [[seconds[clock] for seconds in each] for each in taken.values()]
        cells = "".join(f"{_spread(column):>22}" for column in columns)
        ratio = statistics.median(columns[2]) / statistics.median(columns[0])
        print(
            f"{'' if clock else name:24}{' ' * len(sizes) if clock else sizes}{title:>11}{cells}{ratio:>15.2f}",
            flush=True,
        )


def _train(
    subject: Subject, made: Plan, importance: Importance, samples: Samples, folder: Path | None
) -> tuple[list[Seconds], dict[str, torch.Tensor], PrefixedTraining | None]:
    """Seconds of each epoch, the final weights, and the cache."""
    used: list[PrefixedTraining] = []
    ends: list[Seconds] = []  # of each step

    def on_step(_epoch: int, _step: int, _loss: float) -> None:
        ends.append((time.process_time(), time.perf_counter()))

    def cached(session: Session) -> Batches:
        assert folder is not None
        used.append(PrefixedTraining(session, samples, folder, facts={}, tell=_refuse))
        return used[0].batches

    plain = Batches(
        train=lambda epoch: samples.load(epoch, samples.order(epoch)),
        test=samples.test,
        steps_per_epoch=samples.steps_per_epoch,
    )
    recipe = Recipe(epochs=EPOCHS)
    for_session = None if folder is None else cached
    began = (time.process_time(), time.perf_counter())
    epochs = train(subject, made, plain, recipe, importance=importance, batches_for=for_session, on_step=on_step)
    measured = {epoch.metrics.measured_training_bytes for epoch in epochs}
    assert measured == {made.predicted.training_bytes}
    weights = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    ends = [began, *ends[samples.steps_per_epoch - 1 :: samples.steps_per_epoch]]
    seconds = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
    return seconds, weights, used[0] if used else None


def _samples() -> Samples:
    """The hand signs as the command line loads them; nothing to test on."""
    data = load_data(f"tar:{assets_dir()}/datasets/sign_digits.tar", ZOO_PREPROCESSING).train
    count = len(data)  # type: ignore[arg-type]
    for _ in load_places(data, [range(count)], seed=0, epoch=0):
        pass
    return Samples(
        count=count,
        order=lambda epoch: places_by_batch(count, BATCH, seed=0, epoch=epoch),
        load=lambda epoch, chosen: load_places(data, chosen, seed=0, epoch=epoch),
        test=lambda: (),
        steps_per_epoch=count // BATCH,
    )


def _refuse(line: str) -> None:
    raise AssertionError(line)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"


if __name__ == "__main__":
    main()
