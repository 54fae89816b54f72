"""One environment serves all tasks of a scene, one after another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.sim.tasks import Task
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import ArithmeticEnv


class SharedEnv(ArithmeticEnv):
    """Counts the environments that are built, and goes on with other tasks."""

    built = 0

    def __init__(self, task: Task, **options: Any) -> None:
        super().__init__(task, **options)
        type(self).built += 1

    def serve(self, task: Task) -> None:
        self.task = task


def test_tasks_of_a_scene_share_an_environment_and_change_nothing_else(tmp_path: Path) -> None:
    expected = results(run(tmp_path / "apart"))
    plan = plan_of(make_env=SharedEnv)
    bases = [("libero_spatial", 0), ("libero_spatial", 0), ("libero_spatial", 1)]
    shared = [replace(task, base=base) for task, base in zip(plan.tasks, bases, strict=True)]
    assert results(run(tmp_path / "shared", replace(plan, tasks=shared))) == expected
    assert SharedEnv.built == 2
