"""Build, reset and settle the tasks of suites: `python -m tests.eval.sim.build_tasks SUITE ... [--first]`.

With `--first` one task of each suite. Prints a line a suite; the exit status is 1 where a task failed.
"""

import sys
from collections.abc import Sequence

import numpy as np

from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare
from eval.sim.tasks import Task, load_tasks
from policies.base import EpisodeKey


def settle(task: Task) -> None:
    """Build a task and settle its first official state; an exception says what is wrong."""
    env = LiberoEnv(task, render=False)
    try:
        env.reset(EpisodeKey(task.suite, task.task_id, 0, 7))
        assert np.isfinite(env.state_vector()).all()
        assert len(env.state_vector()) == len(task.init_states[0])
    finally:
        env.close()


def main(arguments: Sequence[str]) -> int:
    prepare()
    failed = 0
    for suite in [word for word in arguments if word != "--first"]:
        tasks, good = load_tasks(suite)[: 1 if "--first" in arguments else None], 0
        for task in tasks:
            try:
                settle(task)
                good += 1
            except Exception as error:  # noqa: BLE001  counted, and the next is tried
                print(f"{suite} {task.task_id}: {type(error).__name__}: {error}", flush=True)  # noqa: T201
        print(f"{suite}: {good} of {len(tasks)}", flush=True)  # noqa: T201
        failed += len(tasks) - good
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
