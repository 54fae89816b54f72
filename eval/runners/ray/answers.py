"""Wait for answers of Ray's actors, and reword the errors of processes that died."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from eval.runners.base import RunnerError
from policies.base import Observation

Answer = Any  # a reference to what an actor returns, when it has


DIED = (RayActorError, OutOfMemoryError)  # the latter where Ray's memory monitor killed the process


def first_answers(answers: Sequence[Answer], timeout_s: float | None = None) -> list[Any]:
    """Wait for first answers; raise what a process raised.

    Args:
        timeout_s: `runner.start_timeout_s`; None waits for ever.

    Raises:
        RunnerError: a process ended, or takes too long.
    """
    try:
        return list(ray.get(answers, timeout=timeout_s))
    except GetTimeoutError as error:
        raise RunnerError(
            f"a process of the runner is not ready after runner.start_timeout_s={timeout_s:g}; "
            "raise it if that may take longer"
        ) from error
    except RayTaskError as error:
        raise error.cause from error
    except DIED as error:
        raise RunnerError(f"a process of the runner did not start: {exit_detail(error)}") from error


def cause_of_death(answer: Answer) -> str | None:
    """Why the process died that was to give an answer; None where it gave one, or raised."""
    try:
        ray.get(answer)
    except DIED as error:
        return exit_detail(error)
    except RayTaskError:
        return None
    return None


@dataclass(frozen=True)
class FirstObservation:
    """Waits for what the first worker's cameras see at the start of an episode.

    Attributes:
        answers: of `EpisodeWorker.build`, in a list: a bare one would be waited for by Ray itself, before it
            calls `PolicyServer.build`.
        timeout_s: how long to wait, `runner.episode_timeout_s`.
    """

    answers: Sequence[Answer]
    timeout_s: float

    def __call__(self) -> Observation:
        """RunnerError where it takes too long; see also `first_answers`."""
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
    """Why a process died, as far as Ray knows, on one line."""
    if isinstance(error, OutOfMemoryError):
        return str(error).partition("\n")[0]  # a page on the machine's memory follows
    text = " ".join(str(error).split())
    _, marker, detail = text.partition("Worker exit type: ")
    return detail if marker else text
