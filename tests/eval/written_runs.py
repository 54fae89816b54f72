"""Runs of one inference an episode, written by the real record writer."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.records.writer import RunWriter
from tests.eval.conftest import EPISODE, INFERENCE

STAGES = ("vision", "prefix", "denoise")


def run_json(policy: str, steps: int, count: int) -> dict[str, Any]:
    """What the runner writes into run.json, as far as a report reads it."""
    return {
        "config": {"shard": None},
        "overrides": [f"policy={policy}", f"denoise.steps={steps}"],
        "policy": {
            "device": "NVIDIA H200",
            "dtype": "bfloat16",
            "form": "lean",
            "denoise_steps": steps,
            "replan_steps": 5,
        },
        "weights_label": None,
        "gl_backend": "egl",
        "engagement": {stage: {"backend": policy, "calls": count, "misses": 0} for stage in STAGES},
        "provenance": {
            "git": {"commit": "0123456789abcdef", "dirty": False, "error": None},
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "tensorrt": None},
            "gpu": {"name": "NVIDIA H200", "driver": "580.159", "cuda": "13.0"},
        },
        "planned_episodes": count,
        "tracking_error": None,
        "video_error": None,
        "finished": True,
    }


def write_run(
    folder: Path,
    *,
    policy: str = "baseline",
    steps: int = 10,
    count: int = 200,
    suite: str = EPISODE.suite,
    infer_ms: float = 20.0,
    failures: Iterable[int] = (),
    errors: Iterable[int] = (),
    under_load: bool = False,
    run: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run of `count` episodes spread over ten tasks; return its folder."""
    failed, raised = set(failures), set(errors)
    with RunWriter(folder) as writer:
        writer.write_run(run_json(policy, steps, count) | dict(run or {}))
        for i in range(count):
            key = {"suite": suite, "task_id": i % 10, "episode": i // 10}
            ms = infer_ms * (1 + (i % 7) / 100)
            timing = {
                "infer_ms": ms,
                "stage_ms": dict.fromkeys(STAGES, ms / 4),
                "backends": dict.fromkeys(STAGES, policy),
                "under_load": under_load,
            }
            writer.add_inference(replace(INFERENCE, **key, **timing))
            outcome: dict[str, Any] = {"success": i not in failed}
            if i in raised:
                outcome = {"success": None, "error_type": "OSError", "error_message": "GL context lost"}
            task = {"instruction": f"task {key['task_id']}", "policy": policy, "inferences": 1}
            writer.add_episode(replace(EPISODE, **key, **task, **(outcome | changes)))
    return folder
