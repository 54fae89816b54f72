"""Record requests to a policy and the actions that answered them, spread over a run, for `eval.replay`.

H horizon, J 7 robot action dims.

The noise of an inference is a function of its episode and call (`policies.seeding.action_noise`), so keeping
those keeps the noise.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from eval.records.observations import ACTIONS, read_observations, requests_of, save_requests, spread
from policies.base import ActionChunk, Policy, Request
from policies.files import replacing

OBSERVATIONS_FILE = "observations.npz"

Sample = tuple[Request, NDArray[np.float64]]
"""A request and the actions_HJ that answered it, in the simulator's units."""


class RecordingPolicy:
    """Wraps a policy and keeps some of its requests and answers.

    Non-obvious behaviors:
        How long a run will be is not known, so every n-th inference is kept, and n is doubled when there are
        twice `count`: at most 2 * count observations are in memory, 0.8 MB each. They are not copied: an
        environment makes new images each time.

    Raises:
        ValueError: `count` is not positive, or the policy sees no images or is guided towards old chunks.
    """

    def __init__(self, policy: Policy, count: int) -> None:
        if count < 1:
            raise ValueError(f"record_observations must be >= 1 to record some, got {count}")
        if not policy.cameras:
            raise ValueError(f"record_observations must be 0 with policy {policy.name}, which sees no images")
        if policy.provenance().get("guidance"):
            raise ValueError("record_observations must be 0 with clock=rtc: a recording keeps no old chunks")
        self.policy = policy
        self.count = count
        self.name = policy.name
        self.cameras = policy.cameras
        self.needs_privileged = policy.needs_privileged
        self.replan_steps = policy.replan_steps
        self._every = 1
        self._seen = 0
        self._samples: list[Sample] = []

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        chunks = self.policy.infer(requests)
        for request, chunk in zip(requests, chunks, strict=True):
            if self._seen % self._every == 0:
                self._samples.append((request, chunk.actions_HJ))
            self._seen += 1
            if len(self._samples) == 2 * self.count:
                self._samples = self._samples[::2]
                self._every *= 2
        return chunks

    def provenance(self) -> dict[str, Any]:
        return self.policy.provenance()

    def engagement(self) -> dict[str, dict[str, Any]]:
        return self.policy.engagement()

    def save(self, path: Path) -> None:
        """Add the samples to those that earlier processes of the run wrote: `count` of all."""
        samples = self.samples()
        if samples:
            before = load_recording(path) if path.exists() else []
            both = [*before, *samples]
            save_recording(path, spread(both, min(self.count, len(both))))

    def samples(self) -> list[Sample]:
        """Pick at most `count` samples, evenly spread over the inferences so far."""
        return spread(self._samples, min(self.count, len(self._samples)))


def save_recording(path: Path, samples: Sequence[Sample]) -> None:
    """Write requests and the actions that answered them, replacing `path` in one step."""
    actions_BHJ = np.stack([actions_HJ for _, actions_HJ in samples])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_requests(temporary, [request for request, _ in samples])
        with zipfile.ZipFile(temporary, "a") as file, file.open(f"{ACTIONS}.npy", "w") as array:
            np.lib.format.write_array(array, actions_BHJ)


def load_recording(path: Path) -> list[Sample]:
    """Read what `save_recording` wrote, equal to the bit.

    Raises FileNotFoundError for no file, ValueError for a file of another kind or without actions.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no recorded observations {path}; run it with record_observations=16, say, to have some"
        )
    arrays = read_observations(path)
    if ACTIONS not in arrays:
        raise ValueError(f"{path} does not hold the actions that answered its requests")
    return list(zip(requests_of(path, arrays), cast(NDArray[np.float64], arrays[ACTIONS]), strict=True))
