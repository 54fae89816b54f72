"""Collect real observations before a run: one of every input shape, or many of an episode.

Where these functions build an environment, `eval.sim.stack.prepare()` must have run.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.records.observations import spread
from eval.sim.env import LiberoEnv
from eval.sim.tasks import Task
from policies.base import EpisodeKey, Observation, Request
from policies.chunking import ActionQueue
from policies.pi05.norm_stats import STATE_DIM, Normalizer
from policies.pi05.policy import Pi05Policy
from policies.pi05.prompt import STATE_BINS

# A state's number in the prompt, 0 to 255 (-1 below), has one, two or three digits: one bin of each.
SHORT_BIN, LONGER_BINS = 0, (50, 200)


def example_requests(tasks: Sequence[Task], policy: Pi05Policy, seed: int) -> list[Request]:
    """Build an environment, observe once and close it; then `requests_of_every_length`."""
    with closing(LiberoEnv(tasks[0])) as env:
        env.reset(first_episode(tasks, seed))
        real = env.observe(policy.cameras)
    return requests_of_every_length(real, tasks, policy, seed)


def first_episode(tasks: Sequence[Task], seed: int) -> EpisodeKey:
    """The episode whose first observation serves all shapes."""
    return EpisodeKey(tasks[0].suite, tasks[0].task_id, 0, seed)


def requests_of_every_length(
    real: Observation, tasks: Sequence[Task], policy: Pi05Policy, seed: int
) -> list[Request]:
    """Word requests that together have every input shape that a run over these tasks can meet.

    Shapes differ only in the padded length of the prompt, so the requests share their images, and each has a
    length of its own. Its words come from a task's instruction and, where the prompt carries the state and
    its length thus changes from call to call, from a state.

    Args:
        real: what the policy's cameras see at the start of `first_episode`.
    """
    key = first_episode(tasks, seed)
    normalizer = policy.preprocess.state
    states = [] if normalizer is None else _states_of_all_widths(normalizer)
    by_length: dict[int, Request] = {}
    for task in tasks:
        worded = replace(real, instruction=task.language)
        for observation in (worded, *(replace(worded, state=state) for state in states)):
            length = policy.preprocess.prompt_length(observation, policy.form)
            by_length.setdefault(length, Request(observation, key, 0))
    return list(by_length.values())


def collect_requests(
    tasks: Sequence[Task], policy: Pi05Policy, seed: int, count: int, *, max_steps: int
) -> list[Request]:
    """Let `policy` run episodes of its own; keep `count` of its requests, spread over tasks and time.

    Each task gives its share from episode 0, and from the next ones while that was too short. The phase of
    the episode differs from task to task, so that few requests a task do not all come from its start. With
    more tasks than requests, only `count` of the tasks are run.

    Args:
        max_steps: control steps of an episode at most, `suite.max_steps`.

    Raises:
        ValueError: no tasks, or `count` is not positive.
    """
    if not tasks or count < 1:
        raise ValueError(f"requests need a task and a count >= 1, got {len(tasks)} tasks and count={count}")
    chosen = spread(tasks, min(count, len(tasks)))
    requests: list[Request] = []
    for i, task in enumerate(chosen):
        share = count // len(chosen) + (i < count % len(chosen))
        made: list[Request] = []
        with closing(LiberoEnv(task)) as env:
            episode = 0
            while len(made) < share:
                key = EpisodeKey(task.suite, task.task_id, episode, seed)
                made.extend(_episode(env, policy, key, max_steps))
                episode += 1
        requests += spread(made, share, phase=(i + 0.5) / len(chosen))
    return requests


def _episode(env: LiberoEnv, policy: Pi05Policy, key: EpisodeKey, max_steps: int) -> Iterator[Request]:
    """Yield the requests of one episode: at its start, then at each replan."""
    env.reset(key)
    queue = ActionQueue(policy.replan_steps)
    call = 0
    for _ in range(max_steps):
        if not queue:
            request = Request(env.observe(policy.cameras), key, call)
            yield request
            [chunk] = policy.infer([request])
            queue.refill(chunk)
            call += 1
        if env.step(queue.pop()):
            return


def _states_of_all_widths(normalizer: Normalizer) -> list[NDArray[np.float64]]:
    """Choose states whose words in the prompt grow digit by digit, from 8 to 24 digits."""
    bins = np.full(STATE_DIM, SHORT_BIN)
    rows = [bins.copy()]
    for i in range(STATE_DIM):
        for longer in LONGER_BINS:
            bins[i] = longer
            rows.append(bins.copy())
    centres = STATE_BINS + (STATE_BINS[1] - STATE_BINS[0]) / 2
    return [normalizer.unnormalize(centres[row]) for row in rows]
