"""A device's bytes as the budget: scope `peak` keeps it, scope `training` overshoots. A table and a figure.

    python reports/peak_scope.py > reports/peak_scope.txt        (half a minute, one thread; needs the data files)

Draws reports/peak_scope.png beside the script. Exits with 1 unless the table shows what its title says.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from subjects import HEAD_EPOCHS, PROBED_BATCHES, zoo_importance, zoo_subject

from medyate_planner import plan
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.model import Updates
from medyate_planner.memory.moments import Timeline
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.figures import check_available
from medyate_planner.subject import Subject
from medyate_planner.survey import report
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.real import real_session_step

NETWORK = "mcunet-5fps"
BATCH = 8
DEVICE_BYTES = 12_000_000
FIGURE = Path(__file__).with_suffix(".png")
PEAK, NAIVE = "#0072b2", "#d55e00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A way to plan for the device, the plan, and what a real step held."""

    way: str
    plan: Plan
    peak_bytes: int
    timeline: Timeline


def main() -> int:
    """Print the table and draw the figure; returns 1 if the claim does not hold."""
    check_available()
    torch.set_num_threads(1)
    subject = zoo_subject(NETWORK, BATCH)
    rows = _rows(subject, zoo_importance(NETWORK, subject))
    print(
        f"{NETWORK}, batch {BATCH}, 128 px, fused SGD, on a device with {DEVICE_BYTES:,} B for everything.\n"
        f"Importance: {PROBED_BATCHES} mini-batches of sign_digits after {HEAD_EPOCHS} epochs of head warm-up; "
        "objective norm.\n"
    )
    print(f"{'':42}{'':>12}{'':>12}{'live peak:':>12}\n{'scope and budget':42}{'budget':>12}{'training':>12}"
          f"{'predicted':>12}{'measured':>12}{'bound':>12}{'of device':>11}{'fits':>6}{'layers':>8}{'channels':>10}"
          f"{'value':>9}")  # fmt: skip
    for row in rows:
        _show(row)
    kept, *naive = rows
    _draw(kept, naive[0])
    print(
        f"\nFor comparison: inference by eager PyTorch {_eager_inference_bytes(subject):,} B; training the head alone, "
        f"by our operators, {_head_only_bytes(subject):,} B.\n\n"
        f"Figure ({FIGURE.name}): bytes live after every operator of a real step, by the plans of the first two rows.\n"
        "0 on the horizontal axis is the loss, forward is to its left, backward with its updates to its right. The\n"
        "dashed line is the device, triangles mark the peaks.\n\n"
        "Scope `training` leaves out live activations and gradients in flight. These are largest in the first layers,\n"
        "and whether backward goes there is what a plan decides; so no constant taken off the device's bytes helps.\n"
        f"Taking off weights and inputs, the step overshoots by {_excess(naive[0]):,} B. Taking off all that training\n"
        f"the head needs, it still overshoots by {_excess(naive[1]):,} B, for {naive[1].plan.objective:.1f} of value; "
        f"scope `peak` buys {kept.plan.objective:.1f} and fits.\n"
    )
    ceiling = kept.plan.predicted.live_peak_bound_bytes or 0
    exact = all(row.peak_bytes == row.plan.predicted.live_peak_bytes for row in rows)
    holds = exact and kept.peak_bytes <= ceiling <= DEVICE_BYTES and all(_excess(row) > 0 for row in naive)
    print(
        f"as predicted, scope peak keeps the device's bytes and scope training overshoots: {'yes' if holds else 'NO'}"
    )
    return 0 if holds else 1


def _excess(row: Row) -> int:
    return row.peak_bytes - DEVICE_BYTES


def _rows(subject: Subject, importance: Importance) -> list[Row]:
    """Scope peak; scope training in what weights and inputs leave; scope training in what training the head leaves."""
    inputs = sum(spec.example(BATCH).nbytes for spec in subject.traced.inputs) + subject.memory.loss_cost.target_bytes
    weights = subject.graph.parameter_bytes + subject.graph.buffer_bytes
    ways = (
        ("peak: the device", "peak", DEVICE_BYTES),
        ("training: the device - weights - inputs", "training", DEVICE_BYTES - weights - inputs),
        ("training: the device - training the head", "training", DEVICE_BYTES - _head_only_bytes(subject)),
    )
    return [_measured(subject, importance, *way) for way in ways]


def _measured(subject: Subject, importance: Importance, way: str, scope: str, budget_bytes: int) -> Row:
    made = plan(
        subject,
        budget=budget_bytes,
        importance=importance,
        request={"scope": scope, "objective": "norm", "metric": "raw"},
    )
    loss = subject.loss
    step, _ = real_session_step(
        subject.model, subject.traced, subject.graph, made.updates(), loss.function, loss.make_target
    )
    assert step.live_peak_bytes is not None
    assert step.timeline is not None
    return Row(way=way, plan=made, peak_bytes=step.live_peak_bytes, timeline=step.timeline)


def _head_only_bytes(subject: Subject) -> int:
    head = Updates(quotas={}, full=frozenset(subject.graph.head))
    step = dry_run(subject.traced, subject.graph, head, subject.loss.function, subject.loss.make_target)
    return step.live_peak_bytes or 0


def _eager_inference_bytes(subject: Subject) -> int:
    return next(step.live_peak_bytes for step in report(subject).steps if step.name == "inference")


def _show(row: Row) -> None:
    said, quotas = row.plan.predicted, row.plan.quotas()
    amounts = (row.plan.budget_bytes, said.training_bytes, said.live_peak_bytes, row.peak_bytes)
    cells = "".join(f"{amount:>12,}" for amount in (*amounts, said.live_peak_bound_bytes or 0))
    print(
        f"{row.way:42}{cells}{row.peak_bytes / DEVICE_BYTES:>11.1%}{'yes' if _excess(row) <= 0 else 'NO':>6}"
        f"{len(quotas):>8}{sum(quotas.values()):>10,}{row.plan.objective:>9.1f}"
    )


def _draw(kept: Row, naive: Row) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    for row, colour in ((naive, NAIVE), (kept, PEAK)):
        moments = row.timeline.moments
        zero = next(index for index, moment in enumerate(moments) if moment.phase == "loss")
        places = [index - zero for index in range(len(moments))]
        label = (
            f"scope {row.plan.scope}, budget {row.plan.budget_bytes / 1e6:.2f} MB: peak {row.peak_bytes / 1e6:.2f} MB"
        )
        heights = [moment.total_bytes / 1e6 for moment in moments]
        axis.step(places, heights, where="post", color=colour, linewidth=1.1, label=label)
        axis.plot(row.timeline.peak_index - zero, row.peak_bytes / 1e6, marker="v", color=colour, markersize=7)
    axis.axhline(DEVICE_BYTES / 1e6, color="black", linestyle="--", linewidth=1, label="the device")
    axis.axvline(0, color="black", linestyle=":", linewidth=0.7)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("operators of the step, counted from the loss (left: forward, right: backward)")
    axis.set_ylabel("live bytes (MB), measured")
    title = f"{NETWORK}, batch {BATCH}, planned for {DEVICE_BYTES / 1e6:g} MB in scope peak and in scope training"
    axis.set_title(title, fontsize=10)
    axis.legend(loc="lower center", fontsize=8, frameon=False)
    figure.savefig(FIGURE, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
