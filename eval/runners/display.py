"""The block at the bottom of a terminal: bars of the run and of its tasks, rates, and what is running."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eval.analysis.statistics import wilson
from policies.text import crop, visible

MOST_TASKS = 10  # rows of tasks; of more, those around the tasks that run
NARROW = 100  # columns, from which on names of tasks are longer
OUTCOMES = {"success": "green", "failure": "yellow", "error": "bold red"}


@dataclass(frozen=True)
class TaskState:
    """Episodes of one task: how many there are, and how those that ended did."""

    number: int
    name: str
    total: int
    successes: int = 0
    failures: int = 0
    errors: int = 0
    running: bool = False

    @property
    def ended(self) -> int:
        return self.successes + self.failures + self.errors


@dataclass(frozen=True)
class State:
    """What the block shows.

    Attributes:
        running: words for each episode that runs now.
        per_minute: episodes; None before the first of this process has ended.
        latency, time_left: in words.
    """

    label: str | None
    total: int
    tasks: Sequence[TaskState]
    successes: int
    failures: int
    errors: int
    running: Sequence[str]
    latency: str
    time_left: str
    per_minute: float | None


def block(state: State, width: int, height: int) -> RenderableType:
    """Lay the block out for a terminal of this size."""
    ended = state.successes + state.failures + state.errors
    parts: list[RenderableType] = []
    if state.label:
        parts.append(Text(visible(state.label), style="white on red", no_wrap=True, overflow="ellipsis"))
    shown = _window(state.tasks, min(MOST_TASKS, height - 8))
    if len(state.tasks) > 1 and shown:
        parts.append(_bars(shown, width))
        if len(shown) < len(state.tasks):
            parts.append(Text(f"{len(shown)} of {len(state.tasks)} tasks", style="dim"))
    whole = Table.grid(padding=(0, 1))
    whole.add_row(
        "episodes",
        ProgressBar(total=state.total, completed=ended, width=max(10, width - 45)),
        f"{ended}/{state.total}",
        Text(state.time_left, style="cyan"),
    )
    parts += [whole, _rates(state)]
    parts.append(_line(f"now {', '.join(state.running)}" if state.running else "starting", "dim"))
    return Group(*parts)


def _bars(tasks: Sequence[TaskState], width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    name_width = 34 if width < NARROW else 60
    for task in tasks:
        finished = task.successes + task.failures
        errors = Text(f"errors {task.errors}", style="bold red") if task.errors else Text("")
        table.add_row(
            Text(f"{task.number:>3}", style="bold" if task.running else "dim"),
            Text(visible(crop(task.name, name_width)), style="bold" if task.running else ""),
            ProgressBar(total=task.total, completed=task.ended, width=10, complete_style=_style(task.errors)),
            f"{task.ended}/{task.total}",
            f"success {task.successes}/{finished}",
            errors,
        )
    return table


def _style(errors: int) -> str:
    return "red" if errors else "green"


def _rates(state: State) -> Text:
    finished = state.successes + state.failures
    rate = ""
    if finished:
        interval = wilson(state.successes, finished)
        rate = f" {state.successes / finished:.1%} ({interval.low * 100:.1f} to {interval.high * 100:.1f} %)"
    speed = "" if state.per_minute is None else f" | {state.per_minute:.1f} episodes/min"
    text = Text(f"success {state.successes}/{finished}{rate} | ", no_wrap=True, overflow="ellipsis")
    text.append(f"errors {state.errors}", style="bold red" if state.errors else "")
    text.append(f"{speed}\n{state.latency}")
    return text


def _line(words: str, style: str) -> Text:
    return Text(visible(words), style=style, no_wrap=True, overflow="ellipsis")


def _window(tasks: Sequence[TaskState], most: int) -> Sequence[TaskState]:
    """The tasks that run, with those before and after them, at most so many."""
    if len(tasks) <= most:
        return tasks
    first = next((i for i, task in enumerate(tasks) if task.running), 0)
    begin = max(0, min(first - most // 2, len(tasks) - most))
    return tasks[begin : begin + max(most, 0)]
