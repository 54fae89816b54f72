"""The console: results on stdout, progress and errors on stderr."""

import os
import sys
from typing import IO

from rich.console import Console
from rich.text import Text

from eval.config.errors import one_line
from policies.streams import surviving
from policies.text import visible

MIN_WIDTH = 100  # columns, where neither a terminal nor COLUMNS says how many there are
NO_ESCAPES = ("NO_COLOR", "CI")  # https://no-color.org; a service's log keeps escapes as text
FULL_ERROR = "HYDRA_FULL_ERROR"


def report_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console as wide as its terminal or COLUMNS, or at least `MIN_WIDTH` where there is neither.

    It writes to `file` where one is given, else to stdout or stderr, and goes quiet when nobody reads it any
    more. It writes no escapes into a pipe, to a dumb terminal, or where a variable of `NO_ESCAPES` is set.
    """
    plain = any(os.environ.get(name) for name in NO_ESCAPES) or os.environ.get("TERM") == "dumb"
    console = Console(
        file=surviving(file or (sys.stderr if stderr else sys.stdout)),
        color_system=None if plain else "auto",
        force_interactive=False if plain else None,
    )
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = max(console.width, MIN_WIDTH)
    return console


def print_info(text: str) -> None:
    """Print what is being done, or why not, on stderr, so that stdout holds results alone."""
    report_console(stderr=True).print(Text(visible(text, lines=True)), soft_wrap=True)


def print_words(text: str) -> None:
    """Print a sentence on stderr that a terminal breaks between words; elsewhere it stays one line."""
    console = report_console(stderr=True)
    console.print(Text(visible(text)), soft_wrap=not console.is_terminal)


def wants_trace() -> bool:
    """Whether the user asked for the whole trace of an error, by HYDRA_FULL_ERROR=1."""
    return os.environ.get(FULL_ERROR) == "1"


def print_error(problem: BaseException | str) -> None:
    """Print an error on one line of stderr."""
    print_info(f"error: {problem if isinstance(problem, str) else one_line(problem)}")
