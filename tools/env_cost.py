"""What the simulator's savings buy: `python -m tools.env_cost [--task T] [--steps N]` prints a table.

The same recorded actions drive LIBERO's own environment as others drive it (model recompiled and GL context
rebuilt at every reset, both cameras rendered at every step) and ours (soft reset, cameras rendered when the
policy looks). Final states are compared to the bit, so the table compares equal episodes; if one differs,
the command says which and exits 1.

Whoever runs first in a process pays for what all share: numba's compilation, the start of GL, files read from
disk. One short episode of each kind therefore runs before, untimed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.render.console import report_console
from eval.render.tables import Table, to_console
from eval.sim.env import CAMERA_SIZE, CAMERAS, SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from eval.sim.stack import prepare, quiet
from eval.sim.tasks import Task, load_tasks
from policies.base import EpisodeKey, Request
from policies.oracle import OraclePolicy
from policies.oracle.scene import SUITE
from policies.seeding import stable_seed

T = TypeVar("T")
Cost = tuple[dict[str, float], NDArray[np.float64]]  # seconds by part of an episode, and the final state
EPISODE_STEPS = 100
WARM_UP_STEPS = 2
SEED = 7


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Call and measure the seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def oracle_actions(task: Task, key: EpisodeKey, num_steps: int) -> list[NDArray[np.float64]]:
    """Record the first actions of the scripted expert; it goes on after success."""
    env, oracle, actions = LiberoEnv(task, render=False), OraclePolicy(), []
    env.reset(key)
    for step in range(num_steps):
        [chunk] = oracle.infer([Request(env.observe(privileged=True), key, step)])
        actions.append(chunk.actions_HJ[0])
        env.step(actions[-1])
    env.close()
    return actions


def upstream_cost(task: Task, key: EpisodeKey, actions: Sequence[NDArray[np.float64]]) -> Cost:
    """Time make, reset (initial state and settling included) and episode; keep the final state."""
    from libero.libero.envs import OffScreenRenderEnv

    def make() -> OffScreenRenderEnv:
        with quiet():
            env = OffScreenRenderEnv(
                bddl_file_name=task.bddl_file, camera_heights=CAMERA_SIZE, camera_widths=CAMERA_SIZE
            )
        env.seed(stable_seed("reset", key.suite, key.task_id, key.episode, key.seed))
        return env

    def reset() -> None:
        with quiet():
            env.reset()
        env.set_init_state(task.init_states[key.episode])
        for _ in range(SETTLE_STEPS):
            env.step(SETTLE_ACTION)

    def episode() -> None:
        for action in actions:
            env.step(action)

    env, make_s = timed(make)
    _, reset_s = timed(reset)
    _, episode_s = timed(episode)
    final = env.get_sim_state()
    env.close()
    return {"make": make_s, "reset": reset_s, "episode": episode_s}, final


def our_cost(
    task: Task, key: EpisodeKey, actions: Sequence[NDArray[np.float64]], look_every: int | None
) -> Cost:
    """Time the same of our environment, which looks every so many steps, or has no cameras (None)."""

    def episode() -> None:
        for step, action in enumerate(actions):
            if look_every is not None and step % look_every == 0:
                env.observe(CAMERAS)
            env.step(action)

    env, make_s = timed(lambda: LiberoEnv(task, render=look_every is not None))
    _, reset_s = timed(lambda: env.reset(key))
    _, episode_s = timed(episode)
    final = env.state_vector()
    env.close()
    return {"make": make_s, "reset": reset_s, "episode": episode_s}, final


def compare(task: Task, key: EpisodeKey, num_steps: int) -> dict[str, Cost]:
    """Measure the costs by environment, upstream's first, after an untimed warm-up of each kind."""
    actions = oracle_actions(task, key, num_steps)
    upstream_cost(task, key, actions[:WARM_UP_STEPS])
    for look_every in (1, None):
        our_cost(task, key, actions[:WARM_UP_STEPS], look_every)
    rows = {"upstream, both cameras at every step": upstream_cost(task, key, actions)}
    for look_every in (5, 10):
        rows[f"ours, both cameras every {look_every} steps"] = our_cost(task, key, actions, look_every)
    rows["ours, no cameras"] = our_cost(task, key, actions, None)
    return rows


def unequal(rows: Mapping[str, Cost]) -> list[str]:
    """Name the environments whose final state is not that of the first, to the bit."""
    reference = next(iter(rows.values()))[1]
    return [name for name, (_, final) in rows.items() if not np.array_equal(final, reference)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.env_cost",
        description="Time LIBERO's environment against ours; minutes, and a table at the end.",
    )
    parser.add_argument(
        "--task",
        type=int,
        default=0,
        choices=range(10),
        help="of libero_spatial, the suite that the oracle serves",
    )
    parser.add_argument("--steps", type=int, default=EPISODE_STEPS, help="control steps of the episode")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be >= 1, got {options.steps}")
    stack = prepare()
    task = load_tasks(SUITE)[options.task]
    rows = compare(task, EpisodeKey(SUITE, options.task, 0, SEED), options.steps)
    differing = unequal(rows)
    table = Table(
        ("environment", "make s", "reset s", "episode s", "sum s", "same final state"),
        [
            (
                name,
                *(f"{value:.2f}" for value in (*seconds.values(), sum(seconds.values()))),
                "NO" if name in differing else "yes",
            )
            for name, (seconds, _) in rows.items()
        ],
        f"{SUITE} task {options.task}, {options.steps} oracle steps, GL {stack['gl']}",
        last_is_text=True,
    )
    report_console().print(to_console([table]))
    if differing:
        sys.exit(
            f"error: final states differ from {next(iter(rows))!r}: {'; '.join(differing)}; "
            "the episodes are not equal, so neither are the times"
        )


if __name__ == "__main__":
    main()
