"""Weights & Biases as a tracker: metric names with units."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import wandb

from eval.records.folders import EPISODES_FILE, INFERENCES_FILE, RUN_FILE, WANDB
from eval.records.reader import Run
from eval.records.schema import AROUND, EpisodeRecord, InferenceRecord
from eval.records.video import VIDEOS, video_name
from eval.tracking.base import MODES, TrackedRun, TrackingError
from eval.tracking.login import require_login
from policies.base import EpisodeKey

# Dashboards are built on these names: they stay as they are.
INFERENCE_INDEX = "inference/index"
INFERENCE_TASK_ID = "inference/task_id"
INFERENCE_EPISODE = "inference/episode"
INFERENCE_CALL = "inference/call"
INFERENCE_INFER_MS = "inference/infer_ms"
INFERENCE_STAGE_MS = "inference/{stage}_ms"  # inference/vision_ms, inference/prefix_ms, inference/denoise_ms
INFERENCE_WARMUP = "inference/warmup"
INFERENCE_BATCH = "inference/batch"
INFERENCE_UNDER_LOAD = "inference/under_load"
EPISODE_INDEX = "episode/index"
EPISODE_SUCCESS = "episode/success"
EPISODE_STEPS = "episode/steps"
EPISODE_INFERENCES = "episode/inferences"
EPISODE_WALL_S = "episode/wall_s"
EPISODE_ERROR = "episode/error"
EPISODE_SUCCESS_RATE = "episode/success_rate"
EPISODE_CLOCK = (
    "episode/clock_{name}"  # of `ClockRecord`: episode/clock_robot_s, episode/clock_held_steps ...
)
EPISODE_VIDEO = "episode/video"
EPISODES_TABLE = "episodes"

NAMES = {AROUND: "around"}  # of stages, without blanks

TABLE_COLUMNS = (
    "suite",
    "task_id",
    "instruction",
    "episode",
    "seed",
    "seeding",
    "success",
    "steps",
    "inferences",
    "wall_s",
    "error_type",
    "error_message",
    "inferences_alone",
    "p50_ms",
    "video",
)
LATENCY_HISTOGRAM = "latency/{name}_ms"  # latency/infer_ms, latency/vision_ms: of inferences run alone

# In the environment these name a run for all that begin there, and one would replace the other.
OF_ONE_RUN = (
    *("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_SWEEP_ID"),
    *("WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH"),
)
MOST_TAG = 64  # characters, W&B's limit
FINISH_TIMEOUT_S = 600  # then the upload is given up; `wandb sync` finds all of it on the disk


MakePage = Callable[[Path], Path | None]
"""Makes the page of a run's folder; None where it cannot."""


