"""Runs that are killed at random moments, after episodes that have finished, end as if nobody had."""

import time

import pytest

from tests.eval.kill_soak import soak


@pytest.mark.parametrize(("runner", "kills"), [("local", 8), ("ray", 4)])
def test_a_killed_run_that_is_resumed_is_the_unbroken_one(runner: str, kills: int) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")  # noqa: T201  to repeat a failure
    killed, _, different = soak(kills, runner, seed)
    assert (killed, different) == (kills, 0)
