"""Evaluate from Python: `from eval.api import evaluate, load_policy`.

    run = evaluate(MyPolicy(), suite="libero_spatial", protocol="quick")
    print(run.success.rate, run.latency)

Records are those of the command line: a folder that `eval.summary`, `eval.compare` and `eval.report` read.

Non-obvious behaviors:
    * Hydra's configuration, torch's current GPU and the random generators of NumPy and Python are left as
      they were, so that a training loop can evaluate every so many steps. What stays is the simulator's: its
      modules, and `MUJOCO_GL` with `PYOPENGL_PLATFORM`, which a process reads once.
    * A policy that is an object acts in this process, one episode after another.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console, RenderableType

from eval.analysis.comparison import MARGIN, Comparison
from eval.analysis.comparison import compare as compare_runs
from eval.analysis.latency import LatencyStats
from eval.analysis.overview import Source, overview
from eval.analysis.summary import SuccessRate, Summary, summarise
from eval.app.session import Origin, prepare
from eval.config.compose import check, compose_run, own_hydra, plain
from eval.config.errors import one_line
from eval.config.multiply import is_below, key_of
from eval.config.schema import Config, ConfigError, PolicyConfig
from eval.config.tasks import choose_tasks
from eval.episodes.capture import example_requests
from eval.records.folders import refuse_full
from eval.records.reader import Run, read_run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.render.comparison import render as render_comparison
from eval.render.console import print_info, report_console
from eval.render.summary import render
from eval.report.cli import REPORT_FILE, default_title
from eval.report.page import page, report_command
from eval.runners.base import Runner
from eval.runners.open import open_local, open_runner
from eval.sim.benchmark import prepare_suite
from eval.sim.stack import prepare as prepare_simulator
from eval.sim.tasks import Task
from eval.specs.auto import settle
from eval.specs.base import PolicySpec
from eval.specs.choose import check as check_spec
from eval.specs.choose import checked_spec
from eval.specs.custom import CheckedPolicy, origin
from eval.specs.gpu import current_gpu, own_gpu
from eval.tracking.base import NullTracker
from policies.base import ActionChunk, EpisodeKey, Policy, Request
from policies.files import write_atomic
from policies.text import quoted

INSTEAD = {  # of keys that `evaluate` does not read, nor what is below them
    "resume": "a run is resumed by the command line",
    "hydra": "give folder=PATH as a keyword",
    "tracking": "give wandb_run=RUN as a keyword",
}
CHOICES = {  # likewise, but what is below them is read
    "suite": "give suite=NAME as a keyword, and suite.max_steps or suite.tasks as an override",
    "protocol": "give protocol=NAME as a keyword",
}
OF_A_RUN = INSTEAD | dict.fromkeys(  # of keys that `load_policy` does not read
    (*("hydra", "tracking", "runner", "video", "record_observations", "shard"), "against", "stop", "margin"),
    "it makes a run and no policy; see what evaluate takes",
)
NAMED = {"policy": "the policy's name is the first argument"}
CUSTOM = PolicyConfig.example
FIXED = dict.fromkeys(  # of a policy that is an object
    ("policy", "checkpoint", "denoise", "optim"),
    "the policy is an object and stays as it is; give these to load_policy, or to its class",
)
OnEpisode = Callable[[EpisodeRecord], None]


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy of the configuration, ready to infer.

    Attributes:
        policy: acts where `gpu` is torch's current device, as in `infer` and in `evaluate`.
        overrides: say which policy it is.
        gpu: the number of the GPU that it was built on; None without one.
    """

    policy: Policy
    overrides: tuple[str, ...]
    gpu: int | None = None

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """See `policies.base.Policy`."""
        with own_gpu(self.gpu):
            return self.policy.infer(requests)


class PrintableComparison(Comparison):
    """A comparison whose text is what `eval.compare` prints."""

    def __str__(self) -> str:
        return _printed(render_comparison(self))


