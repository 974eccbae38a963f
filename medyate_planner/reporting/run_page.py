"""The page of a training run: plain data first (`run_page_of`), then the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medyate_planner.reporting.chart import Chart, ChartWords, Curve, line_chart
from medyate_planner.reporting.html import fill_template
from medyate_planner.reporting.page import Cell, Front, Table, bytes_cell
from medyate_planner.reporting.run_draws import HeatMap, draws_table, heat_map, layer_draws
from medyate_planner.reporting.run_view import RunEpoch, RunView
from medyate_planner.summary import against, counted
from medyate_planner.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage(Front):
    """Everything the page shows."""

    learning: tuple[Chart, ...]
    memory: tuple[Chart, ...]
    epochs: Table
    measured: Table | None
    heat: HeatMap
    draws: Table


def render_run_html(run: RunView) -> str:
    """Draw a run as one self-contained page; the same folder gives the same bytes."""
    return fill_template("run.html", styles=("page.css", "charts.css", "run.css"), page=run_page_of(run))


def run_page_of(run: RunView) -> RunPage:
    """Everything the page shows, as plain data."""
    layers = layer_draws(run)
    return RunPage(
        kicker="Training run",
        title=run.plan.model.spec or "a model made in Python",
        lead=lead_of(run),
        facts=_facts(run),
        warnings=_warnings(run),
        learning=learning_charts(run.epochs),
        memory=memory_charts(run),
        epochs=_epochs_table(run),
        measured=_measured_table(run),
        heat=heat_map(layers),
        draws=draws_table(layers),
    )


def lead_of(run: RunView) -> tuple[str, ...]:
    """How far it is, what it has learnt, and what it held."""
    if not run.epochs:
        return ("No epoch is done yet.",)
    first, last, of = run.epochs[0], run.epochs[-1], run.planned_epochs
    done = counted(len(run.epochs), "epoch") + (f" of {of:,}" if of is not None and of != len(run.epochs) else "")
    loss = f"train loss {last.train_loss:.4f}"
    loss += f" (from {first.train_loss:.4f})" if last is not first else ""
    return (f"After {done}: {loss}{_accuracy(run.epochs)}.", _held(run))


def _accuracy(epochs: Sequence[RunEpoch]) -> str:
    known = [epoch for epoch in epochs if epoch.test_accuracy is not None]
    if not known or epochs[-1].test_accuracy is None:
        return ""
    best = max(known, key=lambda epoch: epoch.test_accuracy or 0.0)
    text = f", test accuracy {epochs[-1].test_accuracy:.4f}"
    if best.test_accuracy == epochs[-1].test_accuracy:
        return text
    return f"{text} (best {best.test_accuracy:.4f} in epoch {best.epoch})"


def limited_bytes(run: RunView, epoch: RunEpoch) -> int | None:
    """The measured figure that the plan's budget limits; None in scope `update`, which is a sum and not measured."""
    if run.plan.scope == "update":
        return None
    if run.plan.scope == "training":
        return epoch.measured_training_bytes
    return epoch.measured_live_peak_bytes - run.plan.predicted.weights_in_flash_bytes


def _held(run: RunView) -> str:
    plan = run.plan
    measured = [amount for epoch in run.epochs if (amount := limited_bytes(run, epoch)) is not None]
    if not measured:
        return f"The budget of {plan.budget_bytes:,} B is of scope update, a sum that is not measured while training."
    most = max(measured)
    what = "training memory" if plan.scope == "training" else "live bytes"
    return f"Measured at most {most:,} B of {what}, {against(most, plan.budget_bytes)}."


def _facts(run: RunView) -> tuple[tuple[str, str], ...]:
    plan, settings = run.plan, run.settings or {}
    facts = [
        ("batch", f"{plan.batch_size:,}"),
        ("scope", plan.scope),
        ("strategy", plan.strategy),
        ("sampling", plan.sampling.method),
        ("update", plan.update if plan.update == "fused" else f"{plan.update}, {plan.optimizer}"),
    ]
    if isinstance(settings.get("data"), str):
        facts.insert(0, ("data", settings["data"]))
    known = settings.get("recipe")
    recipe = known if isinstance(known, dict) else {}
    numbers = {key: recipe.get(key) for key in ("lr", "clip", "seed")}
    facts += [(key, f"{number:.12g}") for key, number in numbers.items() if isinstance(number, (int, float))]
    facts.append(("seconds in all", f"{sum(epoch.seconds for epoch in run.epochs):,.1f}"))
    return tuple(facts)


def _warnings(run: RunView) -> tuple[str, ...]:
    found = []
    over = [epoch for epoch in run.epochs if (limited_bytes(run, epoch) or 0) > run.plan.budget_bytes]
    if over:
        found.append(f"Measured above the budget in {counted(len(over), 'epoch')}.")
    if run.planned_epochs is not None and len(run.epochs) < run.planned_epochs:
        found.append(f"The run is not finished: {len(run.epochs):,} of {run.planned_epochs:,} epochs are done.")
    if not run.draws:
        found.append("There is no selections.jsonl: what was drawn is not known.")
    return tuple(found)


