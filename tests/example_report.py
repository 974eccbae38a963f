"""A memory report made by hand: a small chain of blocks whose bytes are easy to follow, with every optional part.

The moments are simulated: forward keeps one storage per operator, backward releases them in reverse order. All totals
of the report follow from the moments and the modules, so that a page or a table can be checked against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.view import (
    FullFineTuning,
    Inference,
    LargestBatch,
    MemoryReport,
    ReportedAccounting,
    ReportedLayer,
    ReportedMeasurement,
    ReportedModel,
    ReportedModule,
    ReportedRegime,
    ReportedStep,
    ReportedTimeline,
    StepName,
)

HOSTILE_NAMES = (
    "<script>window.harmed = true; alert(1)</script>",
    '"><img src=x onerror="window.harmed = true">',
    "\x1b[31mred\x1b[0m\x07",
    "</script><script>window.harmed = true</script>",
    "line\u2028separator\u2029and \u202eright to left",
    "'onmouseover='window.harmed = true' {{ 7 * 7 }} <!-- &amp;",
)
_CATEGORIES = tuple(Category)
_KINDS = ("Conv2d", "BatchNorm2d", "ReLU6")
_OPERATORS = ("convolution", "native_batch_norm", "hardtanh")
_LOSS_BYTES = 388


@dataclass
class _Moments:
    """Notes what is live after each operator."""

    live: dict[Category, int]
    phase: list[str] = field(default_factory=list)
    operator: list[str] = field(default_factory=list)
    module: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    rows: list[dict[Category, int]] = field(default_factory=list)

    def note(self, phase: str, operator: str, module: str = "", source: str = "", **now: int) -> None:
        """One operator; `now` is what only this moment holds, by category."""
        row = dict(self.live)
        for name, amount in now.items():
            row[Category(name)] = row.get(Category(name), 0) + amount
        self.phase.append(phase)
        self.operator.append(operator)
        self.module.append(module)
        self.source.append(source)
        self.rows.append(row)

    def add(self, category: Category, amount: int) -> None:
        self.live[category] = self.live.get(category, 0) + amount

    def timeline(self) -> ReportedTimeline:
        used = [category for category in _CATEGORIES if any(row.get(category) for row in self.rows)]
        live = tuple(tuple(row.get(category, 0) for category in used) for row in self.rows)
        totals = [sum(moment) for moment in live]
        return ReportedTimeline(
            categories=tuple(category.value for category in used),
            phase=tuple(self.phase),
            operator=tuple(self.operator),
            module=tuple(self.module),
            source=tuple(self.source),
            live_bytes=live,
            peak_index=totals.index(max(totals)),
        )


def example_report(
    *, hostile: bool = False, blocks: int = 8, operators_per_module: int = 1, optional: bool = True
) -> MemoryReport:
    """A report on a chain of `blocks` blocks of three modules each and a head.

    Args:
        hostile: Some modules, operators and lines have names that try to break a page or a terminal.
        operators_per_module: How many operators each module runs in forward, and again in backward.
        optional: With a plan, lean operators, measured rows, largest batches and an allocator's peak.
    """
    modules = _modules(blocks, HOSTILE_NAMES if hostile else ())
    inference, full = _inference(modules, operators_per_module), _full(modules, operators_per_module)
    steps = [
        _step("inference", "inference", inference, saved_bytes=0),
        _step("full", "full fine-tuning (PyTorch)", full, saved_bytes=sum(m.saved_bytes for m in modules)),
    ]
    if optional:
        for name, title, share in (("lean_full", "full fine-tuning (lean operators)", 0), ("plan", "plan", 2 * blocks)):
            lean = _lean(modules, operators_per_module, first=share, selected=name == "plan")
            kept = max(_kept(lean, moment) for moment in range(len(lean.phase)) if lean.phase[moment] == "forward")
            steps.append(_step(name, title, lean, saved_bytes=kept))  # type: ignore[arg-type]
    measured = steps[1].model_copy(update={"allocator_peak_bytes": steps[1].live_peak_bytes * 9 // 8})
    return MemoryReport(
        model=ReportedModel(
            spec=HOSTILE_NAMES[0] if hostile else "examples.chain:small",
            fingerprint="8d1f0c5ab7e94b32" * 4,
            num_parameters=sum(module.parameters for module in modules),
        ),
        batch_size=8,
        dtype="float32",
        regime=ReportedRegime(
            optimizer="momentum", norm="frozen", autocast=None, accumulation=1, mode="eval", train=()
        ),
        full=FullFineTuning(
            weights_bytes=sum(module.weights_bytes for module in modules),
            gradients_bytes=sum(module.gradients_bytes for module in modules),
            saved_bytes=sum(module.saved_bytes for module in modules),
            loss_bytes=_LOSS_BYTES,
            optimizer="momentum",
            optimizer_bytes=sum(module.optimizer_bytes for module in modules),
            training_bytes=steps[1].training_bytes,
            live_peak_bytes=steps[1].live_peak_bytes,
        ),
        inference=Inference(live_peak_bytes=steps[0].live_peak_bytes),
        steps=(steps[0], measured, *steps[2:]) if optional else tuple(steps),
        modules=modules,
        layers=tuple(_layer(module, module is modules[-1]) for module in modules if module.gradients_bytes),
        accountings=(
            ReportedAccounting(accounting="bytes", of="saved, batch 8", amount=steps[1].saved_bytes, unit="B"),
            ReportedAccounting(accounting="elements", of="full fine-tuning", amount=1_234_567, unit="elements"),
            ReportedAccounting(accounting="sparse-update", of="last 4 biases", amount=98_304, unit="B"),
        ),
        measured=_measured(steps) if optional else (),
        largest_batch=_largest(steps) if optional else (),
    )


def _modules(blocks: int, names: Sequence[str]) -> tuple[ReportedModule, ...]:
    rows = [ReportedModule(path="", kind="Chain", parameters=0, **_held(0, 0))]
    for block in range(blocks):
        side = max(2, 64 >> (3 * block // blocks))
        channels = 16 << (3 * block // blocks)
        for place, kind in enumerate(_KINDS):
            parameters = (channels * channels * 9, 2 * channels, 0)[place]
            saved = 0 if place == 2 and block % 2 else 8 * channels * side * side * 4 // (1 + place)
            index = 3 * block + place
            path = f"features.{block}.{('conv', 'norm', 'act')[place]}"
            path = names[index] if index < len(names) else path
            rows.append(ReportedModule(path=path, kind=kind, parameters=parameters, **_held(parameters, saved)))
    head = 10 * (16 << 2) + 10
    rows.append(ReportedModule(path="head", kind="Linear", parameters=head, **_held(head, 8 * (16 << 2) * 4)))
    return tuple(rows)


def _held(parameters: int, saved: int) -> dict[str, int]:
    amount = 4 * parameters
    return {"weights_bytes": amount, "gradients_bytes": amount, "optimizer_bytes": amount, "saved_bytes": saved}


def _layer(module: ReportedModule, head: bool) -> ReportedLayer:
    channels = max(1, module.parameters // 64)
    return ReportedLayer(
        name=module.path,
        kind="linear" if head else "conv" if module.kind == "Conv2d" else "norm",
        channels=channels,
        weight_bytes=module.weights_bytes,
        gradient_bytes_per_channel=module.gradients_bytes // channels,
        saved_bytes_per_channel=module.saved_bytes // channels,
        passthrough_bytes=0 if head else module.saved_bytes // 32,
        head=head,
    )


def _start(modules: Sequence[ReportedModule]) -> _Moments:
    weights = sum(module.weights_bytes for module in modules)
    return _Moments(live={Category.WEIGHTS: weights, Category.INPUTS: 8 * 3 * 64 * 64 * 4 + 64})


def _calls(modules: Sequence[ReportedModule], each: int) -> list[tuple[ReportedModule, str, str, int]]:
    """Module, operator, source line and kept bytes of every call in forward."""
    calls = []
    for index, module in enumerate(modules):
        operator = "linear" if module.kind == "Linear" else _OPERATORS[(index - 1) % 3]
        for turn in range(each if module.path else 0):
            share = module.saved_bytes // each + (module.saved_bytes % each if turn == 0 else 0)
            calls.append((module, operator, f"chain.py:{40 + index % 3}", share))
    return calls


def _inference(modules: Sequence[ReportedModule], each: int) -> ReportedTimeline:
    moments = _start(modules)
    for module, operator, source, kept in _calls(modules, each):
        moments.note("forward", operator, module.path, source, activations=2 * kept + 4096)
    return moments.timeline()


def _full(modules: Sequence[ReportedModule], each: int) -> ReportedTimeline:
    moments = _start(modules)
    moments.add(Category.OPTIMIZER_STATE, sum(module.optimizer_bytes for module in modules))
    calls = _calls(modules, each)
    for module, operator, source, kept in calls:
        moments.add(Category.KEPT, kept)
        moments.note("forward", operator, module.path, source, activations=kept // 2 + 2048)
    moments.add(Category.KEPT_LOSS, _LOSS_BYTES)
    moments.note("loss", "_log_softmax")
    moments.note("loss", "nll_loss_forward", activations=4)
    for call, (module, operator, source, kept) in enumerate(reversed(calls)):
        if not call:
            moments.add(Category.KEPT_LOSS, -_LOSS_BYTES)
        moments.add(Category.WEIGHT_GRADIENTS, module.gradients_bytes if call % each == 0 else 0)
        moments.note("backward", f"{operator}_backward", module.path, source, activation_gradients=kept + 2048)
        moments.add(Category.KEPT, -kept)
    moments.note("optimizer", "_foreach_mul_")
    moments.note("optimizer", "_foreach_add_")
    return moments.timeline()


def _lean(modules: Sequence[ReportedModule], each: int, *, first: int, selected: bool) -> ReportedTimeline:
    """Lean operators train the modules from `first` on; a plan of them only a tenth of each."""
    moments = _start(modules)
    calls = _calls(modules, each)
    reach = calls[first * each :]
    if selected:
        moments.add(Category.INDICES, 4 * len(reach) // each)
        moments.add(Category.WORKING_COPIES, sum(module.weights_bytes for module, *_ in reach) // (10 * each))
    for call, (module, operator, source, kept) in enumerate(calls):
        if call >= len(calls) - len(reach):
            moments.add(Category.KEPT_SELECTED, kept // 10 if selected else kept)
            moments.add(Category.KEPT_PASSTHROUGH, kept // 32)
        moments.note("forward", operator, module.path, source, activations=kept + 4096)
    moments.add(Category.KEPT_LOSS, _LOSS_BYTES)
    moments.note("loss", "nll_loss_forward", activations=4)
    moments.add(Category.KEPT_LOSS, -_LOSS_BYTES)
    for module, operator, source, kept in reversed(reach):
        gradient = module.gradients_bytes // (10 if selected else 1)
        moments.note(
            "backward", f"{operator}_backward", module.path, source,
            activation_gradients=kept + 2048, weight_gradients=gradient,
        )  # fmt: skip
        moments.add(Category.KEPT_SELECTED, -(kept // 10 if selected else kept))
        moments.add(Category.KEPT_PASSTHROUGH, -(kept // 32))
    return moments.timeline()


def _kept(line: ReportedTimeline, moment: int) -> int:
    kept = (Category.KEPT, Category.KEPT_SELECTED, Category.KEPT_PASSTHROUGH)
    return sum(line.live_bytes[moment][i] for i, name in enumerate(line.categories) if Category(name) in kept)


def _step(name: StepName, title: str, line: ReportedTimeline, *, saved_bytes: int) -> ReportedStep:
    transient = {Category.WEIGHTS, Category.INPUTS, Category.ACTIVATIONS, Category.ACTIVATION_GRADIENTS}
    trained = [i for i, category in enumerate(line.categories) if Category(category) not in transient]
    return ReportedStep(
        name=name,
        title=title,
        saved_bytes=saved_bytes,
        training_bytes=max(sum(moment[i] for i in trained) for moment in line.live_bytes),
        live_peak_bytes=line.peak_bytes,
        live_peak_bound_bytes=line.peak_bytes * 17 // 16 if name in ("lean_full", "plan") else None,
        timeline=line,
    )


def _measured(steps: Sequence[ReportedStep]) -> tuple[ReportedMeasurement, ...]:
    full = steps[1]
    return (
        ReportedMeasurement(
            step="full", name="saved", predicted_bytes=full.saved_bytes, measured_bytes=full.saved_bytes
        ),
        ReportedMeasurement(
            step="full",
            name="live peak",
            predicted_bytes=full.live_peak_bytes,
            measured_bytes=full.live_peak_bytes + 4096,
        ),
    )


def _largest(steps: Sequence[ReportedStep]) -> tuple[LargestBatch, ...]:
    return (
        LargestBatch(step="full", budget_bytes=64_000_000, batch_size=41, live_peak_bytes=63_912_448),
        LargestBatch(step="full", budget_bytes=1_000_000, batch_size=0, live_peak_bytes=steps[1].live_peak_bytes // 8),
    )
