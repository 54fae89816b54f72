"""Tasks of LIBERO's suites."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.sim.benchmark import libero_paths
from eval.sim.stack import quiet

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@dataclass(frozen=True)
class Task:
    """One task of a suite: `language` is the instruction that published runs use."""

    suite: str
    task_id: int
    language: str
    bddl_file: str
    init_states: NDArray[np.float64]


def load_tasks(suite: str) -> list[Task]:
    """Load the tasks of a suite in LIBERO's order, with their 50 official initial states each.

    Needs LIBERO's files but neither a simulator nor GL.

    Raises:
        ValueError: an unknown suite.
        SimulatorError: see `libero_paths`.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    folder = libero_paths()["bddl_files"]
    with quiet():
        from libero.libero import benchmark

        bench = benchmark.get_benchmark_dict()[suite]()
    return [
        Task(
            suite=suite,
            task_id=i,
            language=task.language,
            bddl_file=str(folder / task.problem_folder / task.bddl_file),
            init_states=bench.get_task_init_states(i),
        )
        for i, task in enumerate(bench.tasks)
    ]
