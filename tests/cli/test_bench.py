"""`medyate bench`: a small matrix on the command line, stopped and resumed, with what came out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_helpers import assert_refused, cli, done, environment, write_images, write_sources

from medyate_planner.bench.jobs import STAGES, jobs_of
from medyate_planner.bench.matrix import Matrix, read_matrix
from medyate_planner.bench.records import Records, best_rate
from medyate_planner.bench.work import is_diverged, perform

MATRIX = """
name = "tiny"
batch_size = 4
seeds = [0, 1]
warm_head_epochs = 1

[[networks]]
name = "tiny"
spec = "tiny.py:factory"

[[tasks]]
name = "pictures"
data = "imagefolder:data"
epochs = 2

[[budgets]]
name = "small"
amount = "30kB"

[[budgets]]
name = "large"
amount = "40kB"

[families.planned]
rates = [0.02, 0.05]
chosen_by = "optimal"
budget = "large"

[families.full]
rates = [0.01]
chosen_by = "full"

[[contenders]]
name = "optimal"

[[contenders]]
name = "static"
sampling = { method = "static" }

[[contenders]]
name = "head-only"
strategy = "head-only"

[[contenders]]
name = "full"
kind = "full"
family = "full"

[[claims]]
text = "drawing anew helps"
pairs = [["optimal", "static"]]

[[headlines]]
contender = "optimal"
budget = "large"
aim = 0.5
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_sources(folder)
    write_images(folder / "data")
    (folder / "matrix.toml").write_text(MATRIX)
    return folder


@pytest.fixture
def folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def results(out: Path) -> dict[str, Any]:
    """What a result is apart from time, by job."""
    return {
        record["job"]: {key: value for key, value in record.items() if "seconds" not in key} for record in lines(out)
    }


