"""Record demonstrations of the scripted oracle: `python -m policies.reference.demos OUT --episodes N`.

`--suites` names LIBERO's suites; their tasks take turns, seed by seed.

Every episode starts from placements drawn with a seed of its own, never from an official initial state.
Expert segments alternate with disturbances (pushes, a flipped gripper, or a policy in training), so that the
data cover recovery. Only moments of expert segments are recorded, labelled with what the oracle did next.
An episode goes on after success, so that letting go and going away are seen.

Files: one `.npz` per episode, whole or absent, so an interrupted run goes on where it stopped. Images are the
two cameras at the network's size, zlib-compressed without loss.

F recorded moments, T control steps, H horizon, J 7 action dims.
"""

import argparse
import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare
from eval.sim.tasks import Task, load_tasks
from policies.base import ACTION_DIM, EpisodeKey, Observation, Policy, Request
from policies.files import replacing
from policies.oracle import OraclePolicy
from policies.pi05.preprocess import CAMERA_SOURCES, resize_with_pad
from policies.reference.learner import load_learner
from policies.reference.sizes import DIMS
from policies.reference.targets import targets
from policies.seeding import stable_seed

CAMERAS = tuple(CAMERA_SOURCES.values())
# disturbances cost time: the evaluation's bound (conf/suite) and a half
MAX_STEPS = {"libero_spatial": 330, "libero_object": 420, "libero_goal": 450, "libero_10": 780}
DEFAULT_SUITES = ("libero_spatial", "libero_object", "libero_goal")
LOOK_EVERY = 2  # control steps between recorded moments: neighbours look alike
MIN_LABELS = 5  # expert steps that must follow a recorded moment: as many as are executed before replanning
EPISODES_A_ROUND = 800  # after which every worker has been at all its tasks
LEARNER_VISITS = 3  # at most, an episode: the oracle must still come to an end
AFTERWARDS = 24  # steps after success: the fingers open and the hand goes away
FAULTS = (ValueError, KeyError, RuntimeError, ArithmeticError)  # of one episode: the next may be recorded


@dataclass(frozen=True)
class Disturbance:
    """For `steps` control steps, something other than the oracle acts."""

    steps: int
    push: NDArray[np.float64] | None  # constant (7,), gripper NaN: the oracle's; None: a policy acts


@dataclass(frozen=True)
class Demo:
    """One recorded episode."""

    suite: str
    task_id: int
    seed: int
    success: bool
    images_FNHWC: NDArray[np.uint8]  # the cameras in the network's order
    states_FS: NDArray[np.float64]  # (F, 8)
    truths_FX: NDArray[np.float64]  # see `policies.reference.targets`
    steps_F: NDArray[np.int64]  # control step of each moment
    num_labels_F: NDArray[np.int64]  # following actions that the oracle itself took, undisturbed
    actions_TJ: NDArray[np.float64]  # what the oracle answered at every step, executed or not


def save_demo(path: Path, demo: Demo) -> None:
    """Write one episode; the file appears only when it is complete."""
    blobs = [zlib.compress(image.tobytes(), 1) for image in demo.images_FNHWC]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            suite=demo.suite,
            task_id=demo.task_id,
            seed=demo.seed,
            success=demo.success,
            images=np.frombuffer(b"".join(blobs), np.uint8),
            sizes=np.array([len(blob) for blob in blobs]),
            image_shape=np.array(demo.images_FNHWC.shape[1:]),
            states=demo.states_FS,
            truths=demo.truths_FX,
            steps=demo.steps_F,
            num_labels=demo.num_labels_F,
            actions=demo.actions_TJ,
        )


def load_demo(path: Path, *, images: bool = True) -> Demo:
    """Read one episode; without `images` there are none, which is quick."""
    with np.load(path) as file:
        shape = tuple(file["image_shape"])
        pictures = np.zeros((0, *shape), np.uint8)
        if images and len(file["sizes"]):
            ends = np.cumsum(file["sizes"])
            data = file["images"].tobytes()
            pictures = np.stack(
                [
                    np.frombuffer(zlib.decompress(data[end - size : end]), np.uint8).reshape(shape)
                    for size, end in zip(file["sizes"], ends, strict=True)
                ]
            )
        return Demo(
            suite=str(file["suite"]),
            task_id=int(file["task_id"]),
            seed=int(file["seed"]),
            success=bool(file["success"]),
            images_FNHWC=pictures,
            states_FS=file["states"],
            truths_FX=file["truths"],
            steps_F=file["steps"],
            num_labels_F=file["num_labels"],
            actions_TJ=file["actions"],
        )


