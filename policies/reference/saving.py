"""A training run's folder: the checkpoint, the frozen statistics, the state to resume from.

The checkpoint is in the native format; demonstrators (`policies.reference.learner`) load it while training
goes on.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.base import ACTION_DIM
from policies.files import replacing
from policies.pi05.checkpoint import save_checkpoint
from policies.pi05.checkpoint_layouts import assign, load_stages, meta_stages, save_weights
from policies.pi05.norm_stats import OPENPI_EPS, NormStats, read_json_stats
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.reference.data import actions_ahead
from policies.reference.demos import load_demo
from policies.reference.sizes import DIMS

STATE_FILE = "train_state.pt"
# of an action's quantiles: dims that hardly move must not be blown up, nor those that move in few tasks
MIN_HALF_RANGE = 0.3


def frozen_stats(demos: Path, out: Path, init: Path | None = None) -> NormStats:
    """Read the statistics in OUT, else those of the weights that the run starts from, else compute them from
    the data there are now; a run never changes them.

    Raises ValueError where there is no successful demonstration.
    """
    for folder in (out, init):
        if folder is not None and (folder / "norm_stats.json").exists():
            return read_json_stats(folder / "norm_stats.json")
    loaded = [load_demo(path, images=False) for path in sorted(demos.glob("*.npz"))]
    used = [demo for demo in loaded if demo.success and len(demo.steps_F)]
    if not used:
        raise ValueError(f"statistics need a successful demonstration, found none in {demos}")
    states = np.concatenate([demo.states_FS for demo in used])
    actions = np.concatenate([actions_ahead(demo, DIMS.action_horizon) for demo in used]).reshape(
        -1, ACTION_DIM
    )
    stats = {"state": _statistics(states), "actions": _statistics(actions)}
    middle = (stats["actions"]["q01"] + stats["actions"]["q99"]) / 2
    half = np.maximum((stats["actions"]["q99"] - stats["actions"]["q01"]) / 2, MIN_HALF_RANGE)
    stats["actions"] |= {"q01": middle - half, "q99": middle + half}
    return NormStats(stats["state"], stats["actions"], OPENPI_EPS, source="demonstrations", sha256="")


def _statistics(x: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    x64 = x.astype(np.float64)
    return {
        "mean": x64.mean(axis=0),
        "std": x64.std(axis=0),
        "q01": np.quantile(x64, 0.01, axis=0),
        "q99": np.quantile(x64, 0.99, axis=0),
    }


def save(
    out: Path,
    ema: Mapping[str, Tensor],
    stats: NormStats,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    elapsed_s: float,
) -> None:
    """Write the EMA as a native checkpoint in bfloat16, and the state to resume from."""
    stages = meta_stages(DIMS, 10)
    assign(
        stages,
        {
            stage: {name: ema[f"{stage}.{name}"].to(torch.bfloat16) for name in module.state_dict()}
            for stage, module in stages.items()
        },
    )
    weights = out / "model.safetensors"
    if weights.exists():  # the rest is frozen, and a demonstrator may be reading it
        save_weights(weights, stages)
    else:
        save_checkpoint(out, DIMS, stages, stats, TOKENIZER_PATH)
    state = {
        "learner": learner.state_dict(),
        "ema": dict(ema),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed_s": elapsed_s,
    }
    with replacing(out / STATE_FILE) as temporary:
        torch.save(state, temporary)


def resume(
    path: Path, learner: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load a run's state where there is one; return its steps and seconds."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["ema"].items():
        ema[name].copy_(value)
    return int(state["step"]), float(state["elapsed_s"])


def load_weights(stages: nn.ModuleDict, folder: Path, device: torch.device) -> None:
    """Start from a native checkpoint instead of random weights."""
    loaded = load_stages(folder / "model.safetensors", "", DIMS, 10, device, torch.float32)
    for name, stage in loaded.items():
        stages[name].load_state_dict(stage.state_dict())
