"""The README tells the truth: its Python runs, its commands exist, its table is what the demo printed."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from medyate_planner.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_block_runs() -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 8
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_two_commands_and_ci_runs_the_tests() -> None:
    first, demo, tests = blocks("sh")
    assert first.splitlines()[0] == "pip install '.[demo]'"
    assert len(first.splitlines()) == 2
    assert demo.strip() == "medyate demo"
    install, run = tests.strip().split(" && ")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert run in ci
    assert [line for line in ci if line.startswith("pip install")] == [install.replace("install", "install -q")]


def test_the_first_command_draws_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    command, shown = blocks("sh")[0].splitlines()[1], blocks("text")[0]
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(shlex.split(command)[1:]) == 0
    printed = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    assert len(shown.splitlines()) > 15
    assert shown.rstrip() in printed


def test_the_table_is_what_the_demo_printed() -> None:
    table = blocks("text")[1]
    printed = (ROOT / "reports" / "demo.txt").read_text(encoding="utf-8")
    rows = [line.rstrip() for line in table.strip().splitlines()]
    assert len(rows) >= 4
    assert "\n".join(rows) in "\n".join(line.rstrip() for line in printed.splitlines())


def test_the_sign_digits_figures_are_those_of_the_report() -> None:
    printed = (ROOT / "reports" / "sign_digits.txt").read_text(encoding="utf-8")
    last = re.findall(r"^ +3 +\S+ +(0\.\d+) +([\d,]+)", printed, flags=re.MULTILINE)
    claimed = re.search(r"test accuracy of ([\d.]+), ([\d.]+) and ([\d.]+)", " ".join(README.split()))
    assert claimed is not None
    assert [f"{float(accuracy):.3f}" for accuracy, _ in last] == list(claimed.groups())
    assert all(int(measured.replace(",", "")) <= 512_000 for _, measured in last)


@pytest.mark.assets
def test_the_saved_bytes_of_full_fine_tuning_are_the_reports() -> None:
    from networks import subject

    from medyate_planner import report

    assert f"{report(subject('mcunet-5fps', 8)).full.saved_bytes:,} B" in README


def test_the_architectures_are_as_exact_as_the_readme_says() -> None:
    printed = (ROOT / "reports" / "architectures.txt").read_text(encoding="utf-8")
    (full_exact, full_all), (plan_exact, plan_all) = (
        (int(exact), int(every))
        for exact, every in re.findall(r"^(\d+) of (\d+) architectures exact", printed, re.MULTILINE)
    )
    claimed = re.search(r"On (\d+) of (\d+) architectures of torchvision", README)
    assert claimed is not None
    assert [int(number) for number in claimed.groups()] == [full_exact, full_all]
    assert full_all >= 60
    assert full_exact >= 0.95 * full_all
    assert plan_exact == plan_all >= 20
    rows = [line.replace(",", "").split() for line in printed.splitlines() if re.match(r"\w+:\S+ +\d", line)]
    assert len(rows) == 2 * full_all + plan_all
    inexact = {row[0] for row in rows if row[2] != row[3] or row[4] != row[5] or row[6] != "0"}
    assert len(inexact) == full_all - full_exact


def test_the_planner_is_as_good_as_the_readme_says() -> None:
    printed = (ROOT / "reports" / "planner.txt").read_text(encoding="utf-8")
    claimed = re.search(r"up to ([\d.]+)% above the one and ([\d.]+)% above the other", README)
    assert claimed is not None
    for other, largest in zip(("greedy", "evolutionary"), claimed.groups(), strict=True):
        margins = re.findall(rf"above {other}: ([+-][\d.]+)% to \+([\d.]+)%, .*; below it in (\d+)", printed)
        assert len(margins) == 3
        assert all(below == "0" for _, _, below in margins)
        assert f"{max(float(high) for _, high, _ in margins):.1f}" == largest


def test_the_budgets_are_met_as_the_readme_says() -> None:
    printed = (ROOT / "reports" / "budgets_met.txt").read_text(encoding="utf-8")
    claimed = re.search(r"(\d+) of (\d+) plans for seven networks", README)
    assert claimed is not None
    met, every = claimed.groups()
    assert f"{met} of {every} met as predicted, in the dry run and as measured" in printed
    assert met == every


def test_step_times_and_saved_bytes_are_those_of_the_report() -> None:
    report = (ROOT / "reports" / "step_time.txt").read_text(encoding="utf-8")
    times = re.findall(r"\(a\) full fine-tuning +[\d.]+ \([^)]*\) +[\d.]+ +([\d.]+) \(", report)
    saved = re.findall(r"\(a\) full fine-tuning +[\d,]{6,} +([\d.]+) ", report)
    text = " ".join(README.split())
    assert f"takes {times[0]} of the time of full fine-tuning on mcunet-5fps and {times[2]} on mbv2-w0.35" in text
    assert f"saves {saved[0]} and {saved[2]} times fewer bytes; planned for 512 kB, {saved[4]} times fewer" in text


def test_the_comparison_says_what_its_report_says() -> None:
    report = (ROOT / "reports" / "bench" / "mobile" / "report.md").read_text(encoding="utf-8")
    found = re.findall(r"budget \S+ reaches (\S+%) of full fine-tuning's accuracy in (\S+%)", report)
    words = (
        r"reaches (\S+%) of full fine-tuning's accuracy in (\S+%) of its measured training memory, and (\S+%) in (\S+%)"
    )
    claimed = re.search(words, " ".join(README.split()))
    assert claimed is not None
    assert list(zip(claimed.groups()[::2], claimed.groups()[1::2], strict=True)) == found[:2]
    assert "figures will change" not in report


@pytest.mark.parametrize(
    ("contender", "words"),
    [
        ("trady", "above TraDy"),
        ("lara-medyate", "above LaRa with MeDyate"),
        ("optimal-norm", "above its own objective norm"),
        ("optimal-energy", "above energy"),
        ("optimal-by-raw", "above its own metric raw"),
        ("optimal-by-rgn", "above RGN"),
        ("optimal-by-lara", "above LaRa as metric"),
        ("optimal-static", "below the same channels drawn once"),
        ("optimal-drawn-weighted", "above weighted draws"),
        ("sparse-update", "below the published schemes of Sparse Update"),
    ],
)
def test_the_default_is_as_far_from_the_others_as_the_readme_says(contender: str, words: str) -> None:
    report = (ROOT / "reports" / "bench" / "mobile" / "report.md").read_text(encoding="utf-8")
    against = report.split("## optimal against the others")[1].split("## ")[0]
    row = re.search(rf"^\| {contender} \| \d+ \| ([+-])(0\.\d+) \|", against, re.MULTILINE)
    claimed = re.search(rf"(0\.\d{{4}}) {words}", " ".join(README.split()))
    assert row is not None
    assert claimed is not None
    assert row.groups() == ("+" if words.startswith("above") else "-", claimed[1])


def test_the_medium_budget_is_as_the_readme_says() -> None:
    report = (ROOT / "reports" / "bench" / "mobile" / "report.md").read_text(encoding="utf-8")
    claimed = re.search(
        r"at the medium budget they reach (\S+) of .{0,40}accuracy, ours (\S+)\)", " ".join(README.split())
    )
    assert claimed is not None
    for contender, share in zip(("sparse-update", "optimal"), claimed.groups(), strict=True):
        row = re.search(rf"^\| {contender} \|.*$", report, re.MULTILINE)
        assert row is not None
        assert row[0].split("|")[5].split()[0] == share


def test_the_tightest_budget_is_as_the_readme_says() -> None:
    report = (ROOT / "reports" / "bench" / "mobile" / "report.md").read_text(encoding="utf-8")
    claimed = re.search(
        r"tightest budget, 0.40%, `--metric raw` is better: (\S+)\. All (\S+) trainings", " ".join(README.split())
    )
    row = re.search(r"^\| optimal-by-raw \|.*$", report, re.MULTILINE)
    assert claimed is not None
    assert row is not None
    assert row[0].split("|")[2].split()[0] == claimed[1]
    assert f"{claimed[2]} of {claimed[2]} trainings are done" in report


@pytest.mark.parametrize("line", re.findall(r"`(medyate [^`]+)`", README))
def test_every_command_that_is_named_exists(line: str) -> None:
    from medyate_planner.cli import build_app

    words = shlex.split(line)[1:]
    assert words[0] in (*COMMANDS, "--help", "--install-completion")
    if len(words) > 1:
        _, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
        assert bound.arguments