class WandbTracker:
    """Mirrors a run to Weights & Biases; by default offline: no login, no network, no output.

    Args:
        page: makes the page that goes beside the records into the run's artifact.

    Non-obvious behaviors:
        An error is no failure: such an episode has `episode/error` 1 and no `episode/success`, and it does
        not move the running rate.
        Inferences and episodes have axes of their own (`inference/index`, `episode/index`), not W&B's step.
        Each run has an id of its own, whatever `WANDB_RUN_ID` and `WANDB_RESUME` say. A resumed run keeps it,
        and goes on with its axes; offline, each process writes a file, and `eval.wandb_sync` joins them.
        W&B samples no CPU or GPU counters: that would disturb the latencies.
        A process of W&B's writes the offline file, and may do so after `finish` has returned; Python waits
        for it at exit.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        mode: str = "offline",
        project: str = "libero-vla-eval",
        entity: str | None = None,
        page: MakePage | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"tracking mode must be one of {MODES}, got {mode!r}")
        self.mode = mode
        self.project = project
        self.entity = entity
        self._run: Any = None
        self._folder = Path()
        self._page = page
        self._id = ""
        self._inferences = 0
        self._episodes: dict[
            EpisodeKey, EpisodeRecord
        ] = {}  # the last attempt of each, as records count them
        self._attempts = 0
        self._times_ms: defaultdict[str, defaultdict[EpisodeKey, list[float]]]
        self._times_ms = defaultdict(lambda: defaultdict(list))
        self._videos: dict[EpisodeKey, Path] = {}

    def check(self) -> None:
        """Raise TrackingError where mode is online and there is no valid login; it never asks for one."""
        if self.mode == "online":
            with _environ(dict.fromkeys(OF_ONE_RUN)):
                require_login("tracking mode online", way_out="use tracking mode offline")

    def start(self, run: TrackedRun) -> None:
        """Open the run below `run.folder`/wandb; TrackingError where mode is online and W&B refuses."""
        self._folder, self._id = run.folder, run.id
        if run.earlier is not None:
            self._go_on(run.earlier)
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            with _environ(dict.fromkeys(OF_ONE_RUN)):
                self._run = self._init(run)
        except wandb.errors.Error as error:
            if self.mode != "online":
                raise
            raise TrackingError(f"W&B did not open the run: {error}; or use tracking mode offline") from error
        for index, names in ((INFERENCE_INDEX, "inference/*"), (EPISODE_INDEX, "episode/*")):
            self._run.define_metric(index)
            self._run.define_metric(names, step_metric=index)

    def _init(self, run: TrackedRun) -> Any:
        return wandb.init(
            id=run.id,
            resume="allow" if run.earlier is not None and self.mode == "online" else None,
            project=self.project,
            entity=self.entity,
            name=run.name,
            group=run.group,
            tags=[tag[:MOST_TAG] for tag in dict.fromkeys(run.tags) if tag],
            config=dict(run.config),
            dir=str(run.folder),
            settings=wandb.Settings(
                mode=self.mode,
                silent=True,
                console="off",
                reinit="create_new",  # by default a run that an earlier job left open would be continued
                x_disable_stats=True,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        )

    def log_inference(self, record: InferenceRecord) -> None:
        """Log the latency of one inference and of its stages, in milliseconds."""
        stages = {INFERENCE_STAGE_MS.format(stage=stage): ms for stage, ms in record.stage_ms.items()}
        self._run.log(
            {
                INFERENCE_INDEX: self._inferences,
                INFERENCE_TASK_ID: record.task_id,
                INFERENCE_EPISODE: record.episode,
                INFERENCE_CALL: record.call,
                INFERENCE_INFER_MS: record.infer_ms,
                INFERENCE_WARMUP: int(record.warmup),
                INFERENCE_BATCH: record.batch,
                INFERENCE_UNDER_LOAD: int(record.under_load),
                **stages,
            }
        )
        self._inferences += 1
        self._keep(record)

    def _go_on(self, earlier: Run) -> None:
        self._episodes = {episode.key: episode for episode in earlier.episodes}
        self._attempts = len(earlier.episodes) + len(earlier.superseded)
        self._inferences = len(earlier.inferences)
        for record in earlier.inferences:
            self._keep(record)
        paths = {key: self._folder / VIDEOS / video_name(episode) for key, episode in self._episodes.items()}
        self._videos = {key: path for key, path in paths.items() if path.is_file()}

    def _keep(self, record: InferenceRecord) -> None:
        """Keep the times of an inference alone on the machine, for the histograms and the table."""
        if record.condition == "alone":
            for name, ms in {"infer": record.infer_ms, **record.stage_ms}.items():
                self._times_ms[name][record.key].append(ms)

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        """Log one episode and the success rate of those finished so far."""
        row: dict[str, Any] = {
            EPISODE_INDEX: self._attempts,
            EPISODE_STEPS: record.steps,
            EPISODE_INFERENCES: record.inferences,
            EPISODE_WALL_S: record.wall_s,
            EPISODE_ERROR: int(record.success is None),
        }
        self._episodes[record.key] = record
        self._attempts += 1
        if record.success is not None:
            row[EPISODE_SUCCESS] = int(record.success)
        outcomes = [e.success for e in self._episodes.values() if e.success is not None]
        if outcomes:
            row[EPISODE_SUCCESS_RATE] = outcomes.count(True) / len(outcomes)
        if record.clock is not None:
            row |= numbers(EPISODE_CLOCK, vars(record.clock))
        if video is not None:
            self._videos[record.key] = video
            row[EPISODE_VIDEO] = _video(video, record)
        self._run.log(row)

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the table of episodes, histograms, the summary and the records, then close the run."""
        # By default W&B stages files in the home directory.
        staged = {"WANDB_DATA_DIR": str(self._folder / WANDB), "WANDB_CACHE_DIR": str(self._folder / WANDB)}
        try:
            with _environ(staged):
                if self._episodes:
                    table = wandb.Table(
                        columns=list(TABLE_COLUMNS), data=[*map(self._row, self._episodes.values())]
                    )
                    self._run.log({EPISODES_TABLE: table, **self._histograms()})
                self._run.summary.update(summary_metrics(summary))
                self._log_records()
        finally:
            self._run.finish()

    def _row(self, episode: EpisodeRecord) -> list[Any]:
        times_ms = self._times_ms["infer"].get(episode.key, [])
        video = self._videos.get(episode.key)
        own = {
            "inferences_alone": len(times_ms),
            "p50_ms": median(times_ms) if times_ms else None,
            "video": None if video is None else _video(video, episode),
        }
        return [own[column] if column in own else getattr(episode, column) for column in TABLE_COLUMNS]

    def _histograms(self) -> dict[str, Any]:
        values = {name: [*chain.from_iterable(times.values())] for name, times in self._times_ms.items()}
        return {
            LATENCY_HISTOGRAM.format(name=name): wandb.Histogram(times)
            for name, times in values.items()
            if times
        }

    def _log_records(self) -> None:
        page = self._page(self._folder) if self._page is not None else None
        paths = [*(self._folder / name for name in (RUN_FILE, EPISODES_FILE, INFERENCES_FILE)), page]
        given = [path for path in paths if path is not None and path.is_file()]
        if given:
            artifact = wandb.Artifact(f"records-{self._id}", type="records")
            for path in given:
                artifact.add_file(str(path), path.name)
            self._run.log_artifact(artifact)