def plan_disturbances(
    rng: np.random.Generator, max_steps: int, *, learner: bool
) -> list[tuple[int, Disturbance]]:
    """Draw (expert steps before it, disturbance) pairs for one episode; every fifth episode has none.

    A learner acts in up to `LEARNER_VISITS` of them, for longer.
    """
    if rng.random() < 0.2:
        return []
    plan = []
    visits = LEARNER_VISITS if learner else 0
    for _ in range(max_steps // 12):
        if visits and rng.random() < 0.6:
            visits -= 1
            before, steps = int(rng.integers(10, 30)), int(rng.integers(10, 60))
            plan.append((before, Disturbance(steps, None)))
            continue
        before = int(rng.integers(12, 36))
        push = np.full(ACTION_DIM, np.nan)
        direction = rng.normal(size=3)
        push[:3] = rng.uniform(0.2, 1.0) * direction / np.linalg.norm(direction)
        push[3:6] = rng.normal(0.0, 0.1, 3)
        if rng.random() < 0.1:
            push[6] = rng.choice([-1.0, 1.0])
        plan.append((before, Disturbance(int(rng.integers(2, 9)), push)))
    return plan


def record(env: LiberoEnv, seed: int, learner: Policy | None) -> Demo:
    """Run and record one episode from placements of its own; ValueError where they are official ones."""
    rng = np.random.default_rng(stable_seed("demo", seed))
    env.reset_randomly(stable_seed("demo placement", seed))
    check_not_official(env)
    max_steps = MAX_STEPS[env.task.suite]
    plan = plan_disturbances(rng, max_steps, learner=learner is not None)
    oracle = OraclePolicy()
    key = EpisodeKey(env.task.suite, env.task.task_id, seed, seed)
    is_expert: list[bool] = []
    answers, moments, images, states, truths = [], [], [], [], []
    queue: list[NDArray[np.float64]] = []
    calls, afterwards, success = 0, 0, False
    wait, disturbance, left = 0, None, 0
    while len(is_expert) < max_steps and afterwards < AFTERWARDS:
        step = len(is_expert)
        observation = env.observe(privileged=True)
        answer = oracle.infer([Request(observation, key, step)])[0].actions_HJ[0]
        answers.append(answer)
        if left == 0:
            disturbance = None
        if disturbance is None and plan and not success:
            wait += 1
            if wait > plan[0][0]:
                _, disturbance = plan.pop(0)
                left, wait, queue = disturbance.steps, 0, []
        if disturbance is None:
            action = answer
            if step % LOOK_EVERY == 0:
                moments.append(step)
                images.append(network_images(env.observe(CAMERAS)))
                states.append(observation.state)
                assert observation.truth is not None
                truths.append(targets(observation.truth))
        elif disturbance.push is not None:
            action = np.where(np.isnan(disturbance.push), answer, disturbance.push)
        else:
            assert learner is not None
            if not queue:
                request = Request(env.observe(CAMERAS), key, calls)
                queue = list(learner.infer([request])[0].actions_HJ[: learner.replan_steps])
                calls += 1
            action = np.clip(queue.pop(0), -1.0, 1.0)
        is_expert.append(disturbance is None)
        left = max(0, left - 1)
        success = env.step(action) or success
        afterwards += success
    labels = np.array([count_labels(is_expert, step) for step in moments], np.int64)
    keep = labels >= MIN_LABELS
    return Demo(
        suite=env.task.suite,
        task_id=env.task.task_id,
        seed=seed,
        success=success,
        images_FNHWC=np.stack(images)[keep],
        states_FS=np.stack(states)[keep],
        truths_FX=np.stack(truths)[keep],
        steps_F=np.array(moments, np.int64)[keep],
        num_labels_F=labels[keep],
        actions_TJ=np.stack(answers),
    )


def count_labels(is_expert: Sequence[bool], step: int) -> int:
    """Count the expert's steps from `step` on up to the first break, at most a horizon."""
    count = 0
    while count < DIMS.action_horizon and step + count < len(is_expert) and is_expert[step + count]:
        count += 1
    return count


def network_images(observation: Observation) -> NDArray[np.uint8]:
    """The cameras in the network's order and size, uint8 (N, height, width, 3)."""
    images = np.stack([observation.images[name] for name in CAMERAS])
    resized = resize_with_pad(torch.from_numpy(images)[None], DIMS.image_size)
    return resized[0].permute(0, 2, 3, 1).to(torch.uint8).numpy()


def check_not_official(env: LiberoEnv) -> None:
    """Raise ValueError when an official initial state has the same joint positions as this start."""
    positions = env.start_state[1 : 1 + env.num_positions]
    official = env.task.init_states[:, 1 : 1 + env.num_positions]
    nearest = float(np.abs(official - positions).max(axis=1).min())
    if nearest < 1e-6:
        raise ValueError(
            f"a demonstration of {env.task.suite} task {env.task.task_id} starts from an official "
            "initial state"
        )


@dataclass(frozen=True)
class Job:
    suite: str
    task_id: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.suite}_task{self.task_id}_seed{self.seed}.npz"


