"""What run.json holds: its version, the type of each field, and how it is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

from annotated_types import Ge, Gt, Le, MaxLen, Predicate
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from eval.records.foreign import OPEN, STRICT, DamagedRecords, check, read_json
from eval.records.schema import Count, Seed
from eval.records.trees import is_tree_id
from policies.text import shorten

RUN_FILE = "run.json"
LEFT_OUT = "inferences_left_out"  # key of run.json: why a run was kept without its inferences.jsonl
SCALES = "scales_sha256"  # key below `policy`: of the FP8 scales that it was built with
FORMAT_KEY = "format"
FORMAT = 2
"""Of the records that this version writes.

1, which is that of a run.json without the key: as until November 2026.
2: the key.
"""
MOST_EPISODES = 1_000_000  # of a run; all suites of LIBERO together have 6500
SETTING = ("device", "form", "denoise_steps", "replan_steps")
"""What `eval.analysis.summary.setting` says of a policy with a network."""

Object = dict[str, Any]
TaskIds = Annotated[list[Count], MaxLen(10_000)]


def is_run_id(text: str) -> bool:
    """Whether a text is an id that `eval.tracking.base.new_id` may have drawn."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


class PlannedPart(TypedDict):
    """`Episodes.to_dict`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]  # pydantic's own place for it

    suite: str
    tasks: TaskIds
    first: Count
    count: Annotated[int, Ge(0), Le(100_000)]
    seed: Seed
    shard: str | None


class Served(TypedDict):
    """How a stage was served."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    backend: str
    calls: Count
    misses: Count
    refused: NotRequired[Count]
    details: NotRequired[Object]


class Gpu(TypedDict, total=False):
    """`eval.records.provenance.gpu_state`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: Required[str]
    driver: str | None
    cuda: str | None


class Cpu(TypedDict, total=False):
    """The processor of `eval.records.provenance.collect`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    model: str | None
    cores: int | None
    torch_threads: int


class Git(TypedDict, total=False):
    """`git` of `eval.records.trees.code_state`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    commit: str | None
    dirty: bool | None
    untracked: list[str]
    error: str | None


class Origin(TypedDict, total=False):
    """`eval.records.provenance.collect`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    time: str
    command: str
    git: Git
    trees: dict[str, Annotated[str, Predicate(is_tree_id)] | None] | None
    python: str
    packages: dict[str, str | None]
    platform: str
    cpu: Cpu
    gpu: Gpu | None


class PolicyFacts(TypedDict, total=False):
    """`Policy.provenance`, as far as readers read it; a policy of one's own may say more."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    device: str
    dtype: str
    form: str
    denoise_steps: Count
    replan_steps: Count
    norm_stats_sha256: str | None
    tokenizer_sha256: str | None
    scales_sha256: str


class Stages(TypedDict, total=False):
    """`optim` of a configuration."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    vision: Object | None
    prefix: Object | None
    denoise: Object | None


class Configuration(TypedDict, total=False):
    """The composed configuration, as far as readers read it."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    suite: Object
    protocol: Object
    checkpoint: Object
    policy: Object
    optim: Stages | None
    denoise: Object
    runner: Object
    tracking: Object
    seed: Seed
    video: str
    shard: str | None


class RunnerFacts(TypedDict, total=False):
    """`Runner.facts`, as far as readers read it."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: str
    max_batch: Count
    batch_sizes: list[Count] | None
    one_at_a_time: str | None


class Resumed(TypedDict, total=False):
    """One process that went on with the run."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    provenance: Origin
    runner: RunnerFacts
    episodes_before: Count
    dropped: list[str]


class Part(TypedDict, total=False):
    """A part of a run that `eval.merge` joined."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    folder: str
    provenance: Origin | None
    overrides: list[str] | None
    runner: RunnerFacts | None
    finished: bool | None
    planned_episodes: Count | None
    resumed: list[Resumed] | None
    parts: list[Object]


class Stop(TypedDict, total=False):
    """`eval.analysis.sequential.EarlyStop.to_dict`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    decision: Required[Literal["non-inferior", "inferior", "undecided"]]
    margin: Required[Annotated[float, Gt(0), Le(100)]]
    pairs: Required[Count]
    planned: Required[Count]
    base_sha256: str


class RunJson(TypedDict, total=False):
    """run.json; each field may be missing, which readers of a field say where they need it."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    format: int
    config: Configuration
    overrides: list[str]
    runner: RunnerFacts | None
    episodes: list[PlannedPart]
    planned_episodes: Count | None
    policy: PolicyFacts | None
    weights_label: str | None
    gl_backend: str | None
    simulator: Object
    first_frame_sha256: str | None
    instructions: str | None  # where they come from: `eval.sim.suites.SOURCES`
    provenance: Origin | None
    notes: list[str]
    resumed: list[Resumed] | None
    finished: bool | None
    wandb_id: Annotated[str, Predicate(is_run_id)] | None  # of all processes of the run
    stop: Stop | None
    engagement: dict[str, Served] | None
    tracking_error: str | None
    video_error: str | None
    inferences_left_out: str | None
    parts: list[Part] | None


def read_run_json(folder: Path) -> dict[str, Any]:
    """Read run.json with its fields checked.

    Raises:
        FileNotFoundError: there is none.
        DamagedRecords: it is no plain file, no JSON, of a newer version, or a field is wrong, which it names.
    """
    file = folder / RUN_FILE
    run = read_json(file)
    version = run.get(FORMAT_KEY, 1)
    if type(version) is not int or version < 1:
        raise DamagedRecords(
            file, f" is damaged: {FORMAT_KEY} must be a whole number from 1, got {version!r:.80}"
        )
    if version > FORMAT:
        raise DamagedRecords(
            file,
            f": {FORMAT_KEY} {version} is newer than {FORMAT}, the newest that this version reads; "
            "read it with the version that wrote it (provenance.git.commit), or a newer one",
        )
    checked: dict[str, Any] = check(file, run, RunJson)
    planned = sum(len(part["tasks"]) * part["count"] for part in checked.get("episodes", []))
    if planned > MOST_EPISODES:
        raise DamagedRecords(
            file, f" is damaged: episodes must be at most {MOST_EPISODES}, got {planned} of tasks x count"
        )
    about = checked.get("policy") or {}
    if "dtype" in about and (missing := [key for key in SETTING if key not in about]):
        raise DamagedRecords(file, f" is damaged: policy has a dtype, and must have {shorten(missing)} too")
    return checked


def is_decided(run: Mapping[str, Any]) -> bool:
    """Whether a run ended with the decision of its sequential test."""
    return (run.get("stop") or {}).get("decision", "undecided") != "undecided"


def unknown_keys(run: dict[str, Any]) -> list[str]:
    """Keys of run.json that this version does not know, in order."""
    return sorted(run.keys() - RunJson.__annotations__.keys())
