"""Record one real observation and what the shipped checkpoint answers to it.

`python -m tests.policies.reference.record_golden`; run it again only when the weights change.
"""

from pathlib import Path

import numpy as np

from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare
from eval.sim.tasks import load_tasks
from policies.base import Request
from tests.policies.reference.shipped import KEY, shipped_policy

GOLDEN = Path(__file__).with_name("golden.npz")


def main() -> None:
    prepare()
    env = LiberoEnv(load_tasks(KEY.suite)[KEY.task_id])
    env.reset(KEY)
    policy = shipped_policy()
    observation = env.observe(policy.cameras)
    [chunk] = policy.infer([Request(observation, KEY, 0)])
    np.savez_compressed(
        GOLDEN,
        state=observation.state,
        instruction=observation.instruction,
        actions=chunk.actions_HJ,
        **dict(observation.images),
    )
    env.close()


if __name__ == "__main__":
    main()
