"""The pipeline as functions: rank, plan, verify, prepare, train; `report` is in survey. The CLI calls these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from medyate_planner.graph import ModelGraph
from medyate_planner.importance.energy import Importance, from_weights
from medyate_planner.importance.gradients import probe
from medyate_planner.importance.metrics import channel_scores
from medyate_planner.memory.mode import FUSED, choose_mode
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.planfile import check_budget, plan_from
from medyate_planner.planning.explain import explain as explanation_of
from medyate_planner.planning.plan import ImportanceRef, Plan, Sampling
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.rounds import Packing, Round, pack_rounds
from medyate_planner.planning.sampling import draw_planned
from medyate_planner.planning.strategies import Strategy
from medyate_planner.reporting.verification import Verification, compare
from medyate_planner.strategy import chosen_strategy
from medyate_planner.subject import LossSpec, Subject, as_subject, subject_for, traced_for
from medyate_planner.trace import ExampleInputs, Trace
from medyate_planner.trace.casts import autocasting
from medyate_planner.training.boosting import Boosting
from medyate_planner.training.dryrun import dry_run
from medyate_planner.training.guard import Guard
from medyate_planner.training.loop import Batches, Epoch, Recipe, Watch, fit, invoke, to_model
from medyate_planner.training.measure import StepMeasurement, measure_step
from medyate_planner.training.probing import probe_in_rounds
from medyate_planner.training.progress import Checkpoint, Epochs, Interval
from medyate_planner.training.run import load_weights
from medyate_planner.training.session import Session
from medyate_planner.units import parse_bytes

ROUND_BATCHES = 8  # mini-batches of importance within a budget, of which each round sees all


def rank(
    model: nn.Module | Subject,
    batches: Callable[[int], Iterable[tuple[Any, Any]]],
    loss: LossSpec = "cross-entropy",
    *,
    example_inputs: ExampleInputs | None = None,
    steps_per_epoch: int,
    warm_head_epochs: int = 2,
    recipe: Recipe | None = None,
    max_batches: int | None = None,
    within_budget: str | int | None = None,
    on_step: Callable[[str, int, int], None] = lambda _phase, _step, _of: None,
    **options: Any,
) -> Importance:
    """Train the head alone for a short while, then measure the gradient energy of every channel.

    The head's weights in `model` are put back; the warmed ones are in the result. With `within_budget` neither the head
    nor the measurement ever keeps more than that: channels are measured in rounds, each a selection that fits.

    Args:
        model: A module, or what `subject_of` returned.
        batches: `batches(epoch)` gives (input, target) pairs.
        loss: Name, callable, or module:factory.
        example_inputs: One batch, needed for a module.
        steps_per_epoch: Number of batches of an epoch.
        warm_head_epochs: Epochs of training the head alone; 0 measures with the head as it is.
        recipe: Learning rate and clipping of the warm-up.
        max_batches: Measure on this many batches at most; by default on all, within a budget on 8.
        within_budget: Bytes (scope `training`), or a text such as "512kB". `batches(0)` is then read once a round.
        on_step: Progress: phase ("head" or "gradients"), step, number of steps.
        options: As `subject_of`.

    Raises:
        InfeasibleBudgetError: the head, or not even one channel, fits `within_budget`.
        BudgetExceededError, CertificationError: more than `within_budget` was measured, of the head or in a round.
        InputError, DivergenceError.
    """
    subject = as_subject(model, example_inputs, {"loss": loss, **options})
    chosen = recipe or Recipe(epochs=max(1, warm_head_epochs))
    head_names = _head_parameters(subject.graph)
    packing = None
    if within_budget is not None:
        subject = subject.under(FUSED, "frozen")
        head = frozenset(subject.graph.head if warm_head_epochs else ())
        packing = pack_rounds(subject.memory, parse_bytes(within_budget, what="--within-budget"), head=head)
    own = dict(subject.model.named_parameters(remove_duplicate=False))
    before = {name: own[name].detach().clone() for name in head_names}
    count = min(steps_per_epoch, max_batches or (steps_per_epoch if packing is None else ROUND_BATCHES))
    guard = None if packing is None else Guard(budget_bytes=packing.budget_bytes, scope="training")
    warming_bytes = 0
    try:
        if head_names and warm_head_epochs:
            total = chosen.epochs * steps_per_epoch
            warming_bytes = warm_head(
                subject,
                batches,
                chosen,
                steps_per_epoch,
                guard=guard,
                on_step=lambda e, s: on_step("head", e * steps_per_epoch + s, total),
            )
        measured = _measure(subject, packing, lambda: islice(batches(0), count), count, on_step)
        warmed = {name: own[name].detach().clone() for name in head_names}
    finally:
        load_weights(subject.model, before)
    facts = {**measured.facts, "loss": subject.loss.name, "warm_head_epochs": warm_head_epochs}
    if packing is not None:
        facts["measured_training_bytes"] = max(warming_bytes, facts["measured_training_bytes"])
    return replace(measured, head=warmed, facts=facts)


def _measure(
    subject: Subject,
    packing: Packing | None,
    batches: Callable[[], Iterable[tuple[Any, Any]]],
    count: int,
    on_step: Callable[[str, int, int], None],
) -> Importance:
    """Gradients of `count` batches: all at once, or in rounds."""
    model, graph, loss = subject.model, subject.graph, subject.loss.function
    step, of = 0, count * (1 if packing is None else len(packing.rounds))

    def on_model() -> Iterable[tuple[Any, Any]]:
        return ((to_model(model, x), to_model(model, target, cast=False)) for x, target in batches())

    def advance() -> None:
        nonlocal step
        step += 1
        on_step("gradients", step, of)

    if packing is None:
        return probe(model, graph, on_model(), loss, call=invoke, on_batch=advance)

    def open_round(chosen: Round) -> Session:
        return Session(model, subject.traced, graph, chosen.updates, chosen.draw)

    return probe_in_rounds(graph, packing, on_model, loss, open_session=open_round, on_batch=advance)


def warm_head(
    subject: Subject,
    batches: Callable[[int], Iterable[tuple[Any, Any]]],
    recipe: Recipe,
    steps_per_epoch: int,
    *,
    guard: Guard | None = None,
    on_step: Callable[[int, int], None] = lambda _epoch, _step: None,
) -> int:
    """Train the head alone, in place, with the executor itself (a head-only plan).

    Returns:
        The most training bytes that were measured in an epoch.

    Raises:
        BudgetExceededError: the guard stopped it.
    """
    subject = subject.under(FUSED, "frozen")
    updates = Updates(quotas={}, full=frozenset(subject.graph.head))
    source = Batches(train=batches, test=lambda: (), steps_per_epoch=steps_per_epoch)
    with Session(subject.model, subject.traced, subject.graph, updates, lambda _interval: {}) as session:
        watch = Watch(on_step=lambda e, s, _loss: on_step(e, s + 1))
        epochs = fit(session, source, subject.loss, recipe, guard=guard, watch=watch)
        return max(epoch.metrics.measured_training_bytes for epoch in epochs)


def plan(
    model: nn.Module | Subject,
    example_inputs: ExampleInputs | None = None,
    budget: str | int = "512kB",
    importance: Importance | None = None,
    *,
    strategy: str | Strategy = "optimal",
    update: str | None = None,
    optimizer: str | None = None,
    accumulation: int | None = None,
    sampling: Sampling | None = None,
    model_facts: Mapping[str, Any] | None = None,
    importance_file: ImportanceRef | None = None,
    request: Mapping[str, Any] | None = None,
    explain: bool = False,
    **options: Any,
) -> Plan:
    """Decide which layers are updated and how many channels in each, under a memory budget.

    Args:
        model: A module (on the meta device too), or what `subject_of` returned.
        example_inputs: One batch, needed for a module; its batch size is what is planned for.
        budget: Bytes, or a text such as "512kB".
        importance: From `rank`; without it, mean squared weight per channel (the plan says so).
        strategy: A name of `planning.strategies.STRATEGIES`, a function `PlanRequest -> Decision` of your own, or
            "file.py:function" that names one. What it decides is checked: an own strategy can not exceed the budget.
        update: "fused" (plain SGD during backward; the default where that will do) or "optimizer" (a torch optimizer,
            on compact parameters). What is not given, a subject knows.
        optimizer: Whose state is paid for: sgd, momentum, adam or adamw.
        accumulation: Passes whose gradients are summed before a step.
        sampling: How channels are redrawn.
        model_facts: How to build the model again (spec, weights, num_classes, input_shape), for the file.
        importance_file: Name and hash of the importance file.
        request: Further keys of `PlanRequest`: scope, objective, curve, max_layers, granularity, settings, ...
        explain: Also say why each layer is in or out, and what more bytes would buy (`Plan.explanation`).
        options: As `subject_of`.

    Raises:
        InfeasibleBudgetError: no plan fits; gives the smallest budget that can be met.
        PlanMismatchError: the importance is another model's.
    """
    asked_mode, subject = choose_mode(update, optimizer, accumulation), as_subject(model, example_inputs, options)
    subject = subject if asked_mode is None else subject.under(asked_mode)
    decide = chosen_strategy(strategy, importance, subject.mode)
    asked = request_of(subject, importance, parse_bytes(budget), request or {})
    decision = decide(asked)
    reference = importance_file or ImportanceRef(source=asked.importance.source)
    made = plan_from(subject, asked, decision, sampling or Sampling(), model_facts or {}, reference)
    why = explanation_of(asked, decision, strategy=decide) if explain else None
    return made.model_copy(update={"explanation": why}) if explain else made


def request_of(
    subject: Subject, importance: Importance | None, budget_bytes: int, further: Mapping[str, Any]
) -> PlanRequest:
    """A planning problem for a subject; without importance, by mean squared weights."""
    magnitudes = from_weights(subject.graph, dict(subject.traced.module.named_parameters(remove_duplicate=False)))
    importance = importance or magnitudes
    importance.check(subject.graph)
    asked = PlanRequest(
        memory=subject.memory, importance=importance, magnitudes=magnitudes, budget_bytes=budget_bytes, **dict(further)
    )
    asked.check_head()
    return asked


def prepare(model: nn.Module, plan: Plan, importance: Importance | None = None) -> Session:
    """Make a model ready for planned training in the user's own loop; see `Session`.

    Raises:
        PlanMismatchError: the plan was made for another model.
        InputError: weighted or top sampling without importance.
    """
    traced, graph = traced_for(model, plan)
    if importance is not None:
        importance.check(graph)
    return _session(model, traced, graph, plan, importance)


def open_session(subject: Subject, plan: Plan, importance: Importance | None = None) -> Session:
    """A session whose draws follow the plan's sampling; the first interval is drawn."""
    return _session(subject.model, subject.traced, subject.graph, plan, importance)


