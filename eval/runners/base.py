"""What a runner is, and the local one: one process, task after task, episode after episode.

The local runner is the reference: what others record must be what it records.

Non-obvious behaviors:
    * An episode that raises is recorded with its exception and the environment is built anew; one more than
      `runner.max_errors` of them stops the run.
    * Ctrl-C ends the run after the record of the episode before; nothing recorded is lost, and
      `resume=FOLDER` goes on from there.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from eval.episodes.plan import Plan
from eval.records.engagement import Engagement
from eval.runners.recorder import RunRecorder


class RunnerError(RuntimeError):
    """A runner cannot start as it was asked to."""


class Runner(Protocol):
    """Who rolls a plan's episodes.

    Attributes:
        about: provenance of the policy; simulator: what `sim_stack.prepare` says where episodes are rolled.
        facts: of the runner itself, for run.json.
    """

    about: Mapping[str, Any]
    simulator: Mapping[str, Any]
    facts: Mapping[str, Any]

    def run(self, plan: Plan, recorder: RunRecorder) -> None:
        """Run every episode that is left and keep the recorder.

        Raises:
            RunFailed: see `RunRecorder.add_episode` and `RunRecorder.finish`.
        """
        ...

    def engagement(self) -> Engagement:
        """Return how the stages of the policy have served in this process, also after `close`."""
        ...

    def close(self) -> None:
        """Free what the runner holds; calling it again does nothing."""
        ...
