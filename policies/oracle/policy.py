"""A scripted expert: it reads goal and poses from the simulator and does what is missing.

It checks the harness without weights (a score far below 100 % is the harness's fault) and can teach. For
libero_spatial it is the machine of `policies.oracle.spatial`; elsewhere it reads the goal
(`policies.oracle.expert`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from policies.base import ActionChunk, EpisodeKey, Request
from policies.oracle.expert import GoalExpert
from policies.oracle.scene import SUITE, OracleOptions
from policies.oracle.spatial import SpatialExpert


class OraclePolicy:
    """The expert as a policy: no cameras, privileged poses, one action per call.

    Non-obvious behaviors:
        * It has memory per episode. Call 0 starts an episode anew, wherever the objects are; a later call of
          an episode that it does not remember is an error.
        * LIBERO ends an episode as soon as the goal holds, often while the fingers still hold the object.
          Only those who step on, such as recorders of demonstrations, see release and retreat.
    """

    name = "oracle"
    cameras: tuple[str, ...] = ()
    needs_privileged = True
    replan_steps = 1

    def __init__(self, options: OracleOptions | None = None) -> None:
        self.options = options or OracleOptions()
        self._experts: OrderedDict[EpisodeKey, SpatialExpert | GoalExpert] = OrderedDict()

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Answer each request with one action (1, 7) in [-1, 1].

        Raises:
            ValueError: the scene or the goal asks for what the expert cannot do.
            KeyError: a call after 0 of an episode that is not remembered.
        """
        return [
            ActionChunk(actions_HJ=self._remember(request).act(request.observation)[None])
            for request in requests
        ]

    def phase(self, episode: EpisodeKey) -> str:
        """The phase that chose the last action of a remembered episode."""
        return self._experts[episode].phase

    def provenance(self) -> dict[str, Any]:
        return {"kind": "oracle", "privileged": True, "options": asdict(self.options)}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}

    def _remember(self, request: Request) -> SpatialExpert | GoalExpert:
        if request.call == 0:
            self._experts.pop(request.episode, None)
            while len(self._experts) >= self.options.live_episodes:
                self._experts.popitem(last=False)
            spatial = request.episode.suite == SUITE
            self._experts[request.episode] = SpatialExpert(self.options) if spatial else GoalExpert()
        elif request.episode not in self._experts:
            raise KeyError(
                f"oracle got call {request.call} of {request.episode} but does not remember it; start an "
                f"episode with call 0 and keep at most live_episodes={self.options.live_episodes} in flight"
            )
        self._experts.move_to_end(request.episode)
        return self._experts[request.episode]
