"""Metrics: what a run's records say, as pure functions that do not depend on their order."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from eval.analysis.latency import LatencyStats, latencies
from eval.analysis.statistics import wilson
from eval.config.groups import policy_label
from eval.records.reader import Run
from eval.records.run_json import is_decided
from eval.records.schema import ClockRecord, EpisodeRecord, InferenceRecord
from eval.records.trees import joint_id
from policies.text import pluralize

# What a summary needs of run.json; `eval.app.session.describe` and `RunRecorder` write them.
RUN_KEYS = (
    "weights_label",
    "gl_backend",
    "engagement",
    "provenance",
    "planned_episodes",
    "tracking_error",
    "video_error",
)

SETTING = {"device", "dtype", "form", "denoise_steps", "replan_steps"}  # of a policy with a network

RANDOM_WEIGHTS = "RANDOM WEIGHTS"  # how the label of weights that nobody trained begins


def is_random(weights_label: str | None) -> bool:
    """Whether a label says that nobody trained these weights."""
    return (weights_label or "").startswith(RANDOM_WEIGHTS)


@dataclass(frozen=True)
class SuccessRate:
    """Successes of finished episodes; errors are counted apart and are in neither.

    Attributes:
        successes, finished, errors: episodes.
        rate: successes / finished; None, like the interval, when nothing finished.
        low, high: Wilson score interval at 95 % (two-sided, without continuity correction).
    """

    successes: int
    finished: int
    errors: int
    rate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TaskSuccess:
    """Success on one task."""

    suite: str
    task_id: int
    instruction: str
    success: SuccessRate


@dataclass(frozen=True)
class EpisodeError:
    """An episode that raised; `retried` when a later attempt replaced it, which then counts instead."""

    episode: str
    error_type: str
    error_message: str
    retried: bool


@dataclass(frozen=True)
class ClockSummary:
    """What a clock other than `free` did, over the finished episodes; see `eval.records.schema.ClockRecord`.

    Attributes:
        delay: d, on average; robot_s: median of the successes, None where there are none; held_steps, age
            and seam: means of the episodes' own.
        latency_mean_ms: that inferences were charged; None where records do not say it.
        guidance: of new chunks towards old ones, in words; None where there was none.
        reproducible: whether an episode is a function of its key: the latency was not the run's own.
    """

    mode: str
    speed: float
    latency: str
    delay: float | None
    robot_s: float | None
    held_steps: float
    age: float | None
    seam: float | None
    reproducible: bool
    latency_mean_ms: float | None
    guidance: str | None


@dataclass(frozen=True)
class StageEngagement:
    """Whether a stage's backend did the work: calls it served, that missed it, and that it refused."""

    stage: str
    backend: str
    calls: int
    misses: int
    refused: int

    @property
    def engaged(self) -> bool:
        """Whether it served every call."""
        return self.calls > 0 and self.misses == 0 and self.refused == 0


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    Attributes:
        policy_label: the policy, with the stages whose backend is not that of its own configuration.
        weights_label: what the weights are: where they came from, or RANDOM WEIGHTS and their kind.
        setting: device, precision, form, denoise and replan steps; None for a policy without a network.
        commit: of the harness; `commit_dirty` when its tree had changes; sources: the id of its folders.
        episodes: recorded ones, finished or not; planned_episodes: how many the run set out to do.
        decision: of the sequential test that ended the run before those; None where none did.
        suites: suite to success; total: all suites pooled.
        quiet_episodes: how many the latencies of `infer` are of.
        infer: host to host; stages: stage to its own statistics, each with its n; both of one request at a
            time on an otherwise idle machine, without warm-up. infer is None when there are none.
        infer_under_load, stages_under_load: the same of inferences that others ran beside: a throughput's
            latency, not a robot's.
        mean_batch: requests served together, on average over the inferences under load.
        clock: None where time stood still during inferences.
        warnings: from reading the records and from comparing them; none is harmless.
    """

    policy: str
    policy_label: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None
    setting: str | None
    seeding: str
    gl_backend: str | None
    commit: str | None
    commit_dirty: bool | None
    sources: str | None
    episodes: int
    planned_episodes: int | None
    decision: str | None
    tasks: tuple[TaskSuccess, ...]
    suites: Mapping[str, SuccessRate]
    total: SuccessRate
    errors: tuple[EpisodeError, ...]
    quiet_episodes: int
    infer: LatencyStats | None
    stages: Mapping[str, LatencyStats]
    infer_under_load: LatencyStats | None
    stages_under_load: Mapping[str, LatencyStats]
    mean_batch: float | None
    clock: ClockSummary | None
    warmup_inferences: int
    engagement: tuple[StageEngagement, ...]
    warnings: tuple[str, ...]

    @property
    def random_weights(self) -> bool:
        """Whether the success rate says nothing of a trained policy."""
        return is_random(self.weights_label)

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars, ready for JSON."""
        return asdict(self)


