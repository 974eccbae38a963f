"""The pages of every kind in a real browser: on a desktop and a phone, light and dark, they show the files' numbers and
ask for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bench_results import MATRIX, results
from example_report import HOSTILE_NAMES, example_report
from example_run import batch, example_plan, hostile_plan, hostile_run, network, write_run

from medyate_planner import Plan, frontier, plan
from medyate_planner.bench.records import Records
from medyate_planner.bench.results import BenchResults
from medyate_planner.models import load_model
from medyate_planner.reporting.html import printable
from medyate_planner.reporting.kinds import KINDS as KINDS_OF_FILES
from medyate_planner.reporting.kinds import page_of
from medyate_planner.reporting.run_view import read_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, the driver of a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
EACH = ("report", "frontier", "plan", "run", "bench")
KINDS = (*EACH, "zoo plan", "hostile plan", "hostile run", "notebook")
DRAWN = {
    "report": "#panel-1 .bands path",
    "frontier": "circle.dot",
    "plan": "#quotas .bar rect",
    "zoo plan": "#timeline .bands path",
    "hostile plan": "#quotas .bar rect",
    "run": "#learning circle.dot",
    "hostile run": ".heat rect",
    "bench": "#frontier-section circle.dot",
    "notebook": ".medyate-bar rect",
}
HEADINGS = "[...document.querySelectorAll('h1,h2,h3')].map((h) => Number(h.tagName[1]))"
OFF_SCREEN = """[...document.querySelectorAll('main *')].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.right > innerWidth + 1 && !element.closest('.scroll') && element.tagName !== 'title';
}).map((element) => element.outerHTML.slice(0, 90))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def zoo_plan() -> Plan:
    """A plan whose model can be built by its name: its page has a timeline."""
    loaded = load_model("mbv2-w0.35", num_classes=5, input_shape=(3, 64, 64), allocate=False)
    facts = {"spec": "mbv2-w0.35", "num_classes": 5, "input_shape": (3, 64, 64)}
    x = torch.zeros(4, 3, 64, 64, device="meta")
    return plan(loaded.model, x, "200kB", model_facts=facts, explain=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, zoo_plan: Plan) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {
        "report": example_report(),
        "frontier": frontier(network(), batch(), "30kB:300kB:4"),
        "plan": example_plan(),
        "zoo plan": zoo_plan,
        "hostile plan": hostile_plan(),
        "run": read_run(write_run(folder / "run")),
        "hostile run": hostile_run(folder / "hostile"),
        "bench": bench_results(folder / "bench"),
    }
    assert {it.kind for it in found.values()} == set(EACH) == set(KINDS_OF_FILES)
    html = {kind: page_of(it) for kind, it in found.items()}
    fragments = [found[kind]._repr_html_() for kind in ("report", "frontier", "plan", "hostile plan")]
    html["notebook"] = "".join(
        ["<!DOCTYPE html><html lang=en><meta charset=utf-8><link rel=icon href='data:,'><main><h1>x</h1>", *fragments]
    )
    files = {kind: folder / f"{kind}.html" for kind in html}
    for kind, file in files.items():
        file.write_text(html[kind], encoding="utf-8")
    return files


def bench_results(folder: Path) -> BenchResults:
    """A benchmark that is done."""
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in results()))
    return BenchResults(matrix=MATRIX, records=Records(folder), command="medyate bench m.toml")


