"""The guides tell the truth: every example runs in order, prints what they show, and every link leads somewhere.

The conventions are those that docs/README.md states.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import medyate_planner
from medyate_planner.cli import COMMANDS, main
from medyate_planner.planning.plan import Plan, Predicted

ROOT = Path(__file__).resolve().parents[1]
GUIDES = tuple(sorted((ROOT / "docs").glob("*.md")))
LEFT_OUT = "…"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|toml))\n")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
SHELL = re.compile(r"[|;&<>$`*?~]")  # what only a shell could do, which medyate's lines go without
COLUMNS = 100
VARIES = (  # measured on a machine, or by its clock
    (r"\b\d+\.\d+ s\b", "# s"),
    (r"\bloss \d+\.\d+", "loss #"),
    (r"\baccuracy \d\.\d+", "accuracy #"),
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, and whether nothing but blank lines stands between it and the one before."""

    language: str
    text: str
    line: int
    follows: bool


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks, in order."""
    found, end = [], -1
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        follows = end >= 0 and not text[end : match.start()].strip()
        found.append(Block(language=match[1], text=match[2], line=line, follows=follows))
        end = match.end()
    return found


def shown(text: str) -> list[str]:
    """Lines as they are compared: without spaces at the end, empty lines and what varies from machine to machine."""
    for pattern, neutral in VARIES:
        text = re.sub(pattern, neutral, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def agrees(expected: str, printed: str) -> bool:
    """Whether that was printed. A line … stands for any lines, a … within a line for any characters."""
    pattern = [
        r"(?:.*\n)*?" if line == LEFT_OUT else ".+".join(map(re.escape, line.split(LEFT_OUT))) + r"\n"
        for line in shown(expected)
    ]
    return re.fullmatch("".join(pattern), "".join(f"{line}\n" for line in shown(printed))) is not None


class Reader:
    """Somebody who follows a guide in an empty folder: writes its files, runs its Python and its commands."""

    def __init__(self, guide: Path) -> None:
        self.guide = guide
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed: str | None = None

    def follow(self) -> int:
        """Do everything the guide says; returns how many examples ran."""
        blocks = blocks_of(self.guide.read_text(encoding="utf-8"))
        actions = {"python": self._python, "toml": self._file, "sh": self._commands, "text": self._compare}
        for block in blocks:
            where = f"{self.guide.name}, line {block.line}"
            assert block.language in actions, f"{where}: expected python, toml, sh or text, got {block.language!r}"
            actions[block.language](block, where)
        return sum(block.language != "text" for block in blocks)

    def _file(self, block: Block, where: str) -> None:
        name = FILE_NAME.match(block.text)
        assert name is not None, f"{where}: expected a comment with the file's name in the first line"
        Path(name[1]).write_text(block.text, encoding="utf-8")
        self.printed = None

    def _python(self, block: Block, where: str) -> None:
        if FILE_NAME.match(block.text):
            self._file(block, where)
            return
        out = io.StringIO()
        code = compile("\n" * block.line + block.text, str(self.guide), "exec")
        with redirect_stdout(out):
            exec(code, self.namespace)
        self.printed = out.getvalue()

    def _commands(self, block: Block, where: str) -> None:
        self.printed = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition("  # ")
            expected = re.search(r"exit code (\d+)", comment)
            code, text = run(command)
            assert code == (int(expected[1]) if expected else 0), f"{where}: {command}: exit code {code}\n{text}"
            self.printed += text

    def _compare(self, block: Block, where: str) -> None:
        assert block.follows, f"{where}: a block of text belongs right after what prints it"
        assert self.printed is not None, f"{where}: the block before prints nothing"
        assert agrees(block.text, self.printed), f"{where}: this is shown\n{block.text}\nprinted was\n{self.printed}"


def run(command: str) -> tuple[int, str]:
    """Exit code and all output of a command; ours run in this process, which has imported torch already."""
    words = shlex.split(command)
    if words[0] != "medyate":
        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.returncode, done.stdout
    assert not SHELL.search(QUOTED.sub("", command)), f"{command}: write it without a shell's signs"
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(words[1:])
    return code, out.getvalue()


@pytest.mark.parametrize(
    ("expected", "printed", "is_it"),
    [
        ("a 1\n\nb", "a 1  \nb\n", True), ("a 1", "a 2", False), ("a", "a\nb", False), ("a\nb", "a", False),
        ("a\n…", "a\nb\nc", True), ("…\nc", "a\nb\nc", True), ("…\nb", "a\nb\nc", False), ("a\n…\nc", "a\nc", True),
        ("a\n…\nd", "a\nb\nc", False), ("used … B", "used 12 B", True), ("used … B", "used 12 kB", False),
        ("3.1 s, loss 0.5", "0.2 s, loss 1.25", True), ("3.1 B", "3.2 B", False),
    ],
)  # fmt: skip
def test_what_is_shown_is_compared_with_what_is_printed(expected: str, printed: str, is_it: bool) -> None:
    assert agrees(expected, printed) is is_it


def test_there_are_guides() -> None:
    assert {"README.md", "add-a-strategy.md"} <= {guide.name for guide in GUIDES}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_example_runs_and_prints_what_is_shown(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            assert Reader(guide).follow() >= 1, f"{guide.name} has no example"
        finally:
            for name, module in list(sys.modules.items()):  # another guide may have a file of the same name
                if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
                    del sys.modules[name]


def anchors_of(text: str) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_link_leads_somewhere(guide: Path) -> None:
    text = FENCE.sub("", guide.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links, f"{guide.name} leads nowhere"
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (guide.parent / path).resolve() if path else guide
        assert target.exists(), f"{guide.name}: {link}"
        assert target.is_relative_to(ROOT), f"{guide.name}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{guide.name}: {link}"


def test_the_index_names_every_guide() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert named == {guide.name for guide in GUIDES} - {"README.md"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_name_of_the_package_exists(guide: Path) -> None:
    groups = {path.stem for path in Path(medyate_planner.__file__).parent.iterdir()}
    text = FENCE.sub("", guide.read_text(encoding="utf-8"))
    for dotted in re.findall(r"`(\w+(?:\.\w+)+)", text):
        if dotted.partition(".")[0] in groups and not dotted.endswith((".py", ".json")):
            assert _found(dotted) is not None, f"{guide.name}: there is no {dotted}"


def _found(dotted: str) -> Any:
    found: Any = medyate_planner
    for part in dotted.split("."):
        if not hasattr(found, part) and not isinstance(found, type):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def test_every_key_of_a_plan_is_explained() -> None:
    plan = (ROOT / "docs" / "read-a-plan.md").read_text(encoding="utf-8")
    counted = (ROOT / "docs" / "what-is-counted.md").read_text(encoding="utf-8")
    assert [key for key in Plan.model_fields if f"`{key}`" not in plan] == []
    assert [key for key in Predicted.model_fields if f"`{key}`" not in counted] == []


def test_every_option_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    known = "--help "
    for command in COMMANDS:
        main([command, "--help"])
        known += capsys.readouterr().out
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
            assert re.search(rf"{option}(?![\w-])", known), f"{guide.name}: no command has {option}"
