"""Every command explains itself on one screen, with an example that works as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_helpers import done, write_images

from medyate_planner import __version__
from medyate_planner.cli import COMMANDS, build_app

SCREEN_LINES = 50
SLOW = {"demo": pytest.mark.slow, "bench": pytest.mark.slow}
READ_BY = {"plan": ("show", "verify", "train", "export"), "train": ("export",)}  # what an example writes


def example_of(text: str) -> str:
    """The example in a help text; folded lines are joined."""
    assert text.count("Example:") == 1
    return " ".join(text.partition("Example:")[2].split("\n\n")[0].split("╭")[0].split())


def parses(tokens: list[str]) -> bool:
    """Say whether the command line takes these arguments."""
    build_app().parse_args(tokens, exit_on_error=False, print_error=False)
    return True


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_with_0_and_has_one_example(command: str) -> None:
    result = done(command, "--help")
    assert result.err == ""
    assert example_of(result.out).startswith(f"medyate {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_example_parses(command: str) -> None:
    assert parses(example_of(done(command, "--help").out).split()[1:])


def test_train_takes_out_as_the_design_says() -> None:
    assert parses(["train", "plan.json", "--data", "npz:x.npz", "--epochs", "1", "--out", "run"])


def test_mean_and_std_take_their_numbers_in_a_row() -> None:
    assert parses(["rank", "m.py:f", "--data", "npz:x.npz", "--mean", "0.5", "0.5", "0.5", "--std", "1", "1", "1"])


def test_help_describes_every_option() -> None:
    for command in COMMANDS:
        app = build_app()[command]
        for argument in app.assemble_argument_collection(parse_docstring=True):
            if argument.parse and not argument.children and argument.name not in ("--help", "--version"):
                assert argument.parameter.help, f"{command} {argument.name}"


def test_help_names_all_commands() -> None:
    result = done("--help")
    assert all(f" {command} " in result.out for command in COMMANDS)


def test_help_describes_all_commands() -> None:
    listed = [line.strip(" │").split() for line in done("--help").out.splitlines() if line.startswith("│")]
    described = {words[0] for words in listed if len(words) > 2}
    assert set(COMMANDS) <= described


def test_help_of_the_program_has_an_example() -> None:
    assert parses(example_of(done("--help").out).split()[1:])


def test_no_arguments_show_the_help() -> None:
    assert done().out == done("--help").out


def test_version_is_the_package_version() -> None:
    assert done("--version").out.strip() == __version__


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert len(done(*command.split(), "--help").out.splitlines()) <= SCREEN_LINES


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_names_every_option_and_the_long_one_describes_it(command: str) -> None:
    short, every = done(command, "--help").out, done(command, "--help-all").out
    described = " ".join(every.replace("│", " ").split())
    for argument in build_app()[command].assemble_argument_collection(parse_docstring=True):
        if not (argument.parse and not argument.children and argument.name.startswith("--")):
            continue
        assert re.search(rf"{argument.name}\b", short), argument.name
        assert re.search(rf"{argument.name}\b", every), argument.name
        assert str(argument.parameter.help).replace("`", "").split(".")[0][:30] in described, argument.name
    assert ("--help-all" in short) == (len(every.splitlines()) > len(short.splitlines()))


def test_help_of_the_program_says_how_to_see_all_options_and_to_complete_them() -> None:
    out = done("--help").out
    assert "--help-all" in out
    assert "--install-completion" in out


def test_commands_are_listed_as_they_are_used() -> None:
    lines = [line.strip(" │").split() for line in done("--help").out.splitlines() if line.startswith("│ ")]
    assert [words[0] for words in lines if words and words[0] in COMMANDS] == list(COMMANDS)


MATRIX = """
name = "example"
batch_size = 8
seeds = [0]
warm_head_epochs = 1
networks = [{ name = "mcunet", spec = "mcunet-5fps", input_shape = [3, 32, 32] }]
tasks = [{ name = "photos", data = "imagefolder:photos", epochs = 1 }]
budgets = [{ name = "small", amount = "512kB" }]
contenders = [{ name = "optimal" }, { name = "head-only", strategy = "head-only" }]

[families.planned]
rates = [0.02]
chosen_by = "optimal"
budget = "small"
"""


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples presuppose: a folder of photographs, and a matrix for bench."""
    folder = tmp_path_factory.mktemp("examples")
    write_images(folder / "photos")
    (folder / "bench.toml").write_text(MATRIX)
    return folder


@pytest.mark.parametrize("command", ["", *(pytest.param(c, marks=SLOW.get(c, ())) for c in COMMANDS)])
def test_help_example_works_as_printed(command: str, example_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the pipeline, in one folder: what one example writes, a later one reads."""
    if command == "demo":
        pytest.importorskip("elpv_dataset")
    monkeypatch.chdir(example_folder)
    for needed, file in (("plan", "plan.json"), ("train", "run")):
        if command in READ_BY[needed] and not Path(file).exists():
            done(*shlex.split(example_of(done(needed, "--help").out))[1:])
    done(*shlex.split(example_of(done(*command.split(), "--help").out))[1:])