def _session(model: nn.Module, traced: Trace, graph: ModelGraph, plan: Plan, importance: Importance | None) -> Session:
    plan.check_autocast(traced.autocast)
    draw = Boosting(plan, importance) if plan.sampling.boosted else planned_draws(plan, importance)
    session = Session(model, traced, graph, plan.updates(), draw, mode=plan.mode)
    session.plan = plan
    try:
        session.resample(0)
    except BaseException:
        session.finish()
        raise
    return session


def planned_draws(plan: Plan, importance: Importance | None = None) -> Callable[[int], dict[str, list[int]]]:
    """The channels a plan trains in an interval, by layer: a pure function of the plan and the importance.

    With `sampling.boost` > 0 this holds for the first interval alone: later draws depend on the gradients that were
    seen by then, which only the session that trains knows.
    """
    scores = None
    if importance is not None and plan.sampling.channels is None:
        metric, names = plan.sampling.metric, [layer.name for layer in plan.layers if not layer.head]
        scores = {name: channel_scores(importance, name, metric, cost_per_channel=1) for name in names}
    return lambda interval: draw_planned(plan, interval, scores)


def verify(model: nn.Module | Subject, plan: Plan, *, loss: LossSpec | None = None, seed: int = 0) -> Verification:
    """One real step on this machine: predicted bytes against measured bytes, by category.

    Of a plan whose quotas are drawn anew, the step is that of the draw that keeps most. The model's weights are put
    back afterwards.
    """
    subject = model if isinstance(model, Subject) else subject_for(model, plan, loss=loss)
    draws = [footprint(subject.memory, plan.updates(i)) for i in range(len(plan.sampling.draws or (None,)))]
    interval = max(range(len(draws)), key=lambda i: draws[i].training_bytes)
    figures, updates = draws[interval], plan.updates(interval)
    loss_function, make_target = subject.loss.function, subject.loss.make_target
    certified = dry_run(subject.traced, subject.graph, updates, loss_function, make_target, mode=subject.mode)
    trained = [*subject.model.parameters(), *subject.model.buffers()]
    before = [p.detach().clone() for p in trained]
    args, kwargs = to_model(subject.model, subject.traced.examples(subject.graph.batch_size, seed), cast=False)
    neutral = (
        None
        if plan.sampling.method in ("uniform", "static", "fixed")
        else from_weights(subject.graph, dict(subject.model.named_parameters(remove_duplicate=False)))
    )
    try:
        with open_session(subject, plan, neutral) as session, autocasting(None, subject.traced.device):
            with torch.no_grad():
                target = subject.loss.make_target(session.eval()(*args, **kwargs))
            session.train().resample(interval)
            session.set_lr(1e-3, clip=5.0)
            measured = measure_step(session, args, kwargs, target, subject.loss.function)
    finally:
        with torch.no_grad():
            for parameter, original in zip(trained, before, strict=True):
                parameter.copy_(original)
    in_flash = plan.weights_in == "flash"
    weights = subject.graph.parameter_bytes + subject.graph.buffer_bytes if in_flash else 0
    largest_bytes = figures.training_bytes if plan.sampling.draws else None
    return compare(plan, figures, certified, measured, weight_bytes=weights, largest_bytes=largest_bytes)