def test_a_matrix_is_run_once_and_measured(folder: Path) -> None:
    result = done("bench", "matrix.toml", "--out", "whole", "--json").json
    matrix = read_matrix(folder / "matrix.toml")
    counts = {stage: len(list(jobs_of(matrix, stage))) for stage in STAGES}
    assert counts == {"rank": 3, "tune": 2, "run": 2 * (2 * 2 + 2)}
    assert len(lines(folder / "whole")) == sum(counts.values())
    jsonschema.validate(result, done("schema", "bench").json)
    schema = done("schema", "results").json
    for line in lines(folder / "whole"):
        jsonschema.validate(line, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**line, "unknown": 1}, schema)
    runs = result["runs"]
    assert [run["job"] for run in runs] == [job.name for job in jobs_of(matrix, "run")]
    limits = {"small": 30_000, "large": 40_000}
    for run in runs:
        assert run["failure"] if run.get("failure") else len(run["accuracies"]) == 2
        if run["budget"] is not None:
            assert 0 < run["training_bytes"] <= run["budget_bytes"] == limits[run["budget"]]
    full = [run for run in runs if run["contender"] == "full"]
    assert min(run["training_bytes"] for run in full) > 40_000
    static = [run for run in runs if run["contender"] == "static"]
    drawn = [run for run in runs if run["contender"] == "optimal"]
    for one, other in zip(static, drawn, strict=True):
        assert one["training_bytes"] == other["training_bytes"]
        assert one["coverage"] <= other["coverage"]
    tuned = [record for record in lines(folder / "whole") if record["stage"] == "tune"]
    best = max(tuned, key=lambda record: (record["accuracy"], -record["rate"]))
    assert {run["rate"] for run in runs if run["contender"] != "full"} == {best["rate"]}
    assert {run["rate"] for run in full} == {0.01}
    shown = done("bench", "matrix.toml", "--out", "whole", "--report-only")
    assert "run: 12 of 12 done" in shown.err
    page, text = ((folder / "whole" / name).read_text() for name in ("report.html", "report.md"))
    for words in ("12 of 12 trainings are done", "drawing anew helps", "optimal with budget large reaches"):
        assert words in page
        assert words in text
    assert (folder / "whole" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert done("show", "whole", "--html").out == page
    assert done("show", "whole", "--json").json == result
    assert done("show", "whole").out == shown.out
    done("show", "whole", "-o", "whole.svg")
    assert "<svg" in (folder / "whole.svg").read_text()
    for title in ("tiny on pictures", "Over all networks and tasks", "optimal less the others"):
        assert title in shown.out
    assert len(lines(folder / "whole")) == sum(counts.values())


def test_what_was_killed_goes_on_and_ends_the_same(folder: Path) -> None:
    """In two processes, killed after some results; the last line is cut off, as by a loss of power."""
    out = folder / "killed"
    command = [sys.executable, "-m", "medyate_planner", "bench", "matrix.toml", "--out", "killed", "--processes", "2"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (out / "results.jsonl").exists() or len((out / "results.jsonl").read_bytes().splitlines()) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    import os

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    file = out / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    before = len(file.read_bytes().splitlines()) - 1
    done("bench", "matrix.toml", "--out", "killed", "--json")
    if not (folder / "whole").exists():
        done("bench", "matrix.toml", "--out", "whole", "--json")
    whole = results(folder / "whole")
    readable = {}
    for line in file.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        readable[record["job"]] = {key: value for key, value in record.items() if "seconds" not in key}
    assert before >= 5
    assert readable == whole


@pytest.mark.parametrize("missing", ["peft", "scipy"])
def test_a_missing_package_is_told_before_the_first_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    adapters = '[[contenders]]\nname = "lora"\nkind = "lora"\nbudgets = ["large"]\n\n[[claims]]'
    (folder / "adapters.toml").write_text(MATRIX.replace("[[claims]]", adapters))
    monkeypatch.setitem(sys.modules, missing, None)
    refused = cli("bench", "adapters.toml", "--out", "adapters")
    last = refused.err.splitlines()[-1]
    assert refused.code == 2
    assert f"{missing}; install it with: pip install 'medyate-planner[bench]'" in last
    assert not (folder / "adapters" / "results.jsonl").exists()


@pytest.mark.parametrize("contender", ["optimal", "full"])
def test_a_run_that_diverges_is_done_again_at_the_next_lower_rate(folder: Path, tmp_path: Path, contender: str) -> None:
    text = MATRIX.replace("[0.02, 0.05]", "[0.02, 1e6, 1e9]").replace("[0.01]", "[0.02, 1e6, 1e9]")
    (folder / "steep.toml").write_text(text.replace("seeds = [0, 1]", "seeds = [0]"))
    matrix = read_matrix(folder / "steep.toml")
    ranked = next(job for job in jobs_of(matrix, "rank") if job.seed == 0)
    assert "diverged" not in perform(matrix, ranked, tmp_path, None)
    job = next(job for job in jobs_of(matrix, "run") if job.contender == contender)
    steep, flat = perform(matrix, job, tmp_path, 1e9), perform(matrix, job, tmp_path, 0.02)
    assert (steep["rate"], steep["diverged_rates"]) == (0.02, [1e9, 1e6])
    assert "diverged_rates" not in flat
    assert steep["accuracies"] == flat["accuracies"]
    assert steep["train_losses"] == flat["train_losses"]
    tried = next(job for job in jobs_of(matrix, "tune") if job.contender == contender and job.rate == 1e6)
    perform(matrix, next(job for job in jobs_of(matrix, "rank") if job.seed == tried.seed), tmp_path, None)
    assert perform(matrix, tried, tmp_path, 1e6)["rate"] == 1e6  # what is tried is not replaced


def test_diverged_is_no_better_than_a_guess() -> None:
    assert is_diverged([0.5, None], 10)
    assert is_diverged([30.0, 2.303], 10)
    assert is_diverged([30.0, 2.26], 10)
    assert not is_diverged([30.0, 2.25], 10)
    assert not is_diverged([0.5, 0.67], 2)
    assert is_diverged([0.5, 0.68], 2)
    assert not is_diverged([0.5, 7.0], None)
    assert not is_diverged([], 10)


def test_a_damaged_matrix_is_told_in_one_line(folder: Path) -> None:
    done("bench", "matrix.toml", "--out", "damaged", "--report-only")
    file = folder / "damaged" / "matrix.json"
    text = file.read_text()
    for old, new, words in (
        ('"schema_version": 1', '"schema_version": 2', ("schema version 2", "expected 1")),
        ('"networks"', '"nets"', ("not what `medyate bench` writes",)),
        ("{", "", ("not what `medyate bench` writes",)),
    ):
        file.write_text(text.replace(old, new, 1))
        assert_refused(folder, ["show", "damaged"], "matrix.json", *words)
    file.write_text(text)
    assert_refused(folder, ["show", "damaged", "-o", "none.png"], "no chart yet")


def test_nothing_is_started_for_a_report_alone(folder: Path) -> None:
    shown = done("bench", "matrix.toml", "--out", "nothing", "--report-only")
    assert "0 of 12 trainings are done" in (folder / "nothing" / "report.md").read_text()
    assert not (folder / "nothing" / "results.jsonl").exists()
    assert "run: 0 of 12 done" in shown.err


def test_no_worker_outlives_its_parent(folder: Path) -> None:
    command = [sys.executable, "-m", "medyate_planner", "bench", "matrix.toml", "--out", "orphans", "--processes", "2"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(workers := children(process.pid)) < 2 or not (folder / "orphans" / "results.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Process numbers, from Linux's /proc."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(number) for number in listed.read_text().split()] if listed.exists() else []


def is_running(pid: int) -> bool:
    """Not ended, nor only waiting to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_change_of_the_matrix_does_again_what_it_touches(folder: Path, tmp_path: Path) -> None:
    matrix = read_matrix(folder / "matrix.toml")
    records = Records(tmp_path)
    for stage in STAGES:
        for job in jobs_of(matrix, stage):
            record = {"job": job.name, "digest": records_digest(matrix, job), "accuracy": 0.5, "rate": job.rate}
            records.add(record)
    again = Records(tmp_path)
    assert [again.missing(matrix, stage) for stage in STAGES] == [[], [], []]
    other = MATRIX.replace('amount = "30kB"', 'amount = "31kB"')
    (tmp_path / "other.toml").write_text(other)
    changed = read_matrix(tmp_path / "other.toml")
    missing = {job.name for stage in STAGES for job in again.missing(changed, stage)}
    assert missing == {f"run/tiny/pictures/{name}/small/{seed}" for name in ("optimal", "static") for seed in (0, 1)}
    run = next(job for job in jobs_of(matrix, "run") if job.contender == "static")
    assert best_rate(matrix, again, run) == 0.02  # ties go to the smaller


def records_digest(matrix: Matrix, job: Any) -> str:
    from medyate_planner.bench.jobs import digest_of

    return digest_of(matrix, job)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('strategy = "head-only"', 'strategy = "heads-only"', ("'heads-only' is unknown", "head-only")),
        ('family = "full"', 'family = "fully"', ("contender full", "'fully'")),
        ('chosen_by = "optimal"\nbudget = "large"', 'chosen_by = "optimal"', ("family planned", "budget")),
        ('amount = "30kB"', 'amount = "30 apples"', ("budget small", "apples")),
        ('amount = "30kB"', "", ("budget small", "expected amount, or of_full, or schemes and scheme")),
        ('chosen_by = "optimal"', 'chosen_by = "full"', ("family planned", "'full'")),
        ("epochs = 2", "epochs = 0", ("tasks.0.epochs", "greater than or equal to 1")),
        ("epochs = 2", "epoch = 2", ("tasks.0",)),
        ('amount = "30kB"', "of_full = 2", ("budgets.0.of_full", "less than or equal to 1")),
        ('["optimal", "static"]', '["optimal", "statics"]', ("claim", "'statics' is not among contenders")),
        ("aim = 0.5", "aim = 0", ("headlines.0.aim", "greater than 0")),
        ('kind = "full"', 'kind = "fully"', ("contenders.3.kind",)),
        ('name = "large"', 'name = "small"', ("budgets: a name is given twice",)),
        ("seeds = [0, 1]", "seeds = [0, 1000]", ("tuning_seed",)),
        ("seeds = [0, 1]", "seeds = [0, 1", ("not a TOML file",)),
        ("imagefolder:data", "imagefolder:$NOT_SET_HERE", ("task pictures", "environment variable is not set")),
    ],
)
def test_a_wrong_matrix_is_told_in_one_line(folder: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in MATRIX
    (folder / "wrong.toml").write_text(MATRIX.replace(old, new))
    assert_refused(folder, ["bench", "wrong.toml", "--out", "none"], "wrong.toml" if "$" not in new else "task", *words)


def test_a_matrix_that_is_not_there(folder: Path) -> None:
    assert_refused(folder, ["bench", "nothing.toml"], "nothing.toml")
    assert cli("bench", "matrix.toml", "--out", "none", "--processes", "0").code == 2
