"""What was typed and does not parse, in one line: what is wrong, and what comes near."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medyate_planner.errors import InputError, closest, did_you_mean

if TYPE_CHECKING:
    from cyclopts import CycloptsError

_KINDS = {int: "a whole number", float: "a number"}


def explain(error: CycloptsError, tokens: Sequence[str], commands: Sequence[str]) -> InputError:
    """The error of the parser as one of ours."""
    command = tokens[0] if tokens and tokens[0] in commands else None
    text = _unknown_command(error, commands) or _told(error, tokens, command or "medyate")
    return InputError(f"{text}; see `{'medyate' if command is None else f'medyate {command}'} --help`")


def _told(error: CycloptsError, tokens: Sequence[str], program: str) -> str:
    from cyclopts import CoercionError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        bare = {name.lstrip("-"): name for name in known}
        near = [bare[name] for name in closest(option.lstrip("-"), bare, count=1)]
        return f"{program} has no option {option}" + "".join(f"; did you mean {name}?" for name in near)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing(error, tokens, program)
    if isinstance(error, CoercionError) and error.token is not None and error.target_type in _KINDS:
        what = error.token.keyword or (error.argument.name if error.argument is not None else "value")
        return f"{what}: expected {_KINDS[error.target_type]}, got {error.token.value!r}"
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(map(repr, error.unused_tokens or ()))} is more than {program} takes"
    return " ".join(str(error).split()).rstrip(".") or "wrong usage"


def _unknown_command(error: CycloptsError, commands: Sequence[str]) -> str | None:
    from cyclopts import UnknownCommandError

    if not isinstance(error, UnknownCommandError) or not error.unused_tokens:
        return None
    word = error.unused_tokens[0]
    near = did_you_mean(word, commands, count=1)
    return f"there is no command {word!r}; {near}the commands are {', '.join(commands)}"


def _missing(error: object, tokens: Sequence[str], program: str) -> str:
    """An option without its value, or an argument that is not there at all."""
    argument = error.argument  # type: ignore[attr-defined]
    given = next((name for name in argument.names if name in tokens), None)
    if given is None:
        name = argument.name if argument.name.startswith("-") else argument.name.upper()
        unused = [word for word in error.unused_tokens or () if word.startswith("--")]  # type: ignore[attr-defined]
        slip = next((word for word in unused if did_you_mean(word, [name])), None)
        return f"{program} needs {name}" + (f"; did you mean {name} instead of {slip}?" if slip else "")
    following = tokens[list(tokens).index(given) + 1 :][:1]
    if following and re.match(r"-[0-9.]", following[0]):
        return f"{given}: expected a value that is not below 0, got {following[0]!r}"
    return f"{given} needs a value after it"
