"""The records of episodes and inferences, and conversion to JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from policies.base import EpisodeKey
from policies.seeding import Seeding

Outcome = Literal["success", "failure", "error"]
Condition = Literal["warm-up", "alone", "under load"]

HOST_TO_HOST = "host to host"  # beside the stages: a whole inference, from observation to action


@dataclass(frozen=True)
class EpisodeRecord:
    """The result of one episode.

    Attributes:
        success: whether the task was done in time; None when the episode raised, which is not a failure.
        steps: control steps after settling.
        inferences: inferences that returned, warm-up ones included.
        wall_s: reset to last step, in seconds.
        checkpoint, checkpoint_sha256: None for a policy without weights.
        weights_label: a warning to read before any number is believed: RANDOM WEIGHTS.
        actions_sha256: of all executed actions; initial_state_sha256: of the simulator's state before the
            first action. Either may be None only when the episode raised.
        error_type, error_message: of the exception; None when the episode finished.

    Raises:
        ValueError: outcome, error and hashes contradict one another, or the seeding is unknown.
    """

    suite: str
    task_id: int
    instruction: str
    episode: int
    seed: int
    seeding: Seeding
    success: bool | None
    steps: int
    inferences: int
    wall_s: float
    policy: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None
    actions_sha256: str | None
    initial_state_sha256: str | None
    error_type: str | None = None
    error_message: str | None = None

    def __post_init__(self) -> None:
        if self.seeding not in get_args(Seeding):
            raise ValueError(f"seeding must be one of {get_args(Seeding)}, got {self.seeding!r}")
        if self.success is None and (self.error_type is None or self.error_message is None):
            raise ValueError(f"{self.key}: success is None, so error_type and error_message must be given")
        if self.success is not None:
            if self.error_type is not None or self.error_message is not None:
                raise ValueError(f"{self.key}: success is {self.success}, so there is no error to record")
            if self.actions_sha256 is None or self.initial_state_sha256 is None:
                raise ValueError(
                    f"{self.key}: a finished episode has actions_sha256 and initial_state_sha256"
                )

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.suite, self.task_id, self.episode, self.seed)

    @property
    def outcome(self) -> Outcome:
        if self.success is None:
            return "error"
        return "success" if self.success else "failure"


@dataclass(frozen=True)
class InferenceRecord:
    """The timing of one inference.

    Attributes:
        infer_ms: host observation to host action, synchronised at the end, in milliseconds.
        stage_ms: stage to milliseconds; empty where a policy has no stages.
        warmup: whether statistics leave it out.
        backends: stage to the backend that served this call.
        batch: how many requests were served together; their latency is the batch's.
        under_load: whether other episodes ran on the machine at the same time: not what a robot would feel.
    """

    suite: str
    task_id: int
    episode: int
    seed: int
    call: int  # number of the inference in its episode, from 0
    infer_ms: float
    stage_ms: Mapping[str, float]
    warmup: bool
    backends: Mapping[str, str]
    batch: int = 1
    under_load: bool = False

    def __post_init__(self) -> None:
        for name, ms in {"infer": self.infer_ms, **self.stage_ms}.items():
            if not 0.0 < ms < math.inf:
                raise ValueError(
                    f"{self.key} call {self.call}: {name}_ms must be positive and finite, got {ms}"
                )

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.suite, self.task_id, self.episode, self.seed)

    @property
    def condition(self) -> Condition:
        """How it was timed; a robot would feel what was timed alone."""
        if self.warmup:
            return "warm-up"
        return "under load" if self.under_load else "alone"

    @property
    def times_ms(self) -> dict[str, float]:
        """The stages, in the order of the pipeline, and `HOST_TO_HOST` last."""
        return {**self.stage_ms, HOST_TO_HOST: self.infer_ms}


def to_json(value: Any, where: str, indent: int = 2) -> str:
    """Format a value as a JSON file; errors are those of `to_plain`."""
    return json.dumps(to_plain(value, where), indent=indent, allow_nan=False) + "\n"


def to_plain(value: Any, where: str) -> Any:
    """Convert to JSON's own types (dict, list, str, int, float, bool, None).

    Raises:
        ValueError: naming the field below `where`, when a number is not finite.
        TypeError: likewise, when a value or a key has no JSON form; nothing is turned into text by guessing.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are text")
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no JSON form; convert it before recording"
    )