def setting(about: Mapping[str, Any]) -> str | None:
    """Say what of a policy's provenance decides its numbers; None for a policy without a network."""
    if not about.keys() >= SETTING:
        return None
    steps = pluralize(about["denoise_steps"], "denoise step")
    return (
        f"{about['device']} {about['dtype']}, {about['form']} form, {steps}, replan {about['replan_steps']}"
    )


def success_rate(records: Iterable[EpisodeRecord]) -> SuccessRate:
    """Count successes, finished episodes and errors, with the Wilson interval of the rate."""
    outcomes = [record.success for record in records]
    successes = outcomes.count(True)
    errors = outcomes.count(None)
    finished = len(outcomes) - errors
    if finished == 0:
        return SuccessRate(0, 0, errors, None, None, None)
    interval = wilson(successes, finished)
    return SuccessRate(successes, finished, errors, successes / finished, interval.low, interval.high)


def summarise(run: Run) -> Summary:
    """Count, time and check what a run recorded.

    Raises:
        ValueError: when no episode is recorded, or the episodes are of different policies, checkpoints or
            seedings: one number over them would be false.
    """
    if not run.episodes:
        raise ValueError("the run holds no episode records")
    policy, checkpoint, checkpoint_sha256, seeding = _one(
        "policy, checkpoint, checkpoint_sha256, seeding",
        {(e.policy, e.checkpoint, e.checkpoint_sha256, e.seeding) for e in run.episodes},
    )
    warnings = list(run.warnings)
    warnings += [f"run.json does not say {key}" for key in RUN_KEYS if run.run and key not in run.run]
    planned = run.run.get("planned_episodes")
    if is_decided(run.run):
        stop = run.run["stop"]
        warnings.append(
            f"the run ended with the decision {stop['decision']} after {stop['pairs']} of {stop['planned']} "
            "pairs: its rate is of those alone, and eval.compare reads it as a sequential test"
        )
    elif planned is not None and planned != len(run.episodes):
        warnings.append(f"{len(run.episodes)} of {planned} planned episodes are recorded")
    if run.run.get("tracking_error"):
        warnings.append(f"tracking stopped: {run.run['tracking_error']}")
    if run.run.get("video_error"):
        warnings.append(f"a video is missing: {run.run['video_error']}")
    alone, loaded = (
        [record for record in run.inferences if record.condition == condition]
        for condition in ("alone", "under load")
    )
    warnings += run.run.get("notes", [])
    if reason := (run.run.get("runner") or {}).get("one_at_a_time"):
        warnings.append(f"requests were served one at a time: {reason}")
    engagement = _engagement(run.run.get("engagement") or {})
    backends = {engaged.stage: engaged.backend for engaged in engagement}
    infer, stages = latencies(alone, backends)
    infer_under_load, stages_under_load = latencies(loaded, backends)
    warnings += disagreements(engagement, run.inferences)
    origin = run.run.get("provenance") or {}
    git = origin.get("git") or {}
    return Summary(
        policy=policy,
        policy_label=policy_label(policy, run.run.get("config") or {}),
        checkpoint=checkpoint,
        checkpoint_sha256=checkpoint_sha256,
        weights_label=run.run.get("weights_label"),
        setting=setting(run.run.get("policy") or {}),
        seeding=seeding,
        gl_backend=run.run.get("gl_backend"),
        commit=git.get("commit"),
        commit_dirty=git.get("dirty"),
        sources=joint_id(origin.get("trees")),
        episodes=len(run.episodes),
        planned_episodes=planned,
        decision=run.run["stop"]["decision"] if is_decided(run.run) else None,
        tasks=_tasks(run.episodes),
        suites={
            suite: success_rate(e for e in run.episodes if e.suite == suite)
            for suite in sorted({e.suite for e in run.episodes})
        },
        total=success_rate(run.episodes),
        errors=_errors(run),
        quiet_episodes=len({record.key for record in alone}),
        infer=infer,
        stages=stages,
        infer_under_load=infer_under_load,
        stages_under_load=stages_under_load,
        mean_batch=math.fsum(record.batch for record in loaded) / len(loaded) if loaded else None,
        clock=clock_summary(run),
        warmup_inferences=len(run.inferences) - len(alone) - len(loaded),
        engagement=engagement,
        warnings=tuple(warnings),
    )


