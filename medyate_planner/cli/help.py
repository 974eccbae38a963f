"""`--help` fits a screen: everyday options with their descriptions, the rest by name; `--help-all` describes all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cyclopts.help.formatters import DefaultFormatter

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

EVERYDAY = ("Arguments", "Parameters", "Commands")  # cyclopts' own names for what has no group
HELP_ALL = "--help-all"


class ShortHelp:
    """Describes the everyday options, and lists the names of those in further groups."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._described = DefaultFormatter()
        self._told = False

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Render the usage line as ever."""
        self._described.render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Render the description as ever."""
        self._described.render_description(console, options, description)

    def __call__(self, console: Console, options: ConsoleOptions, panel: Any) -> None:
        """Render one panel of the help."""
        from rich.padding import Padding
        from rich.text import Text

        if panel.title in EVERYDAY:
            self._described(console, options, panel)
            return
        if not self._told:
            console.print(Text(f"Further options, which `{self.program} {HELP_ALL}` describes:", style="bold"))
            self._told = True
        names = (entry.names[0] for entry in panel.entries if entry.names)
        console.print(Padding(Text(f"{panel.title}: {' '.join(names)}"), (0, 0, 0, 2)))
