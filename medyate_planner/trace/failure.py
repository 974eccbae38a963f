"""Failures of other people's code in one line: what, and at which line of theirs."""

from __future__ import annotations

import logging
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
_MOST_CHARACTERS = 300


def cause_of(error: BaseException) -> str:
    """Kind and first line of an error, and the innermost line outside torch and this package that raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = textwrap.shorten(lines[0], _MOST_CHARACTERS, placeholder=" …") if lines else "no message"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_TORCH + "/", _OURS + "/", "<"))
    ]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name}" if frames else ""
    operator = getattr(error, "medyate_operator", None)
    return f"{type(error).__name__}{f' in {operator}' if operator else ''}{where}: {text}"


def name_operator(error: BaseException, operator: str) -> None:
    """Note which operator raised an error, the innermost if several ask."""
    if not hasattr(error, "medyate_operator"):
        error.medyate_operator = operator  # type: ignore[attr-defined]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch's own log from printing what is raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
