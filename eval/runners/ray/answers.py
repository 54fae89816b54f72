"""Answers of Ray's actors, and the errors of processes that died."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from eval.runners.base import RunnerError
from policies.base import Observation

Answer = Any  # a reference to what an actor returns, when it has


DIED = (RayActorError, OutOfMemoryError)  # the latter where Ray's memory monitor killed the process


def first_answers(answers: Sequence[Answer]) -> list[Any]:
    """Return the first answers of processes, or raise what one of them raised.

    Raises:
        RunnerError: a process died.
    """
    try:
        return list(ray.get(answers))
    except RayTaskError as error:
        raise error.cause from error
    except DIED as error:
        raise RunnerError(f"a process of the runner did not start: {exit_detail(error)}") from error


@dataclass(frozen=True)
class FirstObservation:
    """What the first worker's cameras see at the start of an episode, when it has looked.

    Attributes:
        answers: of `EpisodeWorker.build`, in a list: handed over bare, Ray would wait for it.
        timeout_s: how long to wait, `runner.episode_timeout_s`.
    """

    answers: Sequence[Answer]
    timeout_s: float

    def __call__(self) -> Observation:
        """Wait for it.

        Raises:
            RunnerError: it takes too long, and see `first_answers`.
        """
        ready, _ = ray.wait(list(self.answers), timeout=self.timeout_s)
        if not ready:
            raise RunnerError(
                f"runner.episode_timeout_s={self.timeout_s:g} is over, and the first worker's environment "
                "is not built; raise it if that may take longer"
            )
        [observation] = first_answers(ready)
        assert isinstance(observation, Observation)
        return observation


def exit_detail(error: RayError) -> str:
    """Return what Ray knows of why a process died, on one line."""
    if isinstance(error, OutOfMemoryError):
        return str(error).partition("\n")[0]  # a page on the machine's memory follows
    text = " ".join(str(error).split())
    _, marker, detail = text.partition("Worker exit type: ")
    return detail if marker else text