@dataclass(frozen=True)
class Evaluation:
    """A finished run: its folder, what it recorded, and what that says."""

    folder: Path
    records: Run
    summary: Summary

    @classmethod
    def read(cls, folder: Path | str) -> "Evaluation":
        """Read a run of any age, made here or by the command line; ValueError or OSError where it is none."""
        records = read_run(Path(folder))
        return cls(Path(folder), records, summarise(records))

    def __str__(self) -> str:
        """The tables that the command line prints."""
        return _printed(render(self.summary))

    @property
    def success(self) -> SuccessRate:
        """Successes of all finished episodes, with the Wilson interval at 95 %."""
        return self.summary.total

    @property
    def latency(self) -> LatencyStats | None:
        """Host to host, in milliseconds, without warm-up; None where nothing was timed."""
        return self.summary.infer

    @property
    def episodes(self) -> Any:
        """A pandas DataFrame, a row an episode, where pandas is installed; else a list of `EpisodeRecord`."""
        if find_spec("pandas") is None:
            return list(self.records.episodes)
        import pandas as pd

        return pd.DataFrame([asdict(episode) for episode in self.records.episodes])

    def compare(self, base: "Evaluation", margin: float = MARGIN) -> "PrintableComparison":
        """Compare this run, which is NEW in texts, with `base`, episode by episode; see `eval.compare`.

        `margin` is in percentage points of success. Raises NotComparable.
        """
        return PrintableComparison(**vars(compare_runs(base.records, self.records, margin)))

    def report(self, *others: "Evaluation", out: Path | str | None = None) -> Path:
        """Write this run, and others beside it, into one HTML file; return its path."""
        runs = (self, *others)
        result = overview([Source(run.folder, run.records) for run in runs], MARGIN)
        path = Path(out) if out is not None else self.folder / REPORT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        command = report_command([str(run.folder) for run in runs])
        write_atomic(path, page(result, default_title(result), command))
        return path


def _printed(renderable: RenderableType) -> str:
    text = StringIO()
    report_console(file=text).print(renderable)
    return text.getvalue()


class _Callbacks(NullTracker):
    """Hands each episode's record on; what the callback raises ends the run, whose records are kept."""

    error: str | None = None

    def __init__(self, on_episode: OnEpisode | None) -> None:
        self._on_episode = on_episode

    def log_inference(self, record: InferenceRecord) -> None:
        pass

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        if self._on_episode is not None:
            self._on_episode(record)


def load_policy(name: str, *overrides: str, suite: str = "libero_spatial") -> LoadedPolicy:
    """Load a policy of the configuration, as `policy=NAME` and these overrides do on the command line.

    Args:
        name: of conf/policy, such as `realtime`.
        overrides: `checkpoint.path=FOLDER`, `denoise.steps=3`, ...; those that make a run, as `video`, are
            refused.
        suite: for whose tasks backends that are built for shapes are built.

    Raises:
        ConfigError, CannotRun, ValueError, OSError, SimulatorError: as the command line's errors.
    """
    _refuse_foreign(overrides, OF_A_RUN, CHOICES | _of_named(name))
    chosen = (f"policy={name}", *overrides)
    every_task = "protocol.num_tasks=null"  # their prompts differ in length
    beside = [f"suite={suite}", every_task, "tracking=none"]
    config, _, settled = _compose([*chosen, *beside])
    chosen = tuple(text for text in settled if text not in beside)
    spec = checked_spec(config, chosen)
    spec.check_machine(config)

    def capture(policy: Any) -> Sequence[Request]:
        prepare_simulator()
        return example_requests(choose_tasks(config), policy, config.seed)

    with _own_generators(), own_gpu():
        return LoadedPolicy(spec.build(config, capture).policy, chosen, current_gpu())


