"""Sessions and epochs in a few words, for a REPL and a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medyate_planner.summary import Gauge, Row, Sketch, Summary, against, counted

if TYPE_CHECKING:
    from medyate_planner.planning.plan import Plan
    from medyate_planner.training.measure import StepMeasurement
    from medyate_planner.training.progress import Epoch
    from medyate_planner.training.session import Session
    from medyate_planner.training.slots import Slot

_MOST_CHANNELS = 12


def summary_of_session(session: Session) -> Summary:
    """What is trained now, which channels, and the last measured step against the budget."""
    slots = session.slots
    trained = [slot for slot in slots.values() if slot.trains_weight]
    biases = sum(slot.bias is not None for slot in slots.values())
    state = "finished" if session.finished else "training" if session.training else "evaluating"
    spec = session.plan.model.spec if session.plan is not None else None
    used = _measured(session.plan, session.measured)
    return Summary(
        title=f"Session on {spec or type(session.model).__name__}: {state}, update mode {session.mode.update}",
        lines=(
            f"{counted(sum(slot.quota for slot in trained), 'channel')} of {counted(len(trained), 'layer')} "
            f"and {counted(biases, 'bias', 'biases')} are trained now.",
            *((used.text + ".",) if used is not None else ()),
        ),
        columns=("layer", "kind", "trained", "channels now"),
        rows=tuple(_row(slot) for slot in trained),
        share="of its channels",
        gauge=used,
    )


def _row(slot: Slot) -> Row:
    layer = slot.layer
    return Row(
        cells=(layer.name, layer.kind, f"{slot.quota:,} of {layer.channels:,}", _channels(slot)),
        share=slot.quota / layer.channels,
    )


def _channels(slot: Slot) -> str:
    if slot.index is None:
        return "all, in full"
    chosen = slot.index.tolist()
    rest = "" if len(chosen) <= _MOST_CHANNELS else f" … {chosen[-1]}"
    return " ".join(map(str, chosen[:_MOST_CHANNELS])) + rest


def _measured(plan: Plan | None, step: StepMeasurement | None) -> Gauge | None:
    """The last measured step against the budget; before one, the prediction; nothing without a plan."""
    if plan is None:
        return None
    amounts = {} if step is None else {"update": step.update_bytes, "training": step.training_bytes}
    if step is not None and step.live_peak_bytes is not None:
        amounts["peak"] = step.live_peak_bytes - plan.predicted.weights_in_flash_bytes
    found = amounts.get(plan.scope)
    used = plan.used_bytes if found is None else found
    how = "Predicted" if found is None else "Last measured"
    return Gauge(
        text=f"{how} in scope {plan.scope}: {used:,} B, {against(used, plan.budget_bytes)}",
        share=used / plan.budget_bytes,
    )


def summary_of_epochs(epochs: Sequence[Epoch]) -> Summary:
    """Loss, accuracy and measured bytes of every epoch."""
    metrics = [epoch.metrics for epoch in epochs]
    rows = tuple(
        Row(
            cells=(
                str(line.epoch),
                f"{line.train_loss:.4f}",
                "-" if line.test_accuracy is None else f"{line.test_accuracy:.4f}",
                f"{line.measured_training_bytes:,}",
                f"{line.measured_live_peak_bytes:,}",
                f"{line.seconds:.1f}",
            )
        )
        for line in metrics
    )
    accuracies = [line.test_accuracy for line in metrics if line.test_accuracy is not None]
    sketches = [_sketch("train loss", [line.train_loss for line in metrics]), _sketch("test accuracy", accuracies)]
    return Summary(
        title=counted(len(epochs), "epoch"),
        columns=("epoch", "train loss", "test accuracy", "training B", "live peak B", "seconds"),
        rows=rows,
        latest=True,
        sketches=tuple(sketch for sketch in sketches if sketch is not None),
    )


def _sketch(name: str, values: Sequence[float]) -> Sketch | None:
    """A curve of two numbers or more."""
    if len(values) < 2:
        return None
    return Sketch(text=f"{name}, {values[0]:.4f} to {values[-1]:.4f}", values=tuple(values))


def line_of_epoch(epoch: Epoch) -> str:
    """One epoch in one line."""
    line = epoch.metrics
    accuracy = "" if line.test_accuracy is None else f", test accuracy {line.test_accuracy:.4f}"
    return (
        f"<Epoch {line.epoch}: train loss {line.train_loss:.4f}{accuracy}, "
        f"{line.measured_training_bytes:,} B training memory, {line.seconds:.1f} s>"
    )
