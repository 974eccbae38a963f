"""The live view of a training: what it shows is what the training told, within any terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_run import BUDGET_BYTES, batch, example_plan, hostile_plan, network
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from medyate_planner import Batches, Plan, Recipe, train
from medyate_planner import plan as make_plan
from medyate_planner.cli.live import ABOVE, APART, ASCII, BLOCKS, RECENT, WIDE, LiveTraining, curve, strip
from medyate_planner.training.progress import EpochMetrics, Interval

STEPS, EPOCHS = 3, 2
DATA = [(torch.randn(4, 3, 8, 8), torch.arange(4) % 3) for _ in range(STEPS)]


def shown(view: LiveTraining, *, width: int = 100, height: int = 40, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width, height=height, force_terminal=True, color_system=None).print(view)
    stream.seek(0)
    return stream.read()


def trained(plan: Plan) -> tuple[LiveTraining, list[str], list[EpochMetrics], list[Interval]]:
    """The view after a training, what it showed at the end of each epoch, and what the training told."""
    view, pictures, metrics, draws = LiveTraining(plan, EPOCHS, STEPS, "the bar"), [], [], []

    def on_epoch(epoch):  # type: ignore[no-untyped-def]
        view.on_epoch(epoch)
        pictures.append(shown(view))
        metrics.append(epoch.metrics)

    def on_draw(interval: Interval) -> None:
        view.on_draw(interval)
        draws.append(interval)

    batches = Batches(train=lambda _epoch: DATA, test=lambda: DATA, steps_per_epoch=STEPS)
    train(
        network(),
        plan,
        batches,
        Recipe(epochs=EPOCHS),
        on_step=view.on_step,
        on_draw=on_draw,
        on_measured=view.on_measured,
        on_epoch=on_epoch,
    )
    return view, pictures, metrics, draws


@pytest.mark.parametrize(("scope", "budget"), [("training", "60kB"), ("peak", "400kB"), ("update", "10kB")])
def test_it_shows_what_the_training_measured(scope: str, budget: str) -> None:
    plan = make_plan(network(), batch(), budget, request={"scope": scope})
    view, pictures, metrics, draws = trained(plan)
    for picture, line, draw in zip(pictures, metrics, draws, strict=True):
        assert "the bar" in picture
        assert f"{line.test_accuracy:.4f} on test data" in picture
        assert f"of {plan.budget_bytes:,} B ({scope})" in picture
        if scope != "update":
            used = line.measured_training_bytes if scope == "training" else line.measured_live_peak_bytes
            assert f"{used:,} B measured" in picture
        assert f"since step {draw.step + 1}: {sum(map(len, draw.layers.values()))} channels" in picture
        for layer in plan.layers:
            if layer.quota and not layer.head:
                assert re.search(rf"^ +{layer.name} +{layer.quota:,} of {layer.channels:,} ", picture, re.MULTILINE)
    assert len(view.used) == EPOCHS
    assert max(view.used) <= plan.budget_bytes
    assert f"{view.loss:.4f}, mean of the last {EPOCHS * STEPS} steps" in pictures[-1]


def test_before_the_first_step_it_says_what_will_come() -> None:
    picture = shown(LiveTraining(example_plan(), EPOCHS, STEPS, "the bar"))
    assert f"the budget is {BUDGET_BYTES:,} B" in picture
    assert "after the first step" in picture


def test_a_step_above_the_budget_is_said() -> None:
    view = LiveTraining(example_plan(), EPOCHS, STEPS, "")
    view.used = [BUDGET_BYTES + 1, 5]
    assert "above it" in shown(view)
    view.used = [BUDGET_BYTES]
    assert "above it" not in shown(view)


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (200, 60)])
def test_it_fits_the_terminal_whatever_layers_are_called(width: int, height: int) -> None:
    plan = hostile_plan()
    view = LiveTraining(plan, EPOCHS, STEPS, "the bar")
    layers = {layer.name: list(range(layer.quota or 0)) for layer in plan.layers if not layer.head}
    view.on_draw(Interval(epoch=0, interval=0, step=0, layers=layers))
    view.on_step(0, 0, float("nan"))
    lines = shown(view, width=width, height=height).splitlines()
    assert any(name[:4] in line for name in layers for line in lines)
    assert max(map(len, lines)) <= width
    assert all(character.isprintable() for line in lines for character in line)


def test_names_are_not_markup() -> None:
    found = example_plan().to_dict()
    name = next(layer["name"] for layer in found["layers"] if not layer["head"])
    plan = Plan.from_dict(json.loads(json.dumps(found).replace(f'"{name}"', '"[bold]x[/red]"')))
    view = LiveTraining(plan, EPOCHS, STEPS, "the bar")
    view.on_draw(Interval(epoch=0, interval=0, step=0, layers={"[bold]x[/red]": [0]}))
    assert "[bold]x[/red]" in shown(view)


def test_many_layers_leave_room_and_are_counted() -> None:
    plan = example_plan()
    view = LiveTraining(plan, EPOCHS, STEPS, "the bar")
    layers = {layer.name: [0] for layer in plan.layers if not layer.head}
    assert len(layers) > 1
    view.on_draw(Interval(epoch=0, interval=0, step=0, layers=layers))
    picture = shown(view, height=ABOVE + 1)
    assert f"and {len(layers) - 1} layers more" in picture


def test_a_terminal_without_unicode_gets_ascii() -> None:
    view, _, _, _ = trained(example_plan())
    assert shown(view, encoding="ascii").isascii()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=200))
def test_a_curve_is_short_and_its_ends_are_reached(values: list[float]) -> None:
    drawn = curve(values, BLOCKS)
    assert len(drawn) <= WIDE
    assert BLOCKS[0] not in drawn


def test_a_curve_rises_as_its_values_do() -> None:
    assert curve([0, 1, 2, 3, 4, 5, 6, 7], BLOCKS) == BLOCKS[1:]
    assert curve([7, 0], ASCII) == ASCII[-1] + ASCII[1]


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_strip_shows_each_trained_channel(drawn: tuple[int, set[int]]) -> None:
    channels, chosen = drawn
    seen = strip(sorted(chosen), channels, BLOCKS)
    width = len(seen)
    assert width == min(channels, WIDE)
    for place, mark in enumerate(seen):
        inside = range(channels * place // width, channels * (place + 1) // width)
        assert (mark != " ") == any(channel in chosen for channel in inside)
        assert (mark == BLOCKS[-1]) == all(channel in chosen for channel in inside)


def test_the_loss_is_kept_in_means() -> None:
    view = LiveTraining(example_plan(), 1, 3 * RECENT, "")
    for step in range(2 * RECENT):
        view.on_step(0, step, 1.0 if step < RECENT else 3.0)
    points = RECENT // APART
    assert view.losses[: 1 + points] == [1.0] * (1 + points)
    assert view.losses[1 + points] == pytest.approx(1 + 2 / points)
    assert (len(view.losses), view.losses[-1]) == (1 + 2 * points, 3.0)


def test_in_a_real_terminal(tmp_path: Path) -> None:
    """Under a pseudo-terminal the view is drawn and taken away again; the epochs' lines stay."""
    script = tmp_path / "live.py"
    script.write_text(
        "import sys, time\n"
        "from example_run import example_plan\n"
        "from medyate_planner.cli.live import live_training\n"
        "from medyate_planner.cli.output import say\n"
        "with live_training(example_plan(), 1, 4) as view:\n"
        "    for step in range(4):\n"
        "        view.on_step(0, step, 1.5)\n"
        "        time.sleep(0.4)\n"
        "    say('epoch 1/1: done')\n"
    )
    master, slave = pty.openpty()
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen([sys.executable, script], stderr=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                read = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            seen += read
    os.close(master)
    text = seen.decode()
    assert process.returncode == 0, text
    assert "1.5000, mean of the last" in text
    assert "epoch 1/1: done" in text
    assert re.search(r"training .*4/4", text)
