"""The Ray runner: many episodes at once, each in a process of its own, served by policies that batch.

What it records is what the local runner records, as long as a request is served alone (`runner.max_batch=1`):
in a batch the last bits of an action depend on the others in it.

Non-obvious behaviors:
    * An episode's inferences are recorded with it, when it has ended.
    * A worker that dies, hangs or loses its policy leaves an error in the records. Its episode is tried again
      up to `runner.retries` times, and only the last error counts towards `runner.max_errors`. An exception
      of simulator or policy is the episode's outcome, as with the local runner, and is not tried again.
    * An episode begins when its worker and its policy are ready: `runner.episode_timeout_s` does not count
      the time in which a process starts or a policy is built.
    * After an episode that took too long, its policy gets no other while it computes the same batch. When
      that has taken half of an episode's limit, the policy is replaced.
    * Ray restarts nothing: it would restart for ever what dies at each start. A policy process that dies is
      replaced by the runner, once, and each of its episodes has lost an attempt.
    * A policy whose backend serves no batches is asked one request at a time whatever `runner.max_batch` is;
      a warning and run.json (`runner.one_at_a_time`) name the backend.
    * Before all others, when every process is ready, `runner.quiet_episodes` episodes run alone: theirs are
      the latencies of one robot.
"""

import contextlib
import itertools
import logging
import math
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from eval.bookkeeper import Bookkeeper
from eval.capture import first_episode
from eval.engagement import Engagement, join
from eval.episode import episode_record
from eval.libero_env import LiberoEnv, Task
from eval.plan import Plan
from eval.ray_actors import (
    DIED,
    Answer,
    BuildEnv,
    EpisodeWorker,
    FirstLook,
    MakePolicy,
    PolicyFacts,
    PolicyHost,
    Result,
    Setup,
    Simulator,
    exit_detail,
    first_answers,
)
from eval.rollout import CutOff, Rollout
from eval.runner import RunnerError
from eval.schedule import Schedule
from eval.schema import Config, RunnerConfig
from eval.serving import build_served_policy
from eval.sim_stack import prepare
from policies.base import EpisodeKey

OBJECT_STORE_BYTES = 256 * 2**20  # the plan, and videos that were not written yet
REQUEST_BYTES = 2**20  # more than two images have, 0.4 MB; so many go with the call itself
REACH_S = 10.0
POLL_S = 1.0  # how often overdue workers are looked for
GL_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "__EGL_VENDOR_LIBRARY_FILENAMES")

log = logging.getLogger(__name__)


class WorkerDied(RuntimeError):
    """The process that rolled an episode ended."""


@dataclass(frozen=True)
class Ahead:
    """What workers do while policies are built.

    Attributes:
        build_envs: how the tasks' environments are built, by task; workers share the tasks out.
        look_at: an episode of the first of them, at whose start the first worker looks: policies whose
            backends are built for shapes build them with what it saw.
    """

    build_envs: Mapping[int, BuildEnv]
    look_at: EpisodeKey


class EpisodeTimeout(RuntimeError):
    """An episode took longer than `runner.episode_timeout_s`; its process was killed."""


@dataclass(eq=False)
class _Host:
    """A policy process.

    Attributes:
        built: the answer of its build.
        suspected_s: when an episode that asked it took too long; None when it has computed something since.
    """

    handle: Any
    built: Answer = None
    suspected_s: float | None = None


@dataclass
class _Worker:
    """A worker's handle, what it is doing, and the policy process that it was told to ask.

    Attributes:
        started: the answer of its process when that is ready to simulate.
    """

    number: int
    handle: Any
    started: Answer
    host: _Host | None = None
    key: EpisodeKey | None = None
    since_s: float = 0.0
    overdue: bool = False


def start_ray(config: Config, tasks: Sequence[Task], left: Sequence[EpisodeKey]) -> "RayRunner":
    """Return the runner for a configuration; errors are those of `RayRunner`.

    Args:
        left: the episodes that `run` will be given.
    """
    ids = {key.task_id for key in left}
    tasks = [task for task in tasks if task.task_id in ids] or tasks[:1]
    envs = {task.task_id: partial(LiberoEnv, task, seeding=config.protocol.seeding) for task in tasks}
    blind = config.policy.kind == "oracle"  # and ready at once
    return RayRunner(
        config.runner,
        partial(build_served_policy, config, list(envs)),
        prepare,
        ahead=None if blind else Ahead(envs, first_episode(tasks, config.seed)),
        most_episodes=max(1, len(left)),
        wants_gpu=not blind and config.policy.device != "cpu",
    )