def _video(path: Path, record: EpisodeRecord) -> Any:
    return wandb.Video(str(path), caption=f"{record.key} {record.outcome}", format="mp4")


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float | str]:
    """Flatten `Summary.to_dict()` to W&B names; absent numbers are left out."""
    if not summary:
        return {}
    total = summary["total"]
    values = {
        "summary/success_rate": total["rate"],
        "summary/success_rate_low": total["low"],
        "summary/success_rate_high": total["high"],
        "summary/successes": total["successes"],
        "summary/finished": total["finished"],
        "summary/errors": total["errors"],
        "summary/warmup_inferences": summary["warmup_inferences"],
    }
    if summary["infer"] is not None:
        values["summary/inferences"] = summary["infer"]["n"]
    for name, stats in {"infer": summary["infer"], **summary["stages"]}.items():
        if stats is not None:
            name = NAMES.get(name, name)
            for statistic in ("mean", "p50", "p95", "p99"):
                values[f"summary/{name}_ms_{statistic}"] = stats[f"{statistic}_ms"]
            values[f"summary/{name}_hz"] = stats["hz"]
    for task in summary["tasks"]:
        place = f"task/{task['suite']}_{task['task_id']:02}"
        values[f"{place}_success_rate"] = task["success"]["rate"]
        values[f"{place}_errors"] = task["success"]["errors"]
    for stage in summary["engagement"]:
        for fact in ("backend", "calls", "misses", "refused"):
            values[f"engagement/{stage['stage']}_{fact}"] = stage[fact]
    values |= numbers("summary/clock_{name}", summary["clock"] or {})
    return {name: value for name, value in values.items() if value is not None}


def numbers(pattern: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers among some values; texts, truths and what is absent are left out."""
    given = {name: value for name, value in values.items() if not isinstance(value, bool)}
    return {pattern.format(name=name): v for name, v in given.items() if isinstance(v, int | float)}


@contextmanager
def _environ(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment for a while; None takes one out."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
