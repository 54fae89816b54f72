"""Types and ranges of the configuration, checked before anything heavy starts.

Hydra composes into these dataclasses (the first entry of the defaults list), and `OmegaConf.to_object` turns
the result into them once; the rooms below the configuration see no DictConfig. They are not frozen because
OmegaConf treats frozen dataclasses as read-only nodes, which cannot be composed into.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from eval.config.groups import options
from eval.config.ranges import ConfigError, at_least, one_of
from eval.config.suite import SuiteConfig
from eval.records.episodes import Shard
from eval.records.video import VideoMode
from eval.tracking.base import MODES
from optim.options import JACOBIANS, ON_MISMATCH
from policies.base import GuideOptions
from policies.files import ROOT
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import FORMS, MAX_DENOISE_STEPS
from policies.seeding import SEEDINGS

RUNNERS = ("local", "ray")
CLOCKS = ("free", "wait", "async", "rtc")
MEASURED = "measured"
MOST_LATENCY_MS, MOST_SPEED, MOST_BETA = 60_000, 100, 1000
MOST_TIMEOUT_S = 10**7  # four months; waiting for 1e300 s is an error of the operating system's
PRECISIONS = ("auto", "float32", "bfloat16")
STOPS = ("decided",)
IMAGES = ("eager", "cuda_graph")


@dataclass
class ProtocolConfig:
    """conf/protocol: how many tasks and episodes, and how resets are seeded."""

    name: str = MISSING
    num_tasks: int | None = None  # None takes all
    first_episode: int = 0  # of each task's official initial states
    episodes: int = MISSING
    seeding: str = "paired"  # or openpi: its drifting order, to compare with published numbers

    def __post_init__(self) -> None:
        at_least("protocol.num_tasks", self.num_tasks, 1)
        at_least("protocol.first_episode", self.first_episode, 0)
        at_least("protocol.episodes", self.episodes, 1)
        one_of("protocol.seeding", self.seeding, SEEDINGS)


@dataclass
class PolicyConfig:
    """conf/policy: which policy acts.

    `_target_` is the import path of an `eval.specs.base.PolicySpec` or of a policy's own class, which gets
    `args` as keywords. A policy with options of its own has a subclass, which its YAML begins with.
    """

    example: ClassVar[str] = "custom"

    name: str = MISSING
    _target_: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Pi05PolicyConfig(PolicyConfig):
    """conf/policy/_pi05.yaml: a checkpoint in three stages, each on its backend."""

    example: ClassVar[str] = "baseline"  # a policy with these options
    form: str = "lean"
    precision: str = "auto"
    device: str = "auto"
    prompt_multiple: int = 1
    images: str = "eager"

    def __post_init__(self) -> None:
        at_least("policy.prompt_multiple", self.prompt_multiple, 1)
        one_of("policy.images", self.images, IMAGES)
        one_of("policy.form", self.form, FORMS)
        one_of("policy.precision", self.precision, PRECISIONS)

    @property
    def graphs_images(self) -> bool:
        """Whether camera images are prepared in CUDA graphs, each for one size."""
        return self.images == "cuda_graph"


@dataclass
class RemotePolicyConfig(PolicyConfig):
    """conf/policy/remote.yaml: what a server serves; `policies.remote.RemotePolicy` checks the options."""

    example: ClassVar[str] = "remote"
    url: str = MISSING
    label: str = MISSING
    protocol: str = "openpi"
    timeout_s: float = 60.0
    connect_timeout_s: float = 60.0
    replan_steps: int | None = None
    api_key_env: str | None = None
    max_message_mb: int = 16
    whole_turn: bool | None = None


@dataclass
class OptimConfig:
    """conf/optim: a backend for each stage, which checks its own options, and options for all three."""

    vision: Any = None
    prefix: Any = None
    denoise: Any = None
    on_mismatch: str = "raise"
    scales: str | None = None

    def __post_init__(self) -> None:
        one_of("optim.on_mismatch", self.on_mismatch, ON_MISMATCH)


@dataclass
class DenoiseConfig:
    """conf/denoise: the sampler."""

    steps: int | None = MISSING  # None takes what the checkpoint's folder says

    def __post_init__(self) -> None:
        at_least("denoise.steps", self.steps, 1)
        if self.steps is not None and self.steps > MAX_DENOISE_STEPS:
            raise ConfigError(f"denoise.steps must be <= {MAX_DENOISE_STEPS}, got {self.steps}")


@dataclass
class ClockConfig:
    """conf/clock: what the robot does while the policy thinks; `free` has no options."""

    name: str = MISSING

    def __post_init__(self) -> None:
        one_of("clock.name", self.name, CLOCKS)

    @property
    def guide(self) -> GuideOptions | None:
        """How new chunks are guided; None where they are not."""
        return None


@dataclass
class TimedClockConfig(ClockConfig):
    """conf/clock/wait.yaml and the like: what an inference costs.

    Attributes:
        latency_ms: of each inference, or `measured`; None where `latency_from` says it.
        latency_from: a bench.json, from the row of `latency_policy` (None: the run's own) and its steps.
        speed: of a robot that executes the same actions so many times as fast.
    """

    latency_ms: Any = None
    latency_from: str | None = None
    latency_policy: str | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.latency_ms
        if (given is None) == (self.latency_from is None):
            raise ConfigError(
                f"clock={self.name} needs one of clock.latency_ms=NUMBER, clock.latency_ms=measured and "
                f"clock.latency_from=bench.json, got latency_ms={given} and latency_from={self.latency_from}"
            )
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if given not in (None, MEASURED) and not (is_number and 0 <= given <= MOST_LATENCY_MS):
            raise ConfigError(f"clock.latency_ms must be 0 to {MOST_LATENCY_MS} or {MEASURED}, got {given!r}")
        if not 0 < self.speed <= MOST_SPEED:
            raise ConfigError(f"clock.speed must be above 0 and at most {MOST_SPEED}, got {self.speed}")
        if self.latency_policy is not None and self.latency_from is None:
            raise ConfigError("clock.latency_policy names a row of clock.latency_from, which is not given")


@dataclass
class RtcClockConfig(TimedClockConfig):
    """conf/clock/rtc.yaml: how new chunks are guided, as in `policies.base.GuideOptions`."""

    beta: float = MISSING
    jacobian: str = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latency_ms == MEASURED:
            raise ConfigError(
                f"clock={self.name} must know a delay before the inference, got clock.latency_ms={MEASURED}; "
                "give clock.latency_ms=NUMBER or clock.latency_from=bench.json"
            )
        if not 0 <= self.beta <= MOST_BETA:
            raise ConfigError(f"clock.beta must be 0 to {MOST_BETA}, got {self.beta}")
        one_of("clock.jacobian", self.jacobian, JACOBIANS)

    @property
    def guide(self) -> GuideOptions | None:
        return GuideOptions(self.beta, self.jacobian)


@dataclass
class RunnerConfig:
    """conf/runner: how episodes are run, and how much may go wrong; runner=ray alone reads `RAY_ONLY`."""

    name: str = MISSING
    max_errors: int = 3
    warmup_inferences: int = 3
    workers: int = 4
    policies: int = 1
    max_batch: int = 1
    max_wait_ms: float = 2.0
    address: str | None = None
    episode_timeout_s: float = 900.0
    start_timeout_s: float = 3600.0
    retries: int = 2
    quiet_episodes: int = 1

    def __post_init__(self) -> None:
        one_of("runner.name", self.name, RUNNERS)
        for key in ("max_errors", "warmup_inferences", "retries", "quiet_episodes", "max_wait_ms"):
            at_least(f"runner.{key}", getattr(self, key), 0)
        for key in ("workers", "policies", "max_batch"):
            at_least(f"runner.{key}", getattr(self, key), 1)
        for key in ("episode_timeout_s", "start_timeout_s"):
            if not 0 < getattr(self, key) <= MOST_TIMEOUT_S:
                raise ConfigError(
                    f"runner.{key} must be > 0 and <= {MOST_TIMEOUT_S}, got {getattr(self, key)}"
                )
        if self.policies > self.workers:
            raise ConfigError(
                f"runner.policies must be <= runner.workers={self.workers}, got {self.policies}; "
                "a policy without a worker would serve nobody"
            )


RAY_ONLY = tuple(
    part.name
    for part in fields(RunnerConfig)
    if part.name not in ("name", "max_errors", "warmup_inferences", "episode_timeout_s")
)


@dataclass
class TrackingConfig:
    """conf/tracking: where the records are mirrored."""

    name: str = MISSING
    mode: str = "offline"
    project: str = "libero-vla-eval"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("tracking.name", self.name, ("wandb", "none"))
        one_of("tracking.mode", self.mode, MODES)
        if set(self.project) & set(r"/\#?%:") or not self.project.isprintable():
            raise ConfigError(
                f"tracking.project must be without / \\ # ? % : and line feeds, got {self.project!r}"
            )


@dataclass
class Config:
    """conf/config.yaml: one run."""

    suite: SuiteConfig = MISSING
    protocol: ProtocolConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    policy: PolicyConfig = MISSING
    optim: OptimConfig = field(default_factory=OptimConfig)
    denoise: DenoiseConfig = MISSING
    clock: ClockConfig = field(default_factory=lambda: ClockConfig("free"))
    runner: RunnerConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = 7
    video: str = "none"
    shard: str | None = None
    resume: str | None = None
    record_observations: int = 0
    against: str | None = None
    stop: str | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        self._check_stop()
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be 0 to 2**32 - 1, as NumPy's, got {self.seed}")
        one_of("video", self.video, tuple(VideoMode))
        at_least("record_observations", self.record_observations, 0)
        if self.record_observations and self.runner.name != "local":
            raise ConfigError(
                f"record_observations must be 0 with runner={self.runner.name}, whose policies are in other "
                f"processes, got {self.record_observations}; use runner=local"
            )
        if self.shard is not None:
            try:
                Shard.parse(self.shard)
            except ValueError as error:
                raise ConfigError(str(error)) from error

    def _check_stop(self) -> None:
        if self.stop is not None:
            one_of("stop", self.stop, STOPS)
        if (self.stop is None) != (self.against is None):
            raise ConfigError(
                f"stop=decided and against=RUN need each other, got stop={self.stop}, against={self.against}"
            )
        if self.margin is not None and (self.stop is None or not 0 < self.margin < 100):
            raise ConfigError(
                "margin must be points of success between 0 and 100 that stop=decided may lose, "
                f"got {self.margin} with stop={self.stop}"
            )
        if self.stop is not None and self.shard is not None:
            raise ConfigError(
                f"shard must be null with stop={self.stop}, whose order of episodes no part can follow, got "
                f"{self.shard}; use runner=ray for many at once"
            )

    def pi05_options(self) -> Pi05PolicyConfig:
        """The options of pi0.5; ConfigError where the policy is another."""
        if not isinstance(self.policy, Pi05PolicyConfig):
            raise ConfigError(
                f"policy={self.policy.name} has none of pi0.5's options (form, precision, device ...); "
                "choose policy=baseline, or begin your YAML with `defaults: [_pi05, _self_]`"
            )
        return self.policy


def steps_word(steps: int | None) -> str:
    """Name denoise steps in a job's folder: `10`, or `as_saved` where the checkpoint's folder says them."""
    return "as_saved" if steps is None else str(steps)


# At import: Hydra's launchers name a job's folder in processes of their own, before one calls `register`.
OmegaConf.register_new_resolver("steps_word", steps_word, replace=True)


def register() -> None:
    """Register the schemas of conf/config.yaml and of policies, `${repo:PATH}` and `${options:GROUP}`."""
    OmegaConf.register_new_resolver("repo", lambda path: str(ROOT / path), replace=True)
    OmegaConf.register_new_resolver("options", lambda group: ", ".join(options(group)), replace=True)
    register_schema("eval", Config)
    ConfigStore.instance().store("pi05_policy", node=Pi05PolicyConfig, group="schema")
    ConfigStore.instance().store("timed_clock", node=TimedClockConfig, group="schema")
    ConfigStore.instance().store("rtc_clock", node=RtcClockConfig, group="schema")
    ConfigStore.instance().store("remote_policy", node=RemotePolicyConfig, group="schema")


def register_schema(name: str, node: type[Config]) -> None:
    """Register `node`: a primary config chooses it with `override schema@_global_: NAME`."""
    ConfigStore.instance().store(name, node=node, group="schema", package="_global_")
