"""The committed benchmark: its report is what the command makes of its results, and no rate in it is chosen by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_helpers import done

from medyate_planner.bench.jobs import STAGES, jobs_of
from medyate_planner.bench.matrix import read_matrix
from medyate_planner.bench.records import Records, best_rate

ROOT = Path(__file__).resolve().parents[2]
NAME = "mobile"
RESULTS = ROOT / "reports" / "bench" / NAME


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report made again from results and matrix, in the same place of another folder."""
    folder = tmp_path_factory.mktemp("bench")
    reports = folder / "reports"
    (reports / "bench" / NAME).mkdir(parents=True)
    shutil.copy(RESULTS / "results.jsonl", reports / "bench" / NAME)
    shutil.copy(RESULTS.with_suffix(".toml"), reports / "bench")
    shutil.copy(ROOT / "reports" / "sparse_update_schemes.json", reports)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEDYATE_ASSETS", "assets")  # named in the matrix; a report reads no data
        done("bench", f"reports/bench/{NAME}.toml", "--out", f"reports/bench/{NAME}", "--report-only")
    return reports / "bench" / NAME


@pytest.mark.parametrize("file", ["report.md", "report.html"])
def test_the_report_is_what_the_command_makes_of_the_results(remade: Path, file: str) -> None:
    assert (remade / file).read_bytes() == (RESULTS / file).read_bytes()


def test_every_training_kept_its_budget_at_the_rate_of_its_family(
    remade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDYATE_ASSETS", "assets")
    matrix = read_matrix(RESULTS.with_suffix(".toml"))
    records = Records(remade)
    found = [(job, record) for job in jobs_of(matrix, "run") if (record := records.of(matrix, job)) is not None]
    assert [job.name for stage in STAGES for job in records.missing(matrix, stage)] == []
    for job, record in found:
        if record.get("failure"):
            continue
        tried = [*record.get("diverged_rates", []), record["rate"]]
        rates = sorted(matrix.families[matrix.named("contenders", str(job.contender)).family].rates, reverse=True)
        first = rates.index(best_rate(matrix, records, job))
        assert tried == rates[first : first + len(tried)]  # a lower one only where the loss said so
        if record.get("budget_bytes"):
            assert record["training_bytes"] <= record["budget_bytes"], job.name
