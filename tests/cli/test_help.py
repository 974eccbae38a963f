"""Every command explains itself, with an example that parses."""

from __future__ import annotations

import pytest
from cli_helpers import done

from medyate_planner import __version__
from medyate_planner.cli import COMMANDS, build_app


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