class Opened:
    """A page that was opened, and what it complained of or asked the network for."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_context(**context).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def rows(self, table: str) -> list[list[str | None]]:
        code = "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.innerText))"
        rows: list[list[str | None]] = self.page.eval_on_selector_all(f"#table-{table} tbody tr", code)
        return rows

    def close(self) -> None:
        assert self.complaints == []
        assert self.requests == [self.page.url.partition("#")[0]]
        self.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_page_is_whole(browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: Any) -> None:
    opened = Opened(browser, pages[kind], viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = opened.page
    assert page.locator(DRAWN[kind]).count() > 0
    assert page.locator(DRAWN[kind]).first.bounding_box() is not None
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if kind != "notebook":
        assert page.evaluate(OFF_SCREEN) == []
    assert page.evaluate("window.harmed") is None
    levels = page.evaluate(HEADINGS)
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = "svg[role=img]:not([aria-label]), .scroll:not([aria-labelledby]):not([aria-label])"
    assert page.locator(unnamed).count() == 0
    opened.close()


@pytest.mark.parametrize("kind", EACH)
def test_page_is_used_with_the_keyboard(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    opened = Opened(browser, pages[kind])
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((box) => box.tabIndex === 0)")
    opened.close()


@pytest.mark.parametrize("kind", EACH)
def test_page_prints(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    opened = Opened(browser, pages[kind])
    opened.page.emulate_media(media="print")
    assert opened.page.locator("nav").is_hidden()
    assert opened.page.locator(DRAWN[kind]).first.is_visible()
    assert opened.page.evaluate(
        "[...document.querySelectorAll('.scroll')].every((b) => b.clientHeight === b.scrollHeight)"
    )
    opened.close()


def test_report_page_shows_the_numbers_of_the_file(browser: Browser, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["report"])
    data = example_report().to_dict()
    for row, step in zip(opened.rows("steps"), data["steps"], strict=True):
        expected = [step[f"{name}_bytes"] for name in ("saved", "training", "live_peak")]
        assert [int(text or 0) for text in row[1:4]] == expected
    keys = ("parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes")
    for row, module in zip(opened.rows("modules"), data["modules"], strict=True):
        assert [int(text or 0) for text in row[2:7]] == [module[key] for key in keys]
    keys = ("channels", "weight_bytes", "gradient_bytes_per_channel", "saved_bytes_per_channel", "passthrough_bytes")
    for row, layer in zip(opened.rows("layers"), data["layers"], strict=True):
        assert [int(text or 0) for text in row[2:]] == [layer[key] for key in keys]
    opened.close()


def test_bench_page_shows_the_numbers_of_the_file(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    opened = Opened(browser, pages["bench"], viewport={"width": 390, "height": 844})
    runs = bench_results(tmp_path / "bench").to_dict()["runs"]

    def mean(task: str, contender: str, budget: str | None) -> float:
        at = (task, contender, budget)
        return fmean(r["accuracy"] for r in runs if (r["task"], r["contender"], r["budget"]) == at)

    tasks = ("t", "u")
    rows = {row[0]: row[1:] for row in opened.rows("overview")}
    for contender, budget, column in (("a", "1%", 0), ("a", "2%", 1), ("eight", "2%", 1), ("head", None, 2)):
        share = fmean(mean(task, contender, budget) / mean(task, "full", None) for task in tasks)
        assert float(rows[contender][column] or "nan") == pytest.approx(share)
    for row in opened.rows("n-t"):
        budget = None if row[1] == "none" else row[1]
        assert float(row[2] or "nan") == pytest.approx(mean("t", str(row[0]), budget))
    dots = opened.page.locator("#frontier-section circle.dot title").all_text_contents()
    share = fmean(mean(task, "a", "1%") / mean(task, "full", None) for task in tasks)
    assert f"a, budget 1%: {share:.1%} of the accuracy, 1.00% of the memory" in dots
    opened.page.locator("#claims-section summary").click()
    assert opened.page.locator("#table-claims").is_visible()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.page.evaluate(OFF_SCREEN) == []
    opened.close()


def test_plan_page_shows_the_numbers_of_the_file(browser: Browser, pages: dict[str, Path], zoo_plan: Plan) -> None:
    opened = Opened(browser, pages["zoo plan"])
    data = json.loads(zoo_plan.to_json())
    rows = opened.rows("layers")
    assert [row[0].partition("\n")[0] for row in rows if row[0]] == [layer["name"] for layer in data["layers"]]
    assert [int(row[2] or 0) for row in rows] == [layer["quota"] for layer in data["layers"]]
    assert [int(row[3] or 0) for row in rows] == [layer["channels"] for layer in data["layers"]]
    predicted = {(row[0] or "").partition("\n")[0]: int(row[1] or 0) for row in opened.rows("predicted")}
    for name, key in (("training", "training_bytes"), ("update", "update_bytes"), ("live peak", "live_peak_bytes"),
                      ("pass-through", "passthrough_bytes"), ("loss", "loss_bytes")):  # fmt: skip
        assert predicted[name] == data["predicted"][key]
    page = opened.page
    assert int(page.get_attribute("circle.peak", "data-peak-bytes") or 0) == data["predicted"]["training_bytes"]
    assert float(page.get_attribute("#timeline .level", "data-value") or 0) == data["budget_bytes"]
    parts = page.eval_on_selector_all(
        "#budget .stack rect", "(parts) => parts.map((part) => Number(part.dataset.value))"
    )
    assert sum(parts) == data["predicted"]["training_bytes"]
    peak, level = page.locator("circle.peak").bounding_box(), page.locator("#timeline .level").bounding_box()
    assert peak is not None
    assert level is not None
    assert peak["y"] + peak["height"] / 2 >= level["y"] - 1  # the peak is not above the budget
    opened.close()


def test_run_page_shows_the_numbers_of_the_folder(browser: Browser, pages: dict[str, Path]) -> None:
    folder = pages["run"].parent / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    opened = Opened(browser, pages["run"])
    for row, line in zip(opened.rows("epochs"), lines, strict=True):
        shown = [float(text or "nan") for text in row]
        assert shown == [
            line["epoch"], line["train_loss"], line["test_accuracy"], line["test_loss"],
            line["measured_training_bytes"], line["measured_saved_bytes"], line["measured_live_peak_bytes"],
            line["lr"], line["seconds"],
        ]  # fmt: skip
    code = "(dots) => dots.map((dot) => Number(dot.dataset.value))"
    for chart, key in (("training", "measured_training_bytes"), ("live-peak", "measured_live_peak_bytes"),
                       ("accuracy", "test_accuracy"), ("seconds", "seconds")):  # fmt: skip
        drawn = opened.page.eval_on_selector_all(f"#chart-{chart} circle.dot", code)
        assert drawn == [line[key] for line in lines]
    budget = json.loads((folder / "plan.json").read_text())["budget_bytes"]
    assert float(opened.page.get_attribute("#chart-training .level", "data-value") or 0) == budget
    opened.close()


def test_run_page_heat_map_fills_its_strips(browser: Browser, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["run"])
    code = """(strips) => strips.map((strip) => [strip.clientWidth,
      [...strip.querySelectorAll('rect')].reduce((sum, cell) => sum + cell.getBoundingClientRect().width, 0)])"""
    strips = opened.page.eval_on_selector_all(".heat svg", code)
    assert len(strips) == 4
    for whole, cells in strips:
        assert cells == pytest.approx(whole, abs=1)
    never, always = (
        opened.page.eval_on_selector(f".swatch.{css}", "(it) => getComputedStyle(it).backgroundColor")
        for css in ("h0", "h8")
    )
    assert never != always
    opened.close()


@pytest.mark.parametrize("kind", ["hostile plan", "hostile run"])
def test_pages_let_hostile_names_do_nothing(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    opened = Opened(browser, pages[kind])
    assert opened.page.text_content("h1") == HOSTILE_NAMES[0]
    shown = opened.page.text_content("main") or ""
    for name in HOSTILE_NAMES[1:4]:
        assert printable(name) in shown
    assert opened.page.locator("img, script").count() == 0
    assert opened.page.evaluate("window.harmed") is None
    opened.close()
