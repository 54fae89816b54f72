"""The interface of runners.

`eval.runners.local` is the reference: other runners must record what it records.

Non-obvious behaviors:
    * An episode that raises is recorded with its exception and the environment is built anew; one more than
      `runner.max_errors` of them stops the run.
    * A signal ends the run after the record of the episode before; nothing recorded is lost, and
      `resume=FOLDER` goes on from there.
    * An episode that takes longer than `runner.episode_timeout_s` is an error, EpisodeTimeout.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from eval.episodes.plan import Plan
from eval.records.engagement import Engagement
from eval.runners.recorder import RunRecorder


class RunnerError(RuntimeError):
    """A runner cannot start as configured."""


class EpisodeTimeout(RuntimeError):
    """An episode took longer than `runner.episode_timeout_s`, and was ended."""


class Runner(Protocol):
    """Runs a plan's episodes."""

    about: Mapping[str, Any]  # provenance of the policy
    simulator: Mapping[str, Any]  # `eval.sim.benchmark.prepare_suite`, where episodes are run
    facts: Mapping[str, Any]  # of the runner itself, for run.json

    def run(self, plan: Plan, recorder: RunRecorder) -> None:
        """Run every episode that is left; RunFailed as in `RunRecorder.add_episode` and `finish`."""
        ...

    def engagement(self) -> Engagement:
        """Count how the policy's stages have served in this process, also after `close`."""
        ...

    def close(self) -> None:
        """Free what the runner holds; calling it again does nothing."""
        ...
