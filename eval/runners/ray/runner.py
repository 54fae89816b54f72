"""The Ray runner: many episodes at once, each in a process of its own, served by policies that batch.

It records what the local runner records, as long as a request is served alone (`runner.max_batch=1`): in a
batch the last bits of an action depend on the others in it.

Non-obvious behaviors:
    * An episode's inferences are recorded with it, when it has ended.
    * A worker that dies, hangs or loses its policy leaves an error in the records. Its episode is tried again
      up to `runner.retries` times, and only the last error counts towards `runner.max_errors`. An exception
      of simulator or policy is the episode's outcome, as with the local runner, and is not tried again.
    * An episode begins when its worker and its policy are ready: `runner.episode_timeout_s` does not count
      the time in which a process starts or a policy is built.
    * After an episode that took too long, its policy gets no other while it computes the same batch. When
      that has taken half of an episode's limit, the policy is replaced.
    * A process in place of a lost one that is not ready after `runner.start_timeout_s` ends the run.
    * Ray restarts nothing: it would restart for ever what dies at each start. The runner replaces a policy
      process that dies, once, and each of its episodes has lost an attempt.
    * A policy whose backend serves no batches gets one request at a time whatever `runner.max_batch` is; a
      warning and run.json (`runner.one_at_a_time`) name the backend.
    * First, when every process is ready, `runner.quiet_episodes` episodes run alone: theirs are the latencies
      of one robot.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from eval.config.schema import RunnerConfig
from eval.episodes.plan import Plan
from eval.episodes.rollout import PolicyLost, Rollout
from eval.episodes.runner import episode_record
from eval.records.engagement import Engagement, join
from eval.runners.base import EpisodeTimeout
from eval.runners.ray.answers import DIED, Answer, exit_detail
from eval.runners.ray.cluster import Head
from eval.runners.ray.policy_server import PolicyFacts
from eval.runners.ray.processes import Launcher, PolicyProcess, WorkerProcess
from eval.runners.ray.schedule import InOrder, Schedule, Waiting
from eval.runners.ray.worker import Result
from eval.runners.recorder import RunFailed, RunRecorder
from policies.base import EpisodeKey
from policies.files import write_atomic

ANSWER_S = 10.0  # time limit for a policy's answer to `computing_s`
POLL_S = 1.0  # between two searches for overdue workers


class WorkerDied(RuntimeError):
    """The process that ran an episode ended."""


class RayRunner:
    """Runs episodes in Ray actors, on this machine or on a cluster.

    Args:
        launcher: starts processes in place of lost ones.
        policies, workers: are ready, but for workers that were started again.
        task_of: the tasks of workers that have an environment already.
        facts: of the policy.
        simulator: what every worker simulates with.
    """

    def __init__(
        self,
        options: RunnerConfig,
        launcher: Launcher,
        policies: Sequence[PolicyProcess],
        workers: Sequence[WorkerProcess],
        task_of: Mapping[int, int],
        facts: PolicyFacts,
        simulator: Mapping[str, Any],
    ) -> None:
        self.options = options
        self.about: Mapping[str, Any] = facts.about
        self.simulator = simulator
        self.facts: Mapping[str, Any] = {
            "name": "ray",
            "ray": ray.__version__,
            "nodes": sum(node["Alive"] for node in ray.nodes()),
            **{name: getattr(options, name) for name in ("workers", "policies", "max_batch", "max_wait_ms")},
            "batch_sizes": facts.batch_sizes,  # None: every size up to max_batch
            "one_at_a_time": facts.one_at_a_time,
        }
        self._launcher = launcher
        self._policies: list[PolicyProcess | None] = list(policies)  # None: lost
        self._workers = workers
        self._task_of = task_of
        self._facts = facts
        self._engaged: dict[str, Engagement] = {}  # by the process that reported it
        self._running: dict[Answer, WorkerProcess] = {}
        self._attempts: Counter[EpisodeKey] = Counter()

    def run(self, plan: Plan, recorder: RunRecorder) -> None:
        self._plan = plan
        self._plan_ref = ray.put(plan)
        scenes = {task.task_id: task.scene for task in plan.tasks}
        keys = [keys for _, keys in plan.todo()]
        self._schedule: Waiting = (
            Schedule(keys, self._task_of, scenes)
            if plan.order is None
            else InOrder(itertools.chain.from_iterable(keys), self._task_of, scenes)
        )
        quiet, head = self.options.quiet_episodes, Head()
        with recorder:
            while (self._schedule and not recorder.decided) or self._running:
                if not recorder.decided:
                    self._assign(recorder, quiet=quiet > 0)
                for answer in self._wait():
                    quiet -= 1
                    self._settle(answer, recorder)
                head.refuse_lost()
                self._kill_overdue()
                self._refuse_stuck()
        recorder.finish()

    def engagement(self) -> Engagement:
        """Sum the last report of every process."""
        return join(self._engaged.values())

    def close(self) -> None:
        """End every process that the runner started."""
        ray.shutdown()

    def _wait(self) -> list[Answer]:
        """Wait a while for episodes to end or processes to start; return the answers of ended episodes."""
        starts = [worker.started for worker in self._workers]
        builds = [policy.built for policy in self._policies if policy is not None]
        expected = [*self._running, *_missing([*starts, *builds])]
        if not expected:  # a policy that may hang
            time.sleep(POLL_S)
            return []
        return [answer for answer in ray.wait(expected, timeout=POLL_S)[0] if answer in self._running]

    def _refuse_stuck(self) -> None:
        """Raise RunFailed for a process in place of a lost one that does not start."""
        limit_s = self.options.start_timeout_s
        launched = {
            worker.started: (f"worker {worker.number}", worker.launched_s) for worker in self._workers
        }
        for policy in self._policies:
            if policy is not None:
                launched[policy.built] = ("a policy process", policy.launched_s)
        for answer in _missing(list(launched)):
            name, launched_s = launched[answer]
            if time.monotonic() - launched_s > limit_s:
                raise RunFailed(
                    f"{name} was started again and is not ready after runner.start_timeout_s={limit_s:g}; "
                    "raise it if that may take longer"
                )

    def _assign(self, recorder: RunRecorder, *, quiet: bool) -> None:
        """Give idle workers an episode; only the first worker where it is to be quiet."""
        workers = self._workers[:1] if quiet else self._workers
        for worker in workers:
            if self._schedule and worker.key is None:
                policy = self._policy_of(worker)
                if not _missing([worker.started, policy.built]) and not self._may_hang(policy):
                    self._begin(worker, policy, recorder, under_load=len(workers) > 1)

    def _begin(
        self, worker: WorkerProcess, policy: PolicyProcess, recorder: RunRecorder, *, under_load: bool
    ) -> None:
        key = self._schedule.next(worker.number)
        assert key is not None, "the schedule is not empty"
        worker.begin(key, policy)
        recorder.start_episode(key, self._plan.task(key).language)
        answer = worker.handle.run_episode.remote(
            self._plan_ref, policy.handle, self._facts, key, under_load, self.simulator
        )
        self._running[answer] = worker

    def _settle(self, answer: Any, recorder: RunRecorder) -> None:
        """Record how an episode ended, and replace processes that were lost with it."""
        worker = self._running.pop(answer)
        key, worker.key = worker.key, None
        assert key is not None, "a running worker has an episode"
        assert worker.policy is not None, "and a policy"
        try:
            result: Result = ray.get(answer)
        except RayTaskError as error:
            self._fail(key, worker, error.cause, recorder)
            if isinstance(error.cause, PolicyLost):
                self._lose(worker.policy)
        except DIED as error:
            if worker.overdue:
                limit_s = self.options.episode_timeout_s
                self._fail(
                    key, worker, EpisodeTimeout(f"runner.episode_timeout_s={limit_s:g} is over"), recorder
                )
            else:
                self._fail(key, worker, WorkerDied(exit_detail(error)), recorder)
            self._launcher.restart(worker)
        else:
            self._schedule.learn(key, result.record.wall_s)
            self._keep(result, recorder)
            if not result.served_by:  # it died after the last inference
                self._lose(worker.policy)
        if worker.overdue:  # killed when its answer had already left
            self._launcher.restart(worker)
        self._end_lost(worker.policy)

    def _policy_of(self, worker: WorkerProcess) -> PolicyProcess:
        """The policy process that a worker asks; a lost one is replaced."""
        index = worker.number % len(self._policies)
        policy = self._policies[index]
        if policy is None:
            policy = self._launcher.build_policy(self._launcher.start_policy_server())
            self._policies[index] = policy
        return policy

    def _lose(self, policy: PolicyProcess) -> None:
        """Mark a policy process, unless replaced already, to be replaced before it is asked again."""
        self._policies = [None if own is policy else own for own in self._policies]

    def _end_lost(self, policy: PolicyProcess) -> None:
        """End a lost policy process, as soon as no episode waits for its answers.

        It may be alive and keep its GPU. Killed earlier, it would leave errors that name the kill.
        """
        needed = [*self._policies, *(worker.policy for worker in self._running.values())]
        if all(other is not policy for other in needed):
            ray.kill(policy.handle, no_restart=True)

    def _keep(self, result: Result, recorder: RunRecorder) -> None:
        if result.served_by:
            self._engaged[result.served_by] = result.engagement
        for inference in result.inferences:
            recorder.add_inference(inference)
        has_video = result.video is not None or result.video_error is not None
        recorder.add_episode(
            result.record,
            first_frame_sha256=result.first_frame_sha256,
            write_video=_video_writer(result) if has_video else None,
        )

    def _fail(self, key: EpisodeKey, worker: WorkerProcess, error: Exception, recorder: RunRecorder) -> None:
        """Record an episode that something outside of it ended, and schedule it again."""
        self._schedule.forget(worker.number)
        self._attempts[key] += 1
        retry = self._attempts[key] <= self.options.retries
        if retry:
            self._schedule.put_back(key)
        record = episode_record(
            self._plan, self._plan.task(key), key, Rollout(), time.monotonic() - worker.since_s, error
        )
        recorder.add_episode(record, retry=retry, cause=error)

    def _may_hang(self, policy: PolicyProcess) -> bool:
        """Whether a policy still computes what an overdue episode had asked for.

        One that has computed it for too long, or says nothing any more, is lost.
        """
        if policy.suspected_s is None:
            return False
        try:
            computing_s: float = ray.get(policy.handle.computing_s.remote(), timeout=ANSWER_S)
        except (GetTimeoutError, *DIED):
            computing_s = math.inf
        if computing_s < time.monotonic() - policy.suspected_s:
            policy.suspected_s = None
            return False
        if computing_s > self.options.episode_timeout_s / 2:
            self._lose(policy)
            self._end_lost(policy)
        return True

    def _kill_overdue(self) -> None:
        """Kill workers that hang; their answers then report that they died."""
        now_s = time.monotonic()
        for worker in self._running.values():
            if not worker.overdue and now_s - worker.since_s > self.options.episode_timeout_s:
                worker.overdue = True
                if worker.policy is not None:
                    worker.policy.suspected_s = now_s
                ray.kill(worker.handle, no_restart=True)


def _missing(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that have not come."""
    return ray.wait(list(answers), num_returns=len(answers), timeout=0)[1] if answers else []


def _video_writer(result: Result) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if result.video is None:
            raise RuntimeError(result.video_error)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, result.video)

    return write
