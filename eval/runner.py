"""What a runner is, and the local one: one process, task after task, episode after episode.

The local runner is the reference: what others record must be what it records.

Non-obvious behaviors:
    * An episode that raises is recorded with its exception and the environment is built anew; one more than
      `runner.max_errors` of them stops the run.
    * Ctrl-C ends the run after the record of the episode before; nothing recorded is lost, and
      `resume=FOLDER` goes on from there.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from eval.bookkeeper import Bookkeeper
from eval.engagement import Engagement
from eval.episode import EpisodeRoller
from eval.plan import Plan
from policies.base import Policy


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

    def run(self, plan: Plan, books: Bookkeeper) -> None:
        """Run every episode that is left and keep the books.

        Raises:
            RunFailed: see `Bookkeeper.add_episode` and `Bookkeeper.finish`.
        """
        ...

    def engagement(self) -> Engagement:
        """Return how the stages of the policy have served in this process, also after `close`."""
        ...

    def close(self) -> None:
        """Free what the runner holds; calling it again does nothing."""
        ...


class LocalRunner:
    """Roll episodes in this process, with a policy that is ready."""

    def __init__(self, policy: Policy, simulator: Mapping[str, Any]) -> None:
        self.policy = policy
        self.about: Mapping[str, Any] = policy.provenance()
        self.simulator = simulator
        self.facts: Mapping[str, Any] = {"name": "local"}

    def run(self, plan: Plan, books: Bookkeeper) -> None:
        """See `Runner`."""
        roller = EpisodeRoller(plan, self.policy)
        with books:
            try:
                for task, keys in plan.todo():
                    for key in keys:
                        books.start_episode(key, task.language)
                        outcome = roller.run(task, key, books.add_inference)
                        books.add_episode(
                            outcome.record,
                            first_frame_sha256=outcome.rollout.first_frame_sha256,
                            film=partial(roller.film, outcome) if outcome.rollout.film else None,
                            cause=outcome.error,
                        )
            finally:
                roller.close()
        books.finish()

    def engagement(self) -> Engagement:
        """See `Runner`."""
        return self.policy.engagement()

    def close(self) -> None:
        """See `Runner`: the policy goes with the process."""