class RayRunner:
    """Roll episodes in Ray actors, on this machine or on the cluster at `options.address`.

    Args:
        make_policy: builds the policy, in a process of its own.
        setup: prepares a worker's process.
        ahead: what workers do while policies are built.
        most_episodes: how many `run` may be given; there are no more workers than that, nor than
            `runner.workers`.
        wants_gpu: whether the policy runs on a GPU where there is one.

    Raises:
        RunnerError: Ray cannot be started or reached, the cluster is too small, or a process died.
        Changed: the workers do not all simulate with the same.
        Exception: what building a policy or preparing a worker raised.
    """

    def __init__(
        self,
        options: RunnerConfig,
        make_policy: MakePolicy,
        setup: Setup,
        *,
        ahead: Ahead | None = None,
        most_episodes: int,
        wants_gpu: bool,
    ) -> None:
        self.options = options
        self._make_policy = make_policy
        self._setup = setup
        self._engaged: dict[str, Engagement] = {}  # by the process that reported it
        self._running: dict[Answer, _Worker] = {}
        self._task_of: dict[int, int] = {}  # of workers that have an environment before the first episode
        self._attempts: Counter[EpisodeKey] = Counter()
        self._connect()
        try:
            gpus = ray.cluster_resources().get("GPU", 0)
            self._gpu_share = min(1.0, gpus / options.policies) if wants_gpu else 0.0
            # Before workers, which could fill up the nodes with GPUs.
            self._hosts: list[_Host | None] = []
            hosts = [self._start_host() for _ in range(options.policies)]
            count = min(options.workers, most_episodes)
            self._workers = [_Worker(number, *self._start_worker()) for number in range(count)]
            built = self._build_ahead(ahead) if ahead else []
            self._look = FirstLook(built[:1], options.episode_timeout_s)
            self._hosts += [self._build_policy(host) for host in hosts]
            self._facts: PolicyFacts = first_answers([host.built for host in self._hosts if host])[0]
            self.about: Mapping[str, Any] = self._facts.about
            self.simulator = _same(first_answers([worker.started for worker in self._workers]))
            self._replace_late(built)
            self.facts: Mapping[str, Any] = self._describe()
            if self._facts.one_at_a_time is not None:
                log.warning(
                    "runner.max_batch=%d, but requests are served one at a time: %s",
                    options.max_batch,
                    self._facts.one_at_a_time,
                )
        except BaseException:
            self.close()
            raise

    def run(self, plan: Plan, books: Bookkeeper) -> None:
        """See `eval.runner.Runner`."""
        self._plan = plan
        self._plan_ref = ray.put(plan)
        self._schedule = Schedule((keys for _, keys in plan.todo()), self._task_of)
        quiet = self.options.quiet_episodes
        with books:
            while self._schedule or self._running:
                self._assign(books, quiet=quiet > 0)
                for answer in self._wait():
                    quiet -= 1
                    self._settle(answer, books)
                self._kill_overdue()
        books.finish()

    def engagement(self) -> Engagement:
        """See `eval.runner.Runner`; every process counts with its last report."""
        return join(self._engaged.values())

    def close(self) -> None:
        """End every process that the runner started."""
        ray.shutdown()

    def _connect(self) -> None:
        """Start Ray on this machine, or join the cluster at `runner.address`."""
        options = self.options
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        if options.address is None:  # through the object store it waits for more processes
            os.environ.setdefault("RAY_max_direct_call_object_size", str(REQUEST_BYTES))
        own = {
            "address": "local",  # a cluster that happens to run here is not ours
            "num_cpus": options.workers + options.policies,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        try:
            if options.address is not None:
                _reach(options.address)
            with _signals_kept():
                ray.init(
                    **(own if options.address is None else {"address": options.address}),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (RuntimeError, ConnectionError, OSError, ValueError) as error:
            if options.address is None:
                raise RunnerError(f"Ray cannot be started on this machine: {error}") from error
            raise RunnerError(
                f"Ray cannot be used at runner.address={options.address}: {error}; start it there with "
                "`ray start`, with RAY_AUTH_MODE=token and one ~/.ray/auth_token everywhere"
            ) from error
        cpus, needed = ray.cluster_resources().get("CPU", 0), options.workers + options.policies
        if cpus < needed:
            ray.shutdown()
            raise RunnerError(
                f"runner.workers={options.workers} and runner.policies={options.policies} "
                f"need {needed} CPUs, the cluster at {options.address} has {cpus:g}"
            )

    def _start_host(self) -> Any:
        actor = ray.remote(num_cpus=1, num_gpus=self._gpu_share)(PolicyHost)
        return actor.remote(
            max_batch=self.options.max_batch,
            max_wait_ms=self.options.max_wait_ms,
            warmup_inferences=self.options.warmup_inferences,
            threads=torch.get_num_threads(),
        )

    def _build_policy(self, handle: Any) -> _Host:
        return _Host(handle, handle.build.remote(self._make_policy, self._look))

    def _start_worker(self) -> tuple[Any, Answer]:
        """Return a worker's handle and the answer that says that it is ready."""
        environ = {name: os.environ[name] for name in GL_VARIABLES if name in os.environ}
        handle: Any = ray.remote(num_cpus=1)(EpisodeWorker).remote(environ, self._setup)
        return handle, handle.simulator.remote()

    def _build_ahead(self, ahead: Ahead) -> list[Answer]:
        """Let workers build environments; return their answers.

        What became of them is seen at their first episode.
        """
        built = []
        for worker, (task, build_env) in zip(self._workers, itertools.cycle(ahead.build_envs.items())):
            self._task_of[worker.number] = task
            look_at = ahead.look_at if worker is self._workers[0] else None
            built.append(worker.handle.build.remote(build_env, look_at))
        return built

    def _describe(self) -> dict[str, Any]:
        options = self.options
        return {
            "name": "ray",
            "ray": ray.__version__,
            "nodes": sum(node["Alive"] for node in ray.nodes()),
            **{name: getattr(options, name) for name in ("workers", "policies", "max_batch", "max_wait_ms")},
            "batch_sizes": self._facts.batch_sizes,  # None: every size up to max_batch
            "one_at_a_time": self._facts.one_at_a_time,
        }

    def _replace_late(self, built: Sequence[Answer]) -> None:
        """Wait for the environments, and replace workers that hang."""
        limit_s = self.options.episode_timeout_s
        late = ray.wait(list(built), num_returns=len(built), timeout=limit_s)[1] if built else []
        for worker, answer in zip(self._workers, built, strict=False):
            if answer in late:
                log.warning(
                    "runner.episode_timeout_s=%g is over, and worker %d has no environment; it is replaced",
                    limit_s,
                    worker.number,
                )
                self._replace(worker)
                del self._task_of[worker.number]

    def _wait(self) -> list[Answer]:
        """Return the answers of episodes that ended; wait for them, or for a process that starts, a while."""
        starting = _missing(
            [*(worker.started for worker in self._workers), *(h.built for h in self._hosts if h)]
        )
        expected = [*self._running, *starting]
        if not expected:  # a policy that may hang
            time.sleep(POLL_S)
            return []
        return [answer for answer in ray.wait(expected, timeout=POLL_S)[0] if answer in self._running]

    def _assign(self, books: Bookkeeper, *, quiet: bool) -> None:
        """Give idle workers something to do; to the first alone where it is to be quiet."""
        workers = self._workers[:1] if quiet else self._workers
        for worker in workers:
            if self._schedule and worker.key is None:
                host = self._host_of(worker)
                if not _missing([worker.started, host.built]) and not self._may_hang(host):
                    self._begin(worker, host, books, under_load=len(workers) > 1)

    def _begin(self, worker: _Worker, host: _Host, books: Bookkeeper, *, under_load: bool) -> None:
        key = self._schedule.next(worker.number)
        assert key is not None, "the schedule is not empty"
        worker.key, worker.since_s, worker.overdue, worker.host = key, time.monotonic(), False, host
        [task] = [task for task in self._plan.tasks if task.task_id == key.task_id]
        books.start_episode(key, task.language)
        answer = worker.handle.roll.remote(
            self._plan_ref, host.handle, self._facts, key, under_load, self.simulator
        )
        self._running[answer] = worker

    def _settle(self, answer: Any, books: Bookkeeper) -> None:
        """Record what became of an episode."""
        worker = self._running.pop(answer)
        key, worker.key = worker.key, None
        assert key is not None, "a running worker has an episode"
        assert worker.host is not None, "and a policy"
        try:
            result: Result = ray.get(answer)
        except RayTaskError as error:
            self._fail(key, worker, error.cause, books)
            if isinstance(error.cause, CutOff):
                self._lose(worker.host)
        except DIED as error:
            if worker.overdue:
                limit_s = self.options.episode_timeout_s
                self._fail(
                    key, worker, EpisodeTimeout(f"runner.episode_timeout_s={limit_s:g} is over"), books
                )
            else:
                self._fail(key, worker, WorkerDied(exit_detail(error)), books)
            self._replace(worker)
        else:
            self._schedule.learn(key, result.record.wall_s)
            self._keep(result, books)
            if not result.served_by:  # it died after the last inference
                self._lose(worker.host)
        if worker.overdue:  # killed when its answer had already left
            self._replace(worker)
        self._end_lost(worker.host)

    def _replace(self, worker: _Worker) -> None:
        """Give a worker another process; the lost one may be alive where nobody reaches it."""
        ray.kill(worker.handle, no_restart=True)
        worker.handle, worker.started = self._start_worker()
        worker.overdue = False

    def _host_of(self, worker: _Worker) -> _Host:
        """Return the policy process that a worker asks, a new one where that was lost."""
        index = worker.number % len(self._hosts)
        host = self._hosts[index]
        if host is None:
            host = self._hosts[index] = self._build_policy(self._start_host())
        return host

    def _lose(self, host: _Host) -> None:
        """Let a policy process be replaced before it is asked again, unless it was replaced already."""
        self._hosts = [None if own is host else own for own in self._hosts]

    def _end_lost(self, host: _Host) -> None:
        """End a policy process that was lost, as soon as no episode waits for its answers.

        It may be alive and keep its GPU. Killed earlier, it would leave errors that name the kill.
        """
        needed = [*self._hosts, *(worker.host for worker in self._running.values())]
        if all(other is not host for other in needed):
            ray.kill(host.handle, no_restart=True)

    def _keep(self, result: Result, books: Bookkeeper) -> None:
        if result.served_by:
            self._engaged[result.served_by] = result.engagement
        for inference in result.inferences:
            books.add_inference(inference)
        filmed = result.film is not None or result.film_error is not None
        books.add_episode(
            result.record,
            first_frame_sha256=result.first_frame_sha256,
            film=_film_writer(result) if filmed else None,
        )

    def _fail(self, key: EpisodeKey, worker: _Worker, error: Exception, books: Bookkeeper) -> None:
        """Record an episode that something outside of it ended, and let it be tried again."""
        self._schedule.forget(worker.number)
        self._attempts[key] += 1
        retry = self._attempts[key] <= self.options.retries
        if retry:
            self._schedule.put_back(key)
        [task] = [task for task in self._plan.tasks if task.task_id == key.task_id]
        record = episode_record(self._plan, task, key, Rollout(), time.monotonic() - worker.since_s, error)
        books.add_episode(record, retry=retry, cause=error)

    def _may_hang(self, host: _Host) -> bool:
        """Return whether a policy still computes what an episode that took too long had asked for.

        One that has computed it for too long, or says nothing any more, is lost.
        """
        if host.suspected_s is None:
            return False
        try:
            computing_s: float = ray.get(host.handle.computing_s.remote(), timeout=REACH_S)
        except (GetTimeoutError, *DIED):
            computing_s = math.inf
        if computing_s < time.monotonic() - host.suspected_s:
            host.suspected_s = None
            return False
        if computing_s > self.options.episode_timeout_s / 2:
            self._lose(host)
            self._end_lost(host)
        return True

    def _kill_overdue(self) -> None:
        """Kill workers that hang; their answers say that they died."""
        now_s = time.monotonic()
        for worker in self._running.values():
            if not worker.overdue and now_s - worker.since_s > self.options.episode_timeout_s:
                worker.overdue = True
                if worker.host is not None:
                    worker.host.suspected_s = now_s
                ray.kill(worker.handle, no_restart=True)


def _missing(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that have not come."""
    return ray.wait(list(answers), num_returns=len(answers), timeout=0)[1] if answers else []


def _same(simulators: Sequence[Simulator]) -> Mapping[str, Any]:
    """Return what all workers simulate with; raise Changed where one does not."""
    first = simulators[0].about
    for other in simulators[1:]:
        other.refuse_unlike(first)
    return first


def _reach(address: str) -> None:
    """Raise OSError for an address where nobody listens: Ray would wait for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise RunnerError(f"runner.address must be HOST:PORT or auto, got {address!r}")
    with socket.create_connection((host, int(port)), timeout=REACH_S):
        pass


def _film_writer(result: Result) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if result.film is None:
            raise RuntimeError(result.film_error)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(result.film)
        partial.replace(path)

    return write


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what SIGTERM does: Ray would end the process without a summary."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
