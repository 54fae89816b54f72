"""The network in training takes part in demonstrations (DAgger); improved weights are loaded again."""

from pathlib import Path

import torch

from optim.eager import eager_stages
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.policy import Pi05Policy
from policies.reference.sizes import DIMS

_loaded: dict[Path, tuple[int, Pi05Policy]] = {}


def load_learner(folder: Path | None, gpu: int = 0) -> Pi05Policy | None:
    """Load the policy in `folder` as it is now, or None before its first weights are there.

    It runs on the GPU of that number, or on the CPU of a machine without GPUs.
    """
    if folder is None:
        return None
    weights = folder / "model.safetensors"
    if not weights.exists():
        return None
    written_ns = weights.stat().st_mtime_ns
    if folder not in _loaded or _loaded[folder][0] != written_ns:
        config = CheckpointConfig(
            name="learner",
            layout="native",
            path=str(folder),
            norm_mode="quantile",
            state_in_prompt=False,
            horizon=DIMS.action_horizon,
            replan_steps=5,
            denoise_steps=4,  # enough for an action that is only a disturbance
        )
        cuda = torch.cuda.is_available()
        checkpoint = load_checkpoint(
            config, f"cuda:{gpu}" if cuda else "cpu", torch.bfloat16 if cuda else torch.float32
        )
        _loaded[folder] = (
            written_ns,
            Pi05Policy.from_checkpoint(checkpoint, eager_stages(checkpoint.stages), name="learner"),
        )
    return _loaded[folder][1]
