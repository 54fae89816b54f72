"""What the simulator's savings buy: `python -m eval.env_cost [--task T]` prints a table.

The same recorded actions drive LIBERO's own environment as others drive it (model recompiled and GL context
rebuilt at every reset, both cameras rendered at every step) and ours (soft reset, cameras rendered when the
policy looks). Final states are compared to the bit, so the table compares equal episodes.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from eval.libero_env import CAMERA_SIZE, CAMERAS, SETTLE_ACTION, SETTLE_STEPS, LiberoEnv, Task, load_tasks
from eval.sim_stack import import_simulator, prepare, quiet
from eval.summary import report_console
from policies.base import EpisodeKey, Request
from policies.oracle import SUITE, OraclePolicy
from policies.seeding import stable_seed

T = TypeVar("T")
EPISODE_STEPS = 100
SEED = 7


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a call's result and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def oracle_actions(task: Task, key: EpisodeKey) -> list[NDArray[np.float64]]:
    """Return the first hundred actions of the scripted expert; it goes on after success."""
    env, oracle, actions = LiberoEnv(task, render=False), OraclePolicy(), []
    env.reset(key)
    for step in range(EPISODE_STEPS):
        [chunk] = oracle.infer([Request(env.observe(privileged=True), key, step)])
        actions.append(chunk.actions_HJ[0])
        env.step(actions[-1])
    env.close()
    return actions


def upstream_cost(
    task: Task, key: EpisodeKey, actions: list[NDArray[np.float64]]
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return seconds of make, reset (initial state and settling included) and episode, and the final
    state."""
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
    task: Task, key: EpisodeKey, actions: list[NDArray[np.float64]], look_every: int | None
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return the same of our environment, which looks every so many steps, or has no cameras (None)."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description="Time LIBERO's environment against ours.")
    parser.add_argument(
        "--task", type=int, default=0, help="of libero_spatial, the suite that the oracle serves"
    )
    options = parser.parse_args()
    stack = prepare()
    import_simulator()
    task = load_tasks(SUITE)[options.task]
    key = EpisodeKey(SUITE, options.task, 0, SEED)
    actions = oracle_actions(task, key)
    rows = {"upstream, both cameras at every step": upstream_cost(task, key, actions)}
    for look_every in (5, 10):
        rows[f"ours, both cameras every {look_every} steps"] = our_cost(task, key, actions, look_every)
    rows["ours, no cameras"] = our_cost(task, key, actions, None)
    reference = next(iter(rows.values()))[1]
    table = Table(title=f"{SUITE} task {options.task}, {EPISODE_STEPS} oracle steps, GL {stack['gl']}")
    for name in ("environment", "make s", "reset s", "episode s", "sum s", "same final state"):
        table.add_column(name)
    for name, (seconds, final) in rows.items():
        cells = [f"{value:.2f}" for value in (*seconds.values(), sum(seconds.values()))]
        table.add_row(name, *cells, "yes" if np.array_equal(final, reference) else "NO")
    report_console().print(table)


if __name__ == "__main__":
    main()
