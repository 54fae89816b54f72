"""A finished offline W&B run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.analysis.summary import summarise
from eval.records.reader import Run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.video import write_video
from eval.tracking.base import TrackedRun
from eval.tracking.wandb import WandbTracker

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


@pytest.fixture
def tracked(
    tmp_path: Path, home: Path, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> tuple[Path, list[InferenceRecord]]:
    """The folder of a finished offline run of three episodes, and its 120 inferences."""
    folder = tmp_path / "run"
    video = tmp_path / "a.mp4"
    write_video([np.zeros((16, 16, 3), np.uint8)] * 2, video, fps=20)
    tracker = WandbTracker(mode="offline", project="test")
    tracker.start(
        TrackedRun(
            {"policy": {"name": "full_optimized"}, "seed": 7}, "name", folder, "group", ["spatial", "x" * 99]
        )
    )
    outcomes: list[dict[str, Any]] = [{"success": True}, {"success": False}, {"error_type": "OSError"}]
    episodes, inferences = [], []
    for number, outcome in enumerate(outcomes):
        for call in range(40):
            ms = 20 + number + call / 128
            inference = make_inference(episode=number, call=call, infer_ms=ms, warmup=number == call == 0)
            tracker.log_inference(inference)
            inferences.append(inference)
        episodes.append(make_episode(episode=number, inferences=40, **outcome))
        tracker.log_episode(episodes[-1], video if number == 1 else None)
    tracker.finish(summarise(Run(run_json, tuple(episodes), tuple(inferences))).to_dict())
    return folder, inferences
