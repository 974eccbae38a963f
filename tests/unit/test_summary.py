"""What a REPL and a notebook show: the numbers of the result, few lines, no script, no style that reaches others."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from example_report import HOSTILE_NAMES, example_report
from example_run import BUDGET_BYTES, batch, example_plan, hostile_plan, network, write_run

from medyate_planner import Batches, Importance, Plan, Recipe, frontier, prepare, rank, train
from medyate_planner.reporting.run_view import read_run
from medyate_planner.summary import MOST_LINES, MOST_ROWS, Row, Sketch, Summary, against, counted
from medyate_planner.training.progress import Epoch, Epochs

DATA = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(4) % 3) for _ in range(3)]


class Reader(HTMLParser):
    """The texts of a fragment, its tags, and whether all that was opened was closed."""

    VOID = ("rect", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, _attributes: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attributes: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def importance() -> Importance:
    model = network()
    return rank(model, lambda _epoch: DATA, example_inputs=batch(), steps_per_epoch=len(DATA), warm_head_epochs=1)


def epochs() -> list[Epoch]:
    source = Batches(train=lambda _epoch: DATA, test=lambda: DATA, steps_per_epoch=len(DATA))
    return train(network(), example_plan(), source, Recipe(epochs=2))


def test_plan_is_a_few_lines_and_survives_what_pydantic_does_with_it() -> None:
    made = example_plan()
    text = repr(made)
    assert text == str(made) == f"{made}"
    assert len(text.splitlines()) <= 5 + MOST_LINES + 1
    assert f"{made.used_bytes:,} B" in text
    assert f"the budget of {BUDGET_BYTES:,} B" in text
    again = Plan.from_dict(json.loads(made.to_json()))
    assert again == made
    assert again != made.model_copy(update={"budget_bytes": 1})
    assert again.model_dump_json() == made.model_dump_json()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(example_plan, id="plan"),
        pytest.param(hostile_plan, id="hostile plan"),
        pytest.param(lambda: example_plan("update"), id="scope update"),
        pytest.param(importance, id="importance"),
        pytest.param(epochs, id="epochs"),
        pytest.param(lambda: prepare(network(), example_plan()), id="session"),
        pytest.param(lambda: example_report(hostile=True), id="report"),
        pytest.param(lambda: frontier(network(), batch(), "30kB:300kB:4", spec=HOSTILE_NAMES[0]), id="frontier"),
    ],
)
def test_fragments_are_a_table_and_a_figure_without_script(make: Any) -> None:
    html = make()._repr_html_()
    reader = Reader(html)
    assert reader.open == []
    assert {"table", "svg", "style"} <= set(reader.tags)
    assert not {"script", "img", "link", "iframe"} & set(reader.tags)
    assert not re.findall(r"https?://|url\(|@import|\sstyle=|\son\w+=\"", html)
    rules = re.findall(r"^([^{}\n<]+)\{", html.partition("<style>")[2].partition("</style>")[0], re.MULTILINE)
    assert rules
    assert all(part.strip().startswith(".medyate-summary") for rule in rules for part in rule.split(","))
    assert {c for c in html if not c.isprintable()} <= {"\n"}


def test_plan_fragment_has_the_quotas_of_the_plan() -> None:
    texts = Reader(example_plan()._repr_html_()).texts
    for layer in example_plan().layers:
        assert f"{layer.quota} of {layer.channels}" in texts


def test_hostile_names_can_not_command_a_terminal() -> None:
    assert {c for c in repr(hostile_plan()) if not c.isprintable()} == {"\n"}


def test_session_says_what_is_trained_now_and_what_was_measured() -> None:
    made = example_plan()
    with prepare(network(), made) as session:
        drawn = session.resample(3)
        assert f"Predicted in scope training: {made.used_bytes:,} B" in repr(session)
        for name in ("0", "2"):
            assert " ".join(map(str, drawn[name])) in repr(session)
        assert "all, in full" in repr(session)
        session.eval()
        assert "evaluating" in repr(session)
        source = Batches(train=lambda _epoch: DATA, test=lambda: DATA, steps_per_epoch=len(DATA))
        assert session.measured is None
    assert "finished" in repr(session)
    seen: list[str] = []

    def after(_epoch: Epoch) -> None:
        seen.append("")

    found = train(network(), made, source, Recipe(epochs=1), on_epoch=after)
    assert len(seen) == len(found) == 1


def test_session_remembers_the_last_measured_step() -> None:
    from medyate_planner.training.measure import measure_step

    made = example_plan()
    with prepare(network(), made) as session:
        session.resample(0)
        session.set_lr(0.01)
        step = measure_step(session, (DATA[0][0],), {}, DATA[0][1], torch.nn.functional.cross_entropy)
        assert session.measured is step
        left = BUDGET_BYTES - step.training_bytes
        assert f"Last measured in scope training: {step.training_bytes:,} B, {left:,} B below" in repr(session)


def test_importance_orders_layers_and_is_compared_as_before() -> None:
    found = importance()
    rows = Reader(found._repr_html_()).texts
    assert rows.index("10") >= 0
    text = repr(found)
    assert "with the head warmed up" in text
    assert len(text.splitlines()) <= 3 + MOST_LINES + 1


def test_epochs_are_a_list_and_a_table() -> None:
    found = epochs()
    assert isinstance(found, Epochs)
    assert found == list(found)
    assert [line.split()[0] for line in repr(found).splitlines()[2:]] == ["0", "1"]
    metrics = found[1].metrics
    assert repr(found[1]) == (
        f"<Epoch 1: train loss {metrics.train_loss:.4f}, test accuracy {metrics.test_accuracy:.4f}, "
        f"{metrics.measured_training_bytes:,} B training memory, {metrics.seconds:.1f} s>"
    )
    assert repr(Epochs()) == "0 epochs"
    assert "<polyline" not in Epochs(found[:1])._repr_html_()


def test_summary_shows_the_first_or_the_latest_rows() -> None:
    rows = tuple(Row(cells=(f"r{i}", str(i))) for i in range(MOST_ROWS + 5))
    first = Summary(title="t", columns=("name", "n"), rows=rows)
    last = Summary(title="t", columns=("name", "n"), rows=rows, latest=True)
    assert first.text().splitlines()[2].split() == ["r0", "0"]
    assert first.text().splitlines()[-1] == f"  … {len(rows) - MOST_LINES} more"
    assert last.text().splitlines()[-2].split() == [f"r{MOST_ROWS + 4}", str(MOST_ROWS + 4)]
    assert last.text().splitlines()[-1] == f"  … {len(rows) - MOST_LINES} earlier ones"
    assert "… 5 more" in first.html()
    assert Summary(title="only").text() == "only"


def test_sketch_stays_in_its_box() -> None:
    for values in ((1.0, 5.0, 3.0), (2.0, 2.0), (7.0,)):
        points = [tuple(map(float, point.split(","))) for point in Sketch(text="", values=values).points.split()]
        assert len(points) == len(values)
        assert all(0 <= x <= 100 and 0 <= y <= 40 for x, y in points)
    low, high = Sketch(text="", values=(0.0, 1.0)).points.split()
    assert float(low.split(",")[1]) > float(high.split(",")[1])


def test_words_count() -> None:
    assert counted(1, "layer") == "1 layer"
    assert counted(1200, "bias", "biases") == "1,200 biases"
    assert against(90, 100) == "10 B below the budget of 100 B"
    assert against(101, 100) == "1 B above the budget of 100 B"


def test_a_run_of_a_plan_reads_back_equal(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "run", epochs=1)).plan == example_plan()
