"""The local runner: errors are not failures, warm-up is counted once, engagement decides."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.analysis.summary import summarise
from eval.episodes.plan import Plan
from eval.records.episodes import Episodes
from eval.records.reader import Run, read_run
from eval.records.video import VideoMode
from eval.records.writer import RecordingError, RunWriter
from eval.runners.local import LocalRunner
from eval.runners.recorder import RunFailed, RunRecorder
from eval.sim.tasks import Task
from eval.tracking.base import NullTracker, SafeTracker
from policies.base import ActionChunk, EpisodeKey, Observation, Request

MAX_STEPS = 12


class FakeEnv:
    """Succeeds at step 7 of even episodes; its pixels and states are the step number."""

    def __init__(self, task: Task, *, seeding: str, render: bool) -> None:
        if "build" in task.bddl_file:
            raise RuntimeError("no such mesh")
        self.task, self.render_allowed = task, render

    def reset(self, key: EpisodeKey) -> None:
        self.key, self.step_number = key, 0

    def step(self, action: NDArray[np.float64]) -> bool:
        self.step_number += 1
        return self.key.episode % 2 == 0 and self.step_number == 7

    def observe(self, cameras: Sequence[str], *, privileged: bool) -> Observation:
        assert self.render_allowed or not cameras
        return Observation(
            {name: self.picture(self.step_number) for name in cameras}, np.zeros(8), self.task.language
        )

    @property
    def snapshot(self) -> int:
        return self.step_number

    def render(self, snapshot: int) -> NDArray[np.uint8]:
        if "render" in self.task.bddl_file:
            raise RuntimeError("GL context lost")
        return self.picture(snapshot)

    def picture(self, snapshot: int) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), snapshot, np.uint8)

    def state_vector(self) -> NDArray[np.float64]:
        return np.array([float(self.step_number)])

    def fixture_poses(self) -> NDArray[np.float64]:
        return np.array([float(self.key.episode)])

    def close(self) -> None:
        if "close" in self.task.bddl_file:
            raise RuntimeError("GL context lost")


class FakePolicy:
    """Stands still; raises in the episodes of `broken`."""

    name = "fake"
    cameras: tuple[str, ...] = ("agentview_image",)
    needs_privileged = False
    replan_steps = 5
    vision_ms = 1.0

    def __init__(self, broken: Sequence[int] = (), misses: int = 0) -> None:
        self.broken, self.misses, self.calls = broken, misses, 0

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        [request] = requests
        if request.episode.episode in self.broken and request.call == 1:
            raise FloatingPointError("actions are not finite")
        self.calls += 1
        return [ActionChunk(np.zeros((10, 7)), {"vision": self.vision_ms}, {"vision": "eager"})]

    def provenance(self) -> dict[str, Any]:
        return {}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {"vision": {"backend": "eager", "calls": self.calls, "misses": self.misses}}


@pytest.fixture
def do_run(tmp_path: Path) -> Callable[..., Run]:
    """Run a plan of two tasks with the fakes and return its records, also when the run fails."""

    def run(
        policy: FakePolicy,
        *,
        episodes: int = 3,
        fails: str | None = None,
        video: VideoMode = VideoMode.NONE,
        broken: str = "",
        **plan: Any,
    ) -> Run:
        tasks = [
            Task("libero_spatial", i, f"task {i}", "" if i else broken, np.zeros((50, 1))) for i in range(2)
        ]
        options: dict[str, Any] = {"max_errors": 2, "warmup_inferences": 3, "misses_allowed": False} | plan
        full = Plan(
            make_env=FakeEnv,
            tasks=tasks,
            episodes=Episodes("libero_spatial", (0, 1), 0, episodes, 7),
            seeding="paired",
            max_steps=MAX_STEPS,
            video=video,
            policy="fake",
            checkpoint=None,
            checkpoint_sha256=None,
            weights_label=None,
            **options,
        )
        with RunWriter(tmp_path / "run") as writer:
            runner = LocalRunner(policy, {})
            info = {"planned_episodes": full.num_episodes}
            recorder = RunRecorder(full, writer, SafeTracker(NullTracker()), info, runner.engagement)
            if fails is None:
                runner.run(full, recorder)
            else:
                with pytest.raises(RunFailed, match=fails):
                    runner.run(full, recorder)
            recorder.write_run()
        return read_run(tmp_path / "run")

    return run


def test_episodes_end_at_success_or_max_steps_and_replan_every_five(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy())
    assert [(e.task_id, e.episode, e.success, e.steps, e.inferences) for e in run.episodes] == [
        (task, episode, episode != 1, 12 if episode == 1 else 7, 3 if episode == 1 else 2)
        for task in range(2)
        for episode in range(3)
    ]
    assert run.run["finished"] is True


def test_crashed_episode_is_an_error_not_a_failure_and_the_run_goes_on(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy(broken=[0]))
    crashed = [e for e in run.episodes if e.episode == 0]
    assert [(e.success, e.error_type, e.error_message) for e in crashed] == [
        (None, "FloatingPointError", "actions are not finite")
    ] * 2
    total = summarise(run).total
    assert (total.successes, total.finished, total.errors) == (2, 4, 2)


def test_one_error_more_than_max_errors_stops_the_run(do_run: Callable[..., Run]) -> None:
    run = do_run(
        FakePolicy(broken=[0]), max_errors=1, fails="2 episodes raised, more than runner.max_errors=1"
    )
    assert len(run.episodes) == 4
    assert run.run["finished"] is False


def test_only_the_first_inferences_of_a_run_are_warm_up(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy())
    assert [record.warmup for record in run.inferences] == [True] * 3 + [False] * (len(run.inferences) - 3)


def test_a_backend_that_missed_fails_the_run(do_run: Callable[..., Run]) -> None:
    run = do_run(
        FakePolicy(misses=1), fails="a backend did not engage: vision: eager served 14 calls, missed 1"
    )
    assert run.run["finished"] is False
    assert len(run.episodes) == 6


@pytest.mark.parametrize("misses_allowed", [False, True])
def test_a_stage_that_nobody_reported_fails_the_run(
    do_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, misses_allowed: bool
) -> None:
    monkeypatch.setattr(FakePolicy, "engagement", lambda self: {})
    fails = "a backend did not engage: vision: no process could report how it was served"
    run = do_run(FakePolicy(), misses_allowed=misses_allowed, fails=fails)
    assert run.run["finished"] is False


def test_allowed_misses_are_recorded(
    do_run: Callable[..., Run],
) -> None:
    run = do_run(FakePolicy(misses=1), misses_allowed=True)
    assert (run.run["finished"], run.run["engagement"]["vision"]["misses"]) == (True, 1)


def test_the_same_episode_has_the_same_hashes_and_another_does_not(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy())
    hashes = {(e.task_id, e.episode): (e.actions_sha256, e.initial_state_sha256) for e in run.episodes}
    assert hashes[0, 0] == hashes[1, 0]
    assert hashes[0, 0][1] != hashes[0, 2][1]


def test_failures_get_their_video_afterwards(do_run: Callable[..., Run], tmp_path: Path) -> None:
    do_run(FakePolicy(), video=VideoMode.FAILURES)
    assert sorted(path.name for path in (tmp_path / "run" / "videos").iterdir()) == [
        f"libero_spatial-task{task}-episode1-seed7-failure.mp4" for task in range(2)
    ]


def test_a_disk_that_refuses_stops_the_run_instead_of_counting_an_error(
    do_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RunWriter, record: object) -> None:
        raise RecordingError("inferences.jsonl cannot be written: no space left")

    monkeypatch.setattr(RunWriter, "add_inference", refuse)
    with pytest.raises(RecordingError, match="no space left"):
        do_run(FakePolicy())


def test_a_video_that_cannot_be_made_costs_no_episode(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy(), video=VideoMode.FAILURES, broken="render")
    assert len(run.episodes) == 6
    assert run.run["video_error"] == (
        "libero_spatial-task0-episode1-seed7-failure.mp4: RuntimeError: GL context lost"
    )
    assert any("a video is missing" in warning for warning in summarise(run).warnings)


def test_an_environment_that_cannot_be_built_is_an_error_of_each_of_its_episodes(
    do_run: Callable[..., Run],
) -> None:
    run = do_run(FakePolicy(), broken="build", max_errors=3)
    assert [(e.task_id, e.error_message) for e in run.episodes] == [(0, "no such mesh")] * 3 + [(1, None)] * 3
    assert run.episodes[0].initial_state_sha256 is None


def test_an_environment_that_cannot_be_closed_loses_nothing(do_run: Callable[..., Run]) -> None:
    assert len(do_run(FakePolicy(broken=[1]), broken="close").episodes) == 6


def test_a_latency_that_cannot_be_is_an_error_of_its_episode(do_run: Callable[..., Run]) -> None:
    policy = FakePolicy()
    policy.vision_ms = 0.0
    run = do_run(policy, fails="3 episodes raised")
    assert run.episodes[0].error_message == (
        "libero_spatial-task0-episode0-seed7 call 0: vision_ms must be positive and finite, got 0.0"
    )


def test_a_run_in_which_no_episode_finished_fails(do_run: Callable[..., Run]) -> None:
    run = do_run(FakePolicy(broken=[0]), episodes=1, max_errors=9, fails="no episode finished: all 2 raised")
    assert run.run["finished"] is False
