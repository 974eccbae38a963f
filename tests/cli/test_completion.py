"""Shell completion: the scripts name our commands, bash really completes them, and installing puts one in place."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cli_helpers import assert_one_line, cli, done, module_cli

from medyate_planner.cli import COMMANDS

SHELLS = ("bash", "zsh", "fish")
TRY = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_medyate
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_commands_and_options(shell: str, tmp_path: Path) -> None:
    file = tmp_path / "completion"
    assert f"wrote {file}" in done("--install-completion", "--shell", shell, "-o", file).err
    script = file.read_text()
    assert [command for command in COMMANDS if command not in script] == []
    assert [option for option in ("budget", "strategy", "write-lp", "augment") if option not in script] == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_can_read(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done("--install-completion", "--shell", shell, "-o", tmp_path / "completion")
    read = subprocess.run([shell, "-n", str(tmp_path / "completion")], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("medyate", ""), COMMANDS),
        (("medyate", "ver"), ("verify",)),
        (("medyate", "plan", "--budg"), ("--budget", "--budgets")),
    ],
)
def test_bash_completes(typed: tuple[str, ...], offered: tuple[str, ...], tmp_path: Path) -> None:
    done("--install-completion", "--shell", "bash", "-o", tmp_path / "completion")
    command = ["bash", "--norc", "-c", TRY, "bash", str(tmp_path / "completion"), *typed]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(offered) <= set(result.stdout.split())
    if typed[-1]:
        assert set(result.stdout.split()) == set(offered)


def test_installing_writes_the_script_and_one_line_into_bashrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        result = module_cli("--install-completion", "--shell", "bash")
        assert result.code == 0, result.err
    place = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "medyate"
    assert f"wrote {place}" in result.err
    assert "verify" in place.read_text()
    assert (tmp_path / ".bashrc").read_text().count(str(place)) == 2  # one line: if it is there, read it


def test_an_unknown_shell_is_one_line() -> None:
    result = cli("--install-completion", "--shell", "bsh")
    assert result.code == 2
    assert_one_line(result, "did you mean bash?")


def test_a_shell_that_can_not_be_told_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import cyclopts.completion.detect as detect

    def unknown() -> str:
        raise detect.ShellDetectionError("none")

    monkeypatch.setattr(detect, "detect_shell", unknown)
    result = cli("--install-completion")
    assert result.code == 2
    assert_one_line(result, "--shell", "bash, zsh, fish")