def clock_summary(run: Run) -> ClockSummary | None:
    """Summarise what the run's clock did; None where time stood still."""
    finished = [(e, e.clock) for e in run.episodes if e.clock is not None and e.success is not None]
    if not finished:
        return None
    mode, speed = _one("clock and speed", {(clock.mode, clock.speed) for _, clock in finished})
    config = (run.run.get("config") or {}).get("clock") or {}
    source, latency_ms = config.get("latency_from"), config.get("latency_ms")
    solved = [clock.robot_s for episode, clock in finished if episode.success]
    return ClockSummary(
        mode=mode,
        speed=speed,
        latency=_latency_source(source, config.get("latency_policy"), latency_ms),
        delay=_mean(clock.delay_mean for _, clock in finished),
        robot_s=median(solved) if solved else None,
        held_steps=sum(clock.held_steps for _, clock in finished) / len(finished),
        age=_mean(clock.age_mean for _, clock in finished),
        seam=_mean(clock.seam_mean for _, clock in finished),
        reproducible=latency_ms != "measured",
        latency_mean_ms=_latency_mean_ms([clock for _, clock in finished], latency_ms),
        guidance=_guidance(config.get("beta"), config.get("jacobian")),
    )


def _guidance(beta: Any, jacobian: Any) -> str | None:
    return f"beta {beta:g}, {jacobian}" if isinstance(beta, int | float) else None


def _latency_mean_ms(clocks: Sequence[ClockRecord], latency_ms: Any) -> float | None:
    if isinstance(latency_ms, int | float):  # older episodes do not say it, but were all charged this
        return float(latency_ms)
    return _mean(clock.latency_mean_ms for clock in clocks)


def _latency_source(source: str | None, policy: str | None, latency_ms: Any) -> str:
    if source is not None:
        return f"of {policy or 'its policy'} in {source}"
    return f"{latency_ms:g} ms" if isinstance(latency_ms, int | float) else f"{latency_ms or 'unknown'}"


def _mean(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return math.fsum(given) / len(given) if given else None


def _one(names: str, values: set[Any]) -> Any:
    if len(values) != 1:
        raise ValueError(f"one run must have one ({names}), got {sorted(values, key=str)}")
    return values.pop()


def _tasks(episodes: Iterable[EpisodeRecord]) -> tuple[TaskSuccess, ...]:
    by_task: defaultdict[tuple[str, int], list[EpisodeRecord]] = defaultdict(list)
    for episode in episodes:
        by_task[episode.suite, episode.task_id].append(episode)
    return tuple(
        TaskSuccess(
            suite,
            task_id,
            _one(f"instruction of {suite} task {task_id}", {e.instruction for e in records}),
            success_rate(records),
        )
        for (suite, task_id), records in sorted(by_task.items())
    )


def _errors(run: Run) -> tuple[EpisodeError, ...]:
    last = [(episode, False) for episode in run.episodes if episode.success is None]
    replaced = [(episode, True) for episode in run.superseded]
    errors = [
        (e.key, EpisodeError(str(e.key), str(e.error_type), str(e.error_message), retried))
        for e, retried in replaced + last
    ]
    ordered = sorted(errors, key=lambda item: (item[0], not item[1].retried, item[1].error_message))
    return tuple(error for _, error in ordered)


def _engagement(engagement: Mapping[str, Mapping[str, Any]]) -> tuple[StageEngagement, ...]:
    return tuple(
        StageEngagement(stage, served["backend"], served["calls"], served["misses"], served.get("refused", 0))
        for stage, served in engagement.items()
    )


def disagreements(
    engagement: Collection[StageEngagement], inferences: Iterable[InferenceRecord]
) -> list[str]:
    """Say where engagement is bad news, or is not what the inferences' own records say."""
    served: defaultdict[str, set[str]] = defaultdict(set)
    for record in inferences:
        for stage, backend in record.backends.items():
            served[stage].add(backend)
    problems = []
    for engaged in engagement:
        stage, backend = engaged.stage, engaged.backend
        if engaged.calls == 0:
            problems.append(f"{stage}: {backend} never engaged")
        if engaged.misses:
            problems.append(f"{stage}: {engaged.misses} calls missed {backend}")
        if engaged.refused:
            problems.append(f"{stage}: {backend} refused {engaged.refused} calls")
        others = served[stage] - {backend}
        if others:
            problems.append(f"{stage}: inferences were served by {sorted(others)} besides {backend}")
    unreported = served.keys() - {engaged.stage for engaged in engagement}
    return problems + [f"{stage}: run.json does not say who served it" for stage in sorted(unreported)]
