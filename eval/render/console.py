"""The console: results on stdout, progress and errors on stderr."""

from rich.console import Console
from rich.text import Text

from eval.config.errors import one_line

MIN_WIDTH = 100  # columns, where no terminal says how many it has


def report_console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal, or at least `MIN_WIDTH` where there is none."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    return console


def print_info(text: str) -> None:
    """Print what is being done, or why not, on stderr, so that stdout holds results alone."""
    report_console(stderr=True).print(Text(text), soft_wrap=True)


def print_error(problem: BaseException | str) -> None:
    """Print an error on one line of stderr."""
    print_info(f"error: {problem if isinstance(problem, str) else one_line(problem)}")
