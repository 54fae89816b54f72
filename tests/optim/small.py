"""The small random network and the checkpoint that ships, and inputs of stages with random images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optim.base import Args, StageContext
from optim.eager import eager_stages
from policies.base import EpisodeKey, Observation, Request
from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy
from policies.pi05.random_weights import TOKENIZER_PATH

SHIPPED = TOKENIZER_PATH.parent


def random_checkpoint(device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any) -> Checkpoint:
    """Load the small random network, three Euler steps."""
    options: dict[str, Any] = {
        "name": "random_small",
        "layout": "random",
        "sizes": "small",
        "norm_mode": "quantile",
        "state_in_prompt": False,
        "horizon": 10,
        "replan_steps": 5,
        "denoise_steps": 3,
    }
    return load_checkpoint(CheckpointConfig(**(options | changes)), device, dtype)


def reference_checkpoint(
    device: str = "cpu", dtype: torch.dtype = torch.float32, folder: Path = SHIPPED
) -> Checkpoint:
    """Load the checkpoint that ships, or another of its kind."""
    config = CheckpointConfig(
        name="reference",
        layout="native",
        path=str(folder),
        norm_mode="quantile",
        state_in_prompt=False,
        horizon=10,
        replan_steps=5,
        denoise_steps=10,
    )
    return load_checkpoint(config, device, dtype)


def random_request(seed: int, instruction: str = "pick up the black bowl") -> Request:
    """Make a request with random images."""
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        for name in ("agentview_image", "robot0_eye_in_hand_image")
    }
    observation = Observation(images, rng.uniform(-1, 1, 8), instruction)
    return Request(observation, EpisodeKey("libero_spatial", 0, seed, 7), 0)


def eager_policy(checkpoint: Checkpoint, form: str = "lean", prompt_multiple: int = 1) -> Pi05Policy:
    """The checkpoint's stages as they are."""
    return Pi05Policy.from_checkpoint(
        checkpoint,
        eager_stages(checkpoint.stages),
        name="baseline",
        form=form,
        prompt_multiple=prompt_multiple,
    )


def sources(
    checkpoint: Checkpoint, requests: list[Request], form: str = "lean", prompt_multiple: int = 1
) -> dict[str, StageContext]:
    """What each stage's backend gets, calibrated on the requests themselves."""
    examples = eager_policy(checkpoint, form, prompt_multiple).example_inputs(
        [[request] for request in requests]
    )
    return {
        name: StageContext(
            name,
            checkpoint.stages[name],
            examples[name],
            _amax(checkpoint.stages[name], examples[name]),
            checkpoint.weights_sha256,
        )
        for name in STAGES
    }


def _amax(stage: torch.nn.Module, examples: list[Args]) -> dict[str, float]:
    amax: dict[str, float] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            amax[name] = max(amax.get(name, 0.0), args[0].abs().max().item())

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in stage.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for args in examples:
            stage(*args)
    for handle in handles:
        handle.remove()
    return amax
