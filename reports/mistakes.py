"""What a new user's mistakes print: each is really made on the command line, in a folder with a small network.

    python reports/mistakes.py > reports/mistakes.md           (about two minutes, one thread)

The mistakes, and the worlds they are made in (a full disk, a package that is not installed, Ctrl-C), are those of
tests/cli/mistakes.py, which tests/cli/test_mistakes.py holds to their exit codes and words.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / name) for name in ("", "cli")]
HEAD = """# Mistakes, and the line each prints

Made by `python reports/mistakes.py`; every command was run. `tiny.py` is a network of five layers for 3x16x16.
The line is all there is on stderr, but for lines of progress (model, data, importance) where work had begun; with
`--json` it is an object on stdout, with `--debug` a traceback.

| mistake | command | exit | the line |
|---|---|---|---|"""


def main() -> int:
    """Print the table; returns 1 if a mistake is not answered with one line and its exit code."""
    import torch
    from cli_helpers import PROGRESS, cli
    from mistakes import MISTAKES, prepare
    from third_party import import_timm

    torch.set_num_threads(1)
    import_timm()
    wrong = 0
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder))
        for mistake in MISTAKES:
            with mistake.world():
                result = cli(*mistake.command)
            lines = [line for line in result.err.splitlines() if not PROGRESS.match(line)]
            wrong += result.code != mistake.code or len(lines) != 1
            command = "medyate " + " ".join(map(str, mistake.command))
            text = " ".join(lines).removeprefix("medyate: ").replace(folder, "/here")
            cells = (
                mistake.title,
                f"`{command}`",
                str(result.code),
                text,
            )
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |", flush=True)
        os.chdir("/")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
