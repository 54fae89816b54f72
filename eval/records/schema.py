"""The records of episodes and inferences, and conversion to JSON."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le

from eval.records.foreign import STRICT
from policies.base import EpisodeKey
from policies.seeding import Seeding

Outcome = Literal["success", "failure", "error"]
Condition = Literal["warm-up", "alone", "under load"]

# Ranges that a reader holds records to; what writes them stays far within.
Count = Annotated[int, Ge(0), Le(2**53)]
Seed = Annotated[int, Ge(0), Le(2**64)]
Seconds = Annotated[float, Ge(0), Le(1e9)]
Milliseconds = Annotated[float, Le(1e9)]  # positive, which the record itself says
Quantity = Annotated[float, Ge(0), Le(1e9)]
Positive = Annotated[float, Gt(0), Le(1e9)]
SUITE = re.compile(r"[A-Za-z0-9_.-]{1,100}")  # names files too

AROUND = "around the stages"  # a whole inference without its stages: images, noise, actions, the host
RESOLUTION_MS = 1e-3  # of the clocks; no less is around the stages
HOST_TO_HOST = "host to host"  # beside the stages: a whole inference, from observation to action


@dataclass(frozen=True)
class ClockRecord:
    """What a clock other than `free` did in one episode; see `eval.episodes.clock`.

    Attributes:
        delay: d, control steps from an observation to the first action that answers it.
        robot_s: control steps in seconds of this robot, whose period is 50 ms / `speed`.
        held_steps: steps in which the robot waited for its first, or for the next, action.
        age: of the executed actions, in steps since the observation that they answer.
        seam: largest change of a motion channel where two chunks meet, in the simulator's units.
        latency_mean_ms: that inferences were charged; None in older records too.
    """

    __pydantic_config__ = STRICT

    mode: str
    speed: Positive
    robot_s: Seconds
    held_steps: Count
    delay_mean: Quantity | None
    delay_max: Count | None
    age_mean: Quantity | None
    age_max: Count | None
    seam_mean: Quantity | None
    seam_max: Quantity | None
    latency_mean_ms: Quantity | None = None


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
        clock: None where time stood still during inferences.

    Raises:
        ValueError: outcome, error and hashes contradict one another, or suite or seeding are none.
    """

    __pydantic_config__ = STRICT

    suite: str
    task_id: Count
    instruction: str
    episode: Count
    seed: Seed
    seeding: Seeding
    success: bool | None
    steps: Count
    inferences: Count
    wall_s: Seconds
    policy: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None
    actions_sha256: str | None
    initial_state_sha256: str | None
    error_type: str | None = None
    error_message: str | None = None
    clock: ClockRecord | None = None

    def __post_init__(self) -> None:
        if not SUITE.fullmatch(self.suite):
            raise ValueError(f"suite must be letters, digits and _.- alone, got {self.suite!r:.100}")
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
        charged_ms: what the clock took it to last; None where time stood still.
    """

    __pydantic_config__ = STRICT

    suite: str
    task_id: Count
    episode: Count
    seed: Seed
    call: Count  # number of the inference in its episode, from 0
    infer_ms: Milliseconds
    stage_ms: Mapping[str, Milliseconds]
    warmup: bool
    backends: Mapping[str, str]
    batch: Annotated[int, Ge(1), Le(2**20)] = 1
    under_load: bool = False
    charged_ms: Quantity | None = None

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
        """The stages, in the order of the pipeline, then `AROUND` if there are some, and `HOST_TO_HOST`."""
        around = {AROUND: around_ms(self.infer_ms, self.stage_ms)} if self.stage_ms else {}
        return {**self.stage_ms, **around, HOST_TO_HOST: self.infer_ms}


def around_ms(infer_ms: float, stage_ms: Mapping[str, float]) -> float:
    """Milliseconds of an inference in no stage, at least `RESOLUTION_MS`."""
    return max(RESOLUTION_MS, infer_ms - math.fsum(stage_ms.values()))


def to_json(value: Any, where: str, indent: int = 2) -> str:
    """Format a value as a JSON file; errors are those of `to_plain`."""
    return json.dumps(to_plain(value, where), indent=indent, allow_nan=False) + "\n"


def to_plain(value: Any, where: str) -> Any:
    """Convert to JSON's own types (dict, list, str, int, float, bool, None).

    Raises:
        ValueError: naming the field below `where`, when a number is not finite.
        TypeError: likewise, when a value or a key has no JSON form; nothing is turned into text by guessing.
    """
    if isinstance(value, str):  # a file's name may hold bytes that are no UTF-8, and then no JSON
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, int):
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
    if isinstance(value, ClockRecord):
        return to_plain(vars(value), where)
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no JSON form; convert it before recording"
    )
