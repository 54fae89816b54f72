"""Trajectories of short random action sequences; run as a program, in a process of its own, it prints their
hashes."""

import json
import sys

import numpy as np
from numpy.typing import NDArray

from eval.episodes.rollout import sha256
from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare
from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 7))


def trajectory(env: LiberoEnv, episode: int) -> list[NDArray[np.float64]]:
    """Return fixtures and states of one episode under `ACTIONS`."""
    env.reset(EpisodeKey(env.task.suite, env.task.task_id, episode, 7))
    states = [env.fixture_poses(), env.state_vector()]
    for action in ACTIONS:
        env.step(action)
        states.append(env.state_vector())
    return states


def main() -> None:
    prepare()
    hashes = []
    for suite, task_id in json.loads(sys.argv[1]):
        env = LiberoEnv(load_tasks(suite)[task_id], render=False)
        hashes.append(sha256(*trajectory(env, episode=3)))
        env.close()
    sys.stdout.write(json.dumps(hashes))


if __name__ == "__main__":
    main()
