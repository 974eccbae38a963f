"""A new user's mistakes: the exit code, one line on stderr, and in it what to do. What of them is fine after all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import BATCH, MODEL, assert_one_line, cli, done, environment, snapshot, write_images
from mistakes import MISTAKES, PLAN, TRAIN, Mistake, prepare

from medyate_planner.errors import closest, did_you_mean, unknown_name
from medyate_planner.files import nearby

WORDS = ("stem.0", "stem.*", "blocks.*", "blocks.0.*", "fc")
REPORT = Path(__file__).resolve().parents[2] / "reports" / "mistakes.md"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder in which all mistakes can be made."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as working directory."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.title for mistake in MISTAKES])
def test_mistake_is_one_line_that_says_what_to_do(folder: Path, mistake: Mistake) -> None:
    before = snapshot(folder)
    with mistake.world():
        result = cli(*mistake.command)
    assert result.code == mistake.code, result.err
    assert result.out == ""
    line = assert_one_line(result, *mistake.words)
    assert len(line) < 500
    if "new" not in mistake.command:  # a training that was begun leaves its folder
        assert snapshot(folder) == before


def test_the_report_lists_these_mistakes() -> None:
    listed = REPORT.read_text(encoding="utf-8")
    assert [m.title for m in MISTAKES if f"| {m.title} |" not in listed] == []


def test_a_disk_that_fills_up_while_training_leaves_a_run_to_go_on_with(folder: Path) -> None:
    whole = next(m for m in MISTAKES if m.title == "disk full at the last byte")
    done(*TRAIN, "new")
    expected = (folder / "new" / "model.safetensors").read_bytes()
    with whole.world():
        assert cli(*TRAIN, "again").code == 2
    assert not list((folder / "again").glob(".*.part"))
    done(*TRAIN, "again")
    assert (folder / "again" / "model.safetensors").read_bytes() == expected


def test_grey_pictures_in_files_are_read_in_colour(folder: Path) -> None:
    write_images(folder / "grey", train=4, test=1, mode="L")
    done("rank", MODEL, *BATCH, "--data", "imagefolder:grey", "-o", "grey.safetensors")


def test_resuming_a_complete_run_says_that_it_is_complete(folder: Path) -> None:
    before = snapshot(folder / "run")
    result = done(*TRAIN, "run", "--resume")
    assert "the run is complete already: 2 of 2 epochs are done" in result.err
    assert snapshot(folder / "run") == before


def test_a_full_stdout_is_one_line() -> None:
    command = [sys.executable, "-m", "medyate_planner", "schema", "plan"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=600, check=False
        )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "medyate: the output can not be written: No space left on device; make room, or send it elsewhere"
    ]


def test_a_device_is_not_replaced_by_a_file() -> None:
    assert cli(*PLAN, "--budget", "40kB", "-o", "/dev/null", "--force").code == 2
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("name", "near"),
    [("stm.0", "stem.0"), ("STEM.0", "stem.0"), ("blok*", "blocks.*"), ("bloks.0.*", "blocks.0.*")],
)
def test_closest_finds_what_was_meant(name: str, near: str) -> None:
    assert closest(name, WORDS)[0] == near


def test_nothing_near_suggests_nothing() -> None:
    assert closest("xylophone", WORDS) == ()
    assert did_you_mean("xylophone", WORDS) == ""


def test_unknown_name_says_all_choices() -> None:
    assert unknown_name("--norm", "trian", ("frozen", "train")).message == (
        "--norm 'trian' is unknown; did you mean train? choose frozen or train"
    )
    assert unknown_name("--x", "q", ("aa", "bb", "cc")).message == "--x 'q' is unknown; choose one of aa, bb, cc"


def test_nearby_looks_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    assert nearby(tmp_path / "plam.json") == f"; did you mean {tmp_path / 'plan.json'}?"
    assert nearby(tmp_path / "none" / "plan.json") == ""
    assert nearby(tmp_path / "weights.pt") == ""