def plan_jobs(num_tasks: Mapping[str, int], seeds: Iterable[int], workers: int) -> list[list[Job]]:
    """Deal the seeds to the workers: the tasks of all suites take turns, seed by seed.

    A worker stays with a task for a while, because an environment takes seconds to build; workers start with
    different tasks, so that a run that is cut short has seen all of them.
    """
    tasks = [(suite, task_id) for suite, count in num_tasks.items() for task_id in range(count)]
    jobs: list[list[Job]] = [[] for _ in range(workers)]
    for seed in seeds:
        jobs[seed % workers].append(Job(*tasks[seed % len(tasks)], seed))
    index = {task: i for i, task in enumerate(tasks)}
    for worker, mine in enumerate(jobs):
        mine.sort(
            key=lambda job: (
                job.seed // EPISODES_A_ROUND,
                (index[job.suite, job.task_id] - worker * 3) % len(tasks),
            )
        )
    return jobs


def work(out: Path, jobs: Sequence[Job], learner_folder: Path | None, seconds: float, worker: int) -> None:
    """Record episodes until they are done or the time is up; files that exist are kept.

    With several GPUs the workers take turns with them, for rendering and for the learner.
    """
    torch.set_num_threads(1)
    gpu = worker % max(1, torch.cuda.device_count())
    prepare(gpu)
    tasks = {suite: load_tasks(suite) for suite in {job.suite for job in jobs}}
    end = time.monotonic() + seconds
    env: LiberoEnv | None = None
    faults = 0
    for job in jobs:
        path = out / job.file
        if path.exists():
            continue
        if time.monotonic() > end:
            break
        env = _switch(env, tasks[job.suite][job.task_id])
        try:
            demo = record(env, job.seed, load_learner(learner_folder, gpu))
        except FAULTS as error:
            faults += 1
            _say(f"{path.name}: ERROR {type(error).__name__}: {error}")
            continue
        save_demo(path, demo)
        _say(
            f"{path.name}: {'success' if demo.success else 'FAILURE'}, {len(demo.actions_TJ)} steps, "
            f"{len(demo.steps_F)} moments"
        )
    if env is not None:
        env.close()
    if faults:
        sys.exit(f"error: {faults} episodes of worker {worker} raised; its output above says why")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _switch(env: LiberoEnv | None, task: Task) -> LiberoEnv:
    if env is not None and (env.task.suite, env.task.task_id) == (task.suite, task.task_id):
        return env
    if env is not None:
        env.close()
    return LiberoEnv(task)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record demonstrations of the scripted oracle.")
    parser.add_argument("out", type=Path, help="folder for one .npz per episode")
    parser.add_argument("--suites", nargs="+", choices=list(MAX_STEPS), default=list(DEFAULT_SUITES))
    parser.add_argument("--episodes", type=int, required=True, help="of all tasks together")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=1e6, help="stop starting episodes after this time")
    parser.add_argument("--learner", type=Path, help="checkpoint folder that takes part as soon as it exists")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    num_tasks = {suite: len(load_tasks(suite)) for suite in options.suites}
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(options.out, mine, options.learner, 60 * options.minutes, worker))
        for worker, mine in enumerate(plan_jobs(num_tasks, seeds, options.workers))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        sys.exit(f"error: {len(failed)} of {len(processes)} workers failed with {failed}")


if __name__ == "__main__":
    main()