def learning_charts(epochs: Sequence[RunEpoch]) -> tuple[Chart, ...]:
    """Loss, accuracy and time by epoch; those without numbers are left out."""
    places = [epoch.epoch for epoch in epochs]
    charts = (
        line_chart(
            ChartWords(id="loss", title="Loss", x_name="epoch", text=lambda value: f"{value:.4g}"),
            places,
            (
                Curve(name="train loss", css="c-kept", values=[epoch.train_loss for epoch in epochs]),
                Curve(name="test loss", css="c-weight_gradients", values=[epoch.test_loss for epoch in epochs]),
            ),
        ),
        line_chart(
            ChartWords(
                id="accuracy", title="Test accuracy", x_name="epoch", text=lambda v: f"{v:.4g}", from_zero=False
            ),
            places,
            (Curve(name="test accuracy", css="c-kept_passthrough", values=[e.test_accuracy for e in epochs]),),
        ),
        line_chart(
            ChartWords(id="seconds", title="Seconds per epoch", x_name="epoch", text=lambda value: f"{value:.4g} s"),
            places,
            (Curve(name="seconds", css="c-weights", values=[epoch.seconds for epoch in epochs]),),
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


def memory_charts(run: RunView) -> tuple[Chart, ...]:
    """Measured training memory and live peak, each under the budget if that is what it limits."""
    epochs, plan = run.epochs, run.plan
    places = [epoch.epoch for epoch in epochs]
    budget = ("budget", float(plan.budget_bytes))
    flash = plan.predicted.weights_in_flash_bytes
    peak_limit = ("budget and weights in flash" if flash else "budget", float(plan.budget_bytes + flash))
    charts = (
        line_chart(
            ChartWords(id="training", title="Measured training memory", x_name="epoch", text=_bytes),
            places,
            (Curve(name="training", css="c-kept_selected", values=[e.measured_training_bytes for e in epochs]),),
            budget if plan.scope == "training" else None,
        ),
        line_chart(
            ChartWords(id="live-peak", title="Measured live peak", x_name="epoch", text=_bytes),
            places,
            (Curve(name="live peak", css="c-activations", values=[e.measured_live_peak_bytes for e in epochs]),),
            peak_limit if plan.scope == "peak" else None,
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


def _bytes(amount: float) -> str:
    return format_bytes(round(amount))


def _epochs_table(run: RunView) -> Table:
    rows = tuple(_row(run, epoch) for epoch in run.epochs)
    return Table(
        id="epochs",
        caption="Every epoch; bytes are those of its second step, measured",
        columns=(
            "epoch", "train loss", "test accuracy", "test loss", "training", "saved", "live peak", "learning rate",
            "seconds",
        ),
        rows=rows,
    )  # fmt: skip


def _row(run: RunView, epoch: RunEpoch) -> tuple[Cell, ...]:
    training = epoch.measured_training_bytes
    over = run.plan.scope == "training" and training > run.plan.budget_bytes
    peak_over = run.plan.scope == "peak" and (limited_bytes(run, epoch) or 0) > run.plan.budget_bytes
    return (
        Cell(text=str(epoch.epoch)),
        _number(epoch.train_loss, ".4f"),
        _number(epoch.test_accuracy, ".4f"),
        _number(epoch.test_loss, ".4f"),
        Cell(text=f"{training:,} B", value=training, note=format_bytes(training), alert=over),
        Cell(text="") if epoch.measured_saved_bytes is None else bytes_cell(epoch.measured_saved_bytes),
        Cell(
            text=f"{epoch.measured_live_peak_bytes:,} B",
            value=epoch.measured_live_peak_bytes,
            note=format_bytes(epoch.measured_live_peak_bytes),
            alert=peak_over,
        ),
        _number(epoch.lr, ".3g"),
        _number(epoch.seconds, ".1f"),
    )


def _number(value: float | None, form: str) -> Cell:
    return Cell(text="") if value is None else Cell(text=f"{value:{form}}", value=value)


def _measured_table(run: RunView) -> Table | None:
    """What the plan predicts beside the most that was measured."""
    if not run.epochs:
        return None
    figures, saved = run.plan.predicted, [e.measured_saved_bytes for e in run.epochs if e.measured_saved_bytes]
    pairs = [
        ("training", figures.training_bytes, max(epoch.measured_training_bytes for epoch in run.epochs)),
        *([("saved", figures.saved_bytes, max(saved))] if saved else []),
        ("live peak", figures.live_peak_bytes, max(epoch.measured_live_peak_bytes for epoch in run.epochs)),
    ]
    drawn = run.plan.sampling.draws is not None
    rows = tuple(
        (
            Cell(text=name),
            bytes_cell(predicted),
            bytes_cell(measured),
            Cell(
                text=f"{measured - predicted:+,} B" if measured != predicted else "0 B",
                value=measured - predicted,
                alert=measured > predicted or (measured != predicted and not drawn),
            ),
        )
        for name, predicted, measured in pairs
    )
    return Table(
        id="measured",
        caption="Predicted by the plan, and the most that was measured" + (" (over several draws)" if drawn else ""),
        columns=("figure", "predicted", "measured", "difference"),
        rows=rows,
    )
