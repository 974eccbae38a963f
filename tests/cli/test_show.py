"""`medyate show` as a page and as a figure: to stdout and to files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import assert_refused, cli, done
from example_report import example_report
from example_run import batch, example_plan, network, write_run
from safetensors.torch import save_file

from medyate_planner import frontier

FILES = ("report.json", "frontier.json", "plan.json", "run")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file of each kind, as working directory."""
    monkeypatch.chdir(tmp_path)
    example_report().save(tmp_path / "report.json")
    frontier(network(), batch(), "30kB:300kB:4").save(tmp_path / "frontier.json")
    example_plan().save(tmp_path / "plan.json")
    write_run(tmp_path / "run")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_show_writes_pages_and_figures(folder: Path, file: str) -> None:
    printed = done("show", file, "--html")
    assert printed.out.startswith("<!DOCTYPE html>")
    assert printed.err == ""
    assert done("show", file, "--html", "-o", "page.html").out == ""
    assert Path("page.html").read_text() == printed.out
    for ending in ("html", "png", "svg"):
        result = done("show", file, "-o", f"drawn.{ending}")
        assert (result.out, result.err) == ("", f"wrote drawn.{ending}\n")
        first = Path(f"drawn.{ending}").read_bytes()
        done("show", file, "-o", f"drawn.{ending}", "--force")
        assert Path(f"drawn.{ending}").read_bytes() == first
    assert Path("drawn.html").read_text() == printed.out
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_show_of_a_page_is_the_export_of_the_command_that_made_it(folder: Path) -> None:
    example_report().save(folder / "own.html")
    done("show", "report.json", "-o", "shown.html")
    assert (folder / "own.html").read_bytes() == (folder / "shown.html").read_bytes()


def test_show_writes_a_page_and_prints_json(folder: Path) -> None:
    result = done("show", "plan.json", "--html", "-o", "page.html", "--json")
    assert result.json == json.loads((folder / "plan.json").read_text())
    assert (folder / "page.html").exists()


def test_show_of_a_run_prints_what_it_always_did(folder: Path) -> None:
    data = done("show", "run", "--json").json
    assert data.keys() == {"kind", "plan", "metrics"}
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert data["metrics"] == [json.loads(line) for line in lines]
    assert "measured against a budget of 60,000 B" in done("show", "run").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan.json", "-o", "plan.csv"), ("plan.csv", ".html, .png, .svg")),
        (("plan.json", "-o", "run"), ("run", "folder")),
        (("plan.json", "-o", "report.json"), ("report.json exists", "--force")),
        (("plan.json", "--html", "-o", "x.png"), ("x.png", ".html")),
        (("x.safetensors", "--html"), ("x.safetensors", "runs and benchmarks")),
        (("x.safetensors", "-o", "x.html"), ("x.safetensors", "runs and benchmarks")),
        (("none.json", "-o", "x.html"), ("none.json", "no such file")),
        (("--diff", "plan.json", "plan.json", "--html"), ("--diff", "--html")),
        (("--diff", "plan.json", "plan.json", "-o", "x.html"), ("--diff", "-o")),
    ],
)
def test_show_refuses(folder: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    if arguments[-1] == "--html":  # with --json it is refused for that
        result = cli("show", *arguments)
        assert result.code == 2
        assert all(word in result.err for word in words)
    else:
        assert_refused(folder, ("show", *arguments), *words)


def test_show_refuses_two_things_on_stdout(folder: Path) -> None:
    assert folder.exists()
    result = cli("show", "plan.json", "--html", "--json")
    assert result.code == 2
    assert "stdout" in result.json["message"]


@pytest.mark.parametrize("name", ["run/metrics.jsonl", "run/selections.jsonl"])
def test_show_of_a_run_that_was_changed_by_hand(folder: Path, name: str) -> None:
    with (folder / name).open("a") as stream:
        stream.write('{"epoch": 9, "train_loss": "high", "layers": 3}\n')
    assert_refused(folder, ("show", "run"), name, "line 4")
