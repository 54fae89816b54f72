"""Measure the scripted expert, task by task: `python -m tools.oracle_table OUT --suite libero_goal`.

Every task runs its official initial states, without cameras and, where asked, with Gaussian noise on the six
motion channels of each action. It writes `OUT/<suite>_noise<sd>.json` and a Markdown table beside it, as the
tasks finish. An episode that raises is an error with its words, and no failure.

    python -m tools.oracle_table OUT --suite libero_object --states 0-49 --noise 0.3 --processes 16
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from eval.analysis.statistics import Interval, wilson
from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare
from eval.sim.suites import SUITES
from eval.sim.tasks import Task, load_tasks
from policies.base import EpisodeKey, Request
from policies.files import ROOT, replacing
from policies.oracle import OraclePolicy
from policies.seeding import stable_seed

MOTION = 6  # channels of an action before the gripper's


@dataclass(frozen=True)
class Outcome:
    """One episode."""

    task: int
    state: int
    steps: int  # until success, or until it ended without
    success: bool
    phase: str  # of the expert in the last step
    error: str | None


@dataclass(frozen=True)
class Job:
    """States of one task, for one process."""

    suite: str
    task: int
    states: tuple[int, ...]
    noise: float
    seed: int
    max_steps: int


def run_episode(env: LiberoEnv, job: Job, state: int) -> Outcome:
    """Run one state; the noise is drawn from suite, task, state and seed."""
    key = EpisodeKey(job.suite, job.task, state, job.seed)
    policy, phase = OraclePolicy(), "start"
    rng = np.random.default_rng(stable_seed("oracle noise", job.suite, job.task, state, job.seed))
    try:
        env.reset(key)
        for step in range(job.max_steps):
            request = Request(env.observe(privileged=True), key, step)
            action = policy.infer([request])[0].actions_HJ[0]
            phase = str(policy.phase(key))
            action[:MOTION] = np.clip(action[:MOTION] + rng.normal(0.0, job.noise, MOTION), -1.0, 1.0)
            if env.step(action):
                return Outcome(job.task, state, step + 1, True, phase, None)
    except (ValueError, KeyError, RuntimeError, ArithmeticError) as error:
        return Outcome(job.task, state, 0, False, phase, f"{type(error).__name__}: {error}")
    return Outcome(job.task, state, job.max_steps, False, phase, None)


def run_job(job: Job) -> list[Outcome]:
    prepare()
    env = LiberoEnv(load_tasks(job.suite)[job.task], render=False)
    try:
        return [run_episode(env, job, state) for state in job.states]
    finally:
        env.close()


def table(outcomes: Sequence[Outcome], tasks: Sequence[Task], title: str) -> str:
    """Render a Markdown table: success with its 95 % Wilson interval, steps of successes, failures."""
    lines = [
        f"# {title}",
        "",
        "| task | success / n | 95 % Wilson | steps, median (most) | failed: state (phase) | errors |",
        "|---|---:|---:|---:|---|---|",
    ]
    for task in tasks:
        rows = sorted((o for o in outcomes if o.task == task.task_id), key=lambda o: o.state)
        if rows:
            lines.append(f"| {task.task_id} {task.language} | {_cells(rows)} |")
    lines.append(f"| all | {_cells(list(outcomes))} |")
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Outcome]) -> str:
    done = [o for o in rows if o.error is None]
    won = [o.steps for o in done if o.success]
    interval = wilson(len(won), len(done)) if done else Interval(0.0, 1.0)
    steps = f"{np.median(won):.0f} ({max(won)})" if won else "-"
    lost = [o for o in done if not o.success]
    few = ", ".join(f"{o.state} ({o.phase})" for o in lost[:5]) + (", ..." if len(lost) > 5 else "")
    errors = sorted({o.error for o in rows if o.error is not None})
    bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"{len(won)} / {len(done)} | {bounds} | {steps} | {few or '-'} | {'; '.join(errors) or '-'}"


def numbers(text: str) -> tuple[int, ...]:
    """Read `0-9` or `0,3,5`."""
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            return tuple(range(first, last + 1))
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"give 0-9 or 0,3,5, got {text!r}") from error


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools.oracle_table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the tables")
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--tasks", type=numbers, help="0-9 or 0,3; all of them by default")
    parser.add_argument("--states", type=numbers, default=tuple(range(50)), help="0-49 (default) or 0,3")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, in units of an action")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--states-a-job", type=int, default=10, help="a job builds an environment: 2 s")
    options = parser.parse_args(argv)
    if options.noise < 0:
        parser.error(f"--noise must be >= 0, got {options.noise}")
    for name in ("processes", "states_a_job"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    prepare()
    tasks = load_tasks(options.suite)
    chosen = options.tasks if options.tasks is not None else tuple(range(len(tasks)))
    if unknown := [i for i in chosen if not 0 <= i < len(tasks)]:
        raise SystemExit(f"--tasks must be 0 to {len(tasks) - 1} for {options.suite}, got {unknown}")
    max_steps = int(OmegaConf.load(ROOT / "conf" / "suite" / f"{options.suite}.yaml").max_steps)
    step = options.states_a_job
    jobs = [
        Job(options.suite, task, options.states[i : i + step], options.noise, options.seed, max_steps)
        for task in chosen
        for i in range(0, len(options.states), step)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.suite}_noise{options.noise:g}.json"
    title = f"The expert on {options.suite}, noise of sd {options.noise:g}, seed {options.seed}"
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, episodes in enumerate(pool.imap_unordered(run_job, jobs, chunksize=1), 1):
            outcomes += episodes
            with replacing(path) as temporary:
                temporary.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
            with replacing(path.with_suffix(".md")) as temporary:
                temporary.write_text(table(outcomes, tasks, title))
            won = sum(o.success for o in outcomes)
            sys.stdout.write(
                f"jobs {done}/{len(jobs)}, episodes {len(outcomes)}, success {won}, "
                f"{time.monotonic() - start:.0f} s\n"
            )
            sys.stdout.flush()
    sys.stdout.write("\n" + table(outcomes, tasks, title))


if __name__ == "__main__":
    main()
