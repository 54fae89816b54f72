"""Measure what perturbations cost: `python -m tools.robustness_table OUT --policy NAME --suites SUITE ...`.

Many processes share the GPUs. Each loads its policy once for a scene's words and runs cells of it: perturbed
tasks or their control arm, a run each (`OUT/parts`). At the end the finished ones are merged into one run a
suite and arm (`OUT/<suite>`, `OUT/<suite>_control`), with the table of `eval.report` beside them (`arms.md`)
and what the sequential test says of each pair of arms (`sequential.md`).

    python -m tools.robustness_table OUT --policy realtime --processes 30 --suites libero_spatial_plus_camera
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.analysis.comparison import MARGIN, compare
from eval.analysis.overview import Source, overview
from eval.records.reader import read_run
from eval.render.arms import CAPTION, COLUMNS, LEGEND, TEXTS, rows
from eval.render.comparison import conclusion
from eval.render.tables import Heading, Sentence, Table, to_markdown
from eval.sim.suites import CONTROL, SuiteName
from eval.sim.tasks import Task, load_tasks
from policies.files import write_atomic
from tools.cells import measure
from tools.checkpoint_table import merge_suites

ARMS = (False, True)  # suite.control


@dataclass(frozen=True)
class Cell:
    """Tasks of one scene and one arm, each from the same initial states: one run."""

    suite: str
    control: bool
    tasks: tuple[int, ...]
    scene: tuple[str, int]
    words: str
    first: int
    count: int

    @property
    def of(self) -> tuple[tuple[str, int], str]:
        """Equal for cells of which one policy, built for its prompt, serves all."""
        return self.scene, self.words

    @property
    def folder(self) -> str:
        arm = f"{self.suite}{CONTROL}" if self.control else self.suite
        return f"{arm}/tasks{self.tasks[0]}_to_{self.tasks[-1]}_from{self.first}"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The overrides that choose its tasks and arm, whatever arm its policy was loaded for."""
        tasks = ",".join(map(str, self.tasks))
        return f"suite.tasks=[{tasks}]", f"suite.control={str(self.control).lower()}"


def plan_cells(suites: Sequence[str], states: int, tasks_a_cell: int, states_a_cell: int) -> list[Cell]:
    """Cells of both arms: of LIBERO-Plus's every task from state 0, of LIBERO-PRO's `states` a task."""
    cells: list[Cell] = []
    for suite in suites:
        count = 1 if SuiteName.parse(suite).is_plus else states
        for control in ARMS:
            tasks = load_tasks(f"{suite}{CONTROL}" if control else suite)
            for some in _by_words(tasks, tasks_a_cell):
                cells += [
                    Cell(
                        suite,
                        control,
                        tuple(task.task_id for task in some),
                        some[0].start,
                        some[0].language,
                        first,
                        min(states_a_cell, count - first),
                    )
                    for first in range(0, count, states_a_cell)
                ]
    return cells


def _by_words(tasks: Sequence[Task], most: int) -> Iterator[list[Task]]:
    """Cut tasks into groups of at most `most` with one scene and one instruction, in their order."""
    group: list[Task] = []
    for task in tasks:
        if group and (
            len(group) == most or (task.scene, task.language) != (group[0].scene, group[0].language)
        ):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def write_tables(out: Path, margin: float) -> str:
    """Merge the parts; write and return the table of arms, and beside it what the sequential test says.

    Raises FileNotFoundError where no cell has begun.
    """
    merge_suites(out)
    folders = sorted(path for path in out.iterdir() if (path / "run.json").is_file())
    runs = {folder.name: read_run(folder) for folder in folders}
    result = overview([Source(out / name, run) for name, run in runs.items()], margin)
    lines = to_markdown([Table(COLUMNS, list(rows(result)), CAPTION, TEXTS), Sentence(LEGEND)])
    write_atomic(out / "arms.md", lines)
    read: list[Heading | Sentence] = []
    for arms in result.arms:
        pair = compare(runs[f"{arms.suite}{CONTROL}"], runs[arms.suite], margin, sequential=True)
        read += [Heading(arms.suite, 2), *map(Sentence, conclusion(pair))]
    write_atomic(out / "sequential.md", to_markdown(read))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tools.robustness_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder of parts, merged runs and the tables")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as denoise.steps=1")
    parser.add_argument("--policy", default="baseline")
    parser.add_argument("--suites", nargs="+", required=True, help="perturbed ones")
    parser.add_argument("--states", type=int, default=50, help="of each task of LIBERO-PRO's suites")
    parser.add_argument("--states-a-cell", type=int, default=10)
    parser.add_argument("--tasks-a-cell", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop starting cells after this time")
    options = parser.parse_intermixed_args(argv)
    if plain := [suite for suite in options.suites if SuiteName.parse(suite).dimension is None]:
        parser.error(f"--suites must perturb one of LIBERO's, got {', '.join(plain)}")
    end = time.time() + 60 * options.minutes
    cells = plan_cells(options.suites, options.states, options.tasks_a_cell, options.states_a_cell)
    measure(
        options.out,
        cells,
        options.policy,
        "plus",
        options.overrides,
        options.processes,
        end,
        lambda: write_tables(options.out, MARGIN),
    )


if __name__ == "__main__":
    main()
