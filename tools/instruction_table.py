"""Does a policy read its task? `python -m tools.instruction_table OUT`: every scene under every instruction.

The tasks of libero_goal share their objects. In the scene of each task the policy is told the instruction of
each, and the episode ends when that goal holds, or out of time. The table counts in the row of a scene how
often the goal of each column's instruction was reached; what was reached instead is listed below it. An
initial state in which the goal holds already is counted as no trial.

    python -m tools.instruction_table OUT --policy baseline --states 0-1 --processes 10 checkpoint.path=FOLDER
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from eval.api import LoadedPolicy, load_policy
from eval.sim.env import LiberoEnv
from eval.sim.stack import prepare, quiet
from eval.sim.tasks import Task, load_tasks
from policies.base import EpisodeKey, Request
from policies.chunking import ActionQueue
from policies.files import ROOT, write_atomic
from tools.cells import visible_gpus
from tools.oracle_table import numbers

SUITE = "libero_goal"


@dataclass(frozen=True)
class Trial:
    """One episode: the scene of one task, the instruction of another."""

    scene: int
    told: int
    state: int
    steps: int
    reached: list[int]  # the tasks whose goals held at some step, in this order


def goals_of(tasks: Sequence[Task]) -> list[Any]:
    """The predicates that LIBERO reads out of each task's file."""
    with quiet():
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        return [robosuite_parse_problem(task.bddl_file)["goal_state"] for task in tasks]


def held(env: LiberoEnv, goals: Sequence[Any]) -> list[int]:
    """The tasks whose goals hold now, by LIBERO's own predicates."""
    return [
        i for i, goal in enumerate(goals) if all(env._env._eval_predicate(predicate) for predicate in goal)
    ]


def run_trial(
    env: LiberoEnv,
    policy: LoadedPolicy,
    told: Task,
    state: int,
    goals: Sequence[Any],
    max_steps: int,
    seed: int,
) -> Trial | None:
    """Run one episode; None where the goal that is told holds at the start."""
    key = EpisodeKey(env.task.suite, env.task.task_id, state, seed)
    env.reset(key)
    reached = held(env, goals)
    if told.task_id in reached:
        return None
    before, calls = len(reached), 0
    queue = ActionQueue(policy.policy.replan_steps)
    for step in range(max_steps):
        if not len(queue):
            seen = replace(env.observe(policy.policy.cameras), instruction=told.language)
            queue.refill(policy.infer([Request(seen, key, calls)])[0])
            calls += 1
        env.step(queue.pop())
        reached += [task for task in held(env, goals) if task not in reached]
        if told.task_id in reached:
            return Trial(env.task.task_id, told.task_id, state, step + 1, reached[before:])
    return Trial(env.task.task_id, told.task_id, state, max_steps, reached[before:])


def work(options: argparse.Namespace, scenes: Sequence[int], gpu: str | None) -> None:
    """Run the trials of some scenes and write a file for each scene."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(1)
    prepare()
    tasks = load_tasks(SUITE)
    goals = goals_of(tasks)
    policy = load_policy(options.policy, *options.overrides, suite=SUITE)
    for scene in scenes:
        env = LiberoEnv(tasks[scene])
        trials = [
            trial
            for state in options.states
            for told in tasks
            if (trial := run_trial(env, policy, told, state, goals, options.max_steps, options.seed))
            is not None
        ]
        env.close()
        text = json.dumps([asdict(trial) for trial in trials], indent=1) + "\n"
        write_atomic(options.out / f"scene{scene}.json", text)
        won = sum(trial.told in trial.reached for trial in trials)
        sys.stdout.write(f"scene {scene}: {won} of {len(trials)}\n")
        sys.stdout.flush()


def table(trials: Sequence[Trial], tasks: Sequence[Task]) -> str:
    """Render a Markdown table, scenes down and instructions across, and what was reached instead."""
    ids = [task.task_id for task in tasks]
    lines = [
        "| scene \\\\ told | " + " | ".join(map(str, ids)) + " | all |",
        "|---|" + "---:|" * (len(ids) + 1),
    ]
    for scene in ids:
        row = [t for t in trials if t.scene == scene]
        cells = [_count([t for t in row if t.told == told]) for told in ids]
        lines.append(f"| {scene} {tasks[scene].language} | {' | '.join(cells)} | {_count(row)} |")
    whole = [_count([t for t in trials if t.told == told]) for told in ids]
    lines.append(f"| all | {' | '.join(whole)} | {_count(trials)} |")
    instead = Counter((t.told, other) for t in trials if t.told not in t.reached for other in t.reached)
    lines += ["", "Reached instead:", ""]
    lines += [
        f"- told {told} ({tasks[told].language}), reached {other} ({tasks[other].language}): {count}"
        for (told, other), count in sorted(instead.items())
    ] or ["- nothing"]
    return "\n".join(lines) + "\n"


def _count(trials: Sequence[Trial]) -> str:
    return f"{sum(t.told in t.reached for t in trials)} / {len(trials)}" if trials else "-"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tools.instruction_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder of the trials and the table")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as checkpoint.path=FOLDER")
    parser.add_argument("--policy", default="baseline")
    parser.add_argument("--scenes", type=numbers, default=tuple(range(10)), help="0-9 (default) or 0,3")
    parser.add_argument("--states", type=numbers, default=(0, 1), help="0-1 (default) or 0,3")
    usual = int(OmegaConf.load(ROOT / "conf" / "suite" / f"{SUITE}.yaml").max_steps)
    parser.add_argument("--max-steps", type=int, default=usual)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_intermixed_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = visible_gpus()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(options, scenes, gpus[i % len(gpus)]))
        for i in range(options.processes)
        if (scenes := options.scenes[i :: options.processes])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = [json.loads(path.read_text()) for path in sorted(options.out.glob("scene*.json"))]
    text = table([Trial(**row) for part in rows for row in part], load_tasks(SUITE))
    write_atomic(options.out / "table.md", text)
    sys.stdout.write(text)
    if failed := [process.exitcode for process in processes if process.exitcode]:
        sys.exit(f"error: {len(failed)} of {len(processes)} processes failed with {failed}")


if __name__ == "__main__":
    main()