def evaluate(
    policy: Policy | LoadedPolicy | str,
    *overrides: str,
    suite: str = "libero_spatial",
    protocol: str = "quick",
    folder: Path | str | None = None,
    name: str | None = None,
    on_episode: OnEpisode | None = None,
    progress: bool = True,
    wandb_run: Any = None,
    step: int | None = None,
) -> Evaluation:
    """Roll episodes with a policy and record them.

    Non-obvious behaviors:
        `runner.episode_timeout_s` interrupts Python, in the main thread alone. Nobody ends this process where
        compiled code does not return, as the command line does.

    Args:
        policy: your own object with the members of `policies.base.Policy`, what `load_policy` returned, or
            the name of a policy in conf/policy, which is built for this run.
        overrides: more of the command line's KEY=VALUE, such as `seed=8`, `video=failures`, or for a policy
            that is named `runner=ray`.
        folder: new or empty, for the records; outputs/<date>/<time>_<name> by default.
        name: of your policy in records and tables; by default the import path of its class.
        on_episode: is called with each record, after it was written.
        progress: whether a line an episode, or a live display, is shown on stderr.
        wandb_run: your own run of W&B; gets `eval/<suite>/success_rate` and others, at `step`.
        step: of your training.

    Raises:
        RunFailed: too many episodes raised, or a backend did not engage; the records are kept.
        ConfigError, ValueError, OSError, SimulatorError: nothing was recorded.
    """
    if isinstance(policy, str):
        _refuse_foreign(overrides, INSTEAD, CHOICES | _of_named(policy))
    else:
        _refuse_foreign(overrides, INSTEAD | FIXED, CHOICES)
    place = Path(folder) if folder is not None else None
    chosen = [f"suite={suite}", f"protocol={protocol}", "tracking=none", *overrides]
    ready: Policy | None = None
    if isinstance(policy, str):
        chosen = [f"policy={policy}", *chosen]
    elif isinstance(policy, type):
        raise ConfigError(f"policy must be an object, got the class {policy.__name__}: {policy.__name__}()")
    elif isinstance(policy, LoadedPolicy):
        ready, chosen = policy.policy, [*policy.overrides, *chosen]
    else:
        path = f"{type(policy).__module__}.{type(policy).__qualname__}"
        ready = CheckedPolicy(policy, name or path, {"target": path, **origin(type(policy))})
        chosen = [
            "policy=custom",
            quoted("policy._target_", path),
            quoted("policy.name", ready.name),
            *chosen,
        ]
    config, composed, chosen = _compose(chosen)
    if ready is None or isinstance(policy, LoadedPolicy):
        spec = checked_spec(config, chosen)
    else:
        spec = PolicySpec()
        check_spec(spec, config, overrides)
    if ready is not None and config.runner.name != "local":
        raise ConfigError(
            f"runner={config.runner.name} builds policies in processes of its own, which an object cannot "
            "enter; give evaluate the name of a policy, or leave the runner out"
        )
    place = (
        place or Path("outputs") / f"{datetime.now().astimezone():%Y-%m-%d/%H-%M-%S-%f}_{config.policy.name}"
    )
    refuse_full(place)

    def open_it(tasks: Sequence[Task], left: Sequence[EpisodeKey]) -> Runner:
        if ready is None:
            return open_runner(config, spec, tasks, left, place)
        return open_local(config, ready, prepare_suite(config.suite.name), place)

    gpu = policy.gpu if isinstance(policy, LoadedPolicy) else None
    with ExitStack() as stack, _own_generators(), own_gpu(gpu):
        tracker = _Callbacks(on_episode)
        session = prepare(stack, config, spec, Origin(composed, chosen, place), tracker, open_it)
        for problem in session.run(stack, None if progress else Console(quiet=True), show=None):
            raise problem
    run = Evaluation.read(place)
    if wandb_run is not None:
        wandb_run.log(_metrics(run), step=step)
    return run


def _of_named(name: str) -> dict[str, str]:
    """Say of keys that name another policy than `name` what to do instead."""
    if name == CUSTOM:
        return NAMED
    return NAMED | {"policy._target_": f"policy={name} has its own; name {CUSTOM!r} in the first argument"}


def _refuse_foreign(overrides: Sequence[Any], below: Mapping[str, str], alone: Mapping[str, str]) -> None:
    """Raise ConfigError for what is no KEY=VALUE, or is not read here.

    Args:
        below: what to do instead, of keys which are not read with all that is below them.
        alone: likewise of single keys.
    """
    for text in overrides:
        if not isinstance(text, str) or "=" not in text:
            raise ConfigError(f"an override must be text like 'seed=8', got {text!r}")
        key = key_of(text)
        ways_out = [way_out for name, way_out in below.items() if is_below(key, [name])]
        if key in alone:
            ways_out.append(alone[key])
        if ways_out:
            raise ConfigError(f"{text} is not read here; {ways_out[0]}")


def _compose(overrides: Sequence[str]) -> tuple[Config, dict[str, Any], list[str]]:
    """Compose overrides; return with them those that name the policy which policy=auto takes."""
    try:
        with own_hydra():
            settled, why = settle(compose_run(overrides), overrides, lambda words: check(compose_run(words)))
            for line in why:
                print_info(line)
            cfg = compose_run(settled)
            return check(cfg), plain(cfg), settled
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error


@contextmanager
def _own_generators() -> Iterator[None]:
    """Leave the generators of NumPy and Python as they were: a reset of the simulator seeds them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _metrics(run: Evaluation) -> dict[str, float]:
    """Name a run's numbers for a plot over the steps of a training; absent ones are left out."""
    metrics: dict[str, float | None] = {}
    for suite, success in run.summary.suites.items():
        metrics |= {
            f"eval/{suite}/success_rate": success.rate,
            f"eval/{suite}/success_rate_low": success.low,
            f"eval/{suite}/success_rate_high": success.high,
            f"eval/{suite}/finished": success.finished,
            f"eval/{suite}/errors": success.errors,
            f"eval/{suite}/infer_ms_p50": run.latency.p50_ms if run.latency else None,
        }
    return {key: value for key, value in metrics.items() if value is not None}