def train(
    model: nn.Module | Subject,
    plan: Plan,
    batches: Batches,
    recipe: Recipe,
    *,
    loss: LossSpec | None = None,
    importance: Importance | None = None,
    resume: Checkpoint | None = None,
    checkpoint_every: int | None = None,
    enforce: bool = False,
    batches_for: Callable[[Session], Batches] | None = None,
    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None,
    on_draw: Callable[[Interval], None] = lambda _interval: None,
    on_measured: Callable[[StepMeasurement], None] = lambda _step: None,
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _checkpoint: None,
) -> list[Epoch]:
    """Execute a planned fine-tune in place. Starts from the importance file's warmed head, if one is given.

    Args:
        model: A module, or what `subject_of` returned.
        plan: What is trained; its sampling says how, and how often, channels are redrawn.
        batches: Where data come from.
        recipe: Schedule, clipping, and what the optimizer is told.
        loss: The plan's own, if none is given.
        importance: What draws go by.
        resume: Go on from this checkpoint, with the weights as they were then.
        checkpoint_every: Call `on_checkpoint` after every so many steps, not only at ends of epochs.
        enforce: Measure every step, and stop when one is seen to exceed the budget.
        batches_for: Gives batches for the session, in place of `batches` (`training.prefixed.PrefixedTraining`).
        on_step: Progress: epoch, step, loss.
        on_draw: Called with the channels that are trained from now on.
        on_measured: Called with every step that was measured: the second of each epoch; with `enforce`, all.
        on_epoch: Called after each epoch.
        on_checkpoint: Called with a checkpoint within an epoch, and with `enforce` before the first step.

    Raises:
        PlanMismatchError, DivergenceError, InputError.
        BudgetExceededError: with `enforce`.
    """
    subject = model if isinstance(model, Subject) else subject_for(model, plan, loss=loss)
    check_budget(subject, plan)
    if importance is not None:
        importance.check(subject.graph)
        if resume is None:
            load_weights(subject.model, importance.head)
    watch = Watch(
        on_step=on_step,
        on_draw=on_draw,
        on_measured=on_measured,
        on_checkpoint=on_checkpoint,
        checkpoint_every=checkpoint_every,
    )
    epochs = Epochs()
    with open_session(subject, plan, importance) as session:
        for epoch in fit(
            session,
            batches if batches_for is None else batches_for(session),
            subject.loss,
            recipe,
            interval_steps=plan.sampling.interval_steps,
            resume=resume,
            guard=Guard.of(plan) if enforce else None,
            watch=watch,
        ):
            epochs.append(epoch)
            on_epoch(epoch)
    return epochs


def _head_parameters(graph: ModelGraph) -> list[str]:
    layers = [graph.layer_by_name[name] for name in graph.head]
    return [name for layer in layers for name in (layer.weight, layer.bias) if name]
