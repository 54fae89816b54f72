"""Compare a lerobot folder with inputs and outputs that lerobot recorded beside it, in io.safetensors.

`in.agentview_image` and `in.wrist_image` (B, H, W, 3) uint8, rotated as the policy sees them, `in.state`
(B, 8) float64, `in.noise` (B, horizon, 32); `out.tokens` (B, T), `out.images` (n <= B, cameras, 3, size,
size) in levels 0 to 255, `out.normalised_actions` and `out.actions` (B, horizon, 7). prompts.json lists B
instructions.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.base import ACTION_DIM, Observation
from policies.files import read_json
from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.comparison import Comparison, check_tensors, compare_output, read_recording
from policies.pi05.dims import FORMS, Pi05Dims
from policies.pi05.norm_stats import STATE_DIM
from policies.pi05.policy import run_stages
from policies.pi05.timing import StageTimer
from policies.text import brief

RECORDING, PROMPTS = "io.safetensors", "prompts.json"
# The largest difference in float32: no token, a fifth of a level, a ten-thousandth of an action.
BOUNDS = {"out.tokens": 0.0, "out.images": 0.2, "out.normalised_actions": 1e-4, "out.actions": 1e-4}


def is_lerobot(folder: Path) -> bool:
    """Whether a folder has lerobot's form."""
    return (folder / RECORDING).is_file()


@torch.no_grad()
def compare_lerobot(folder: Path, device: torch.device) -> list[Comparison]:
    """Prepare, infer and unnormalise the recorded inputs, and compare each output, in both forms.

    Raises FileNotFoundError or ValueError where the checkpoint does not load, or the recording lacks a tensor
    or has one of another shape.
    """
    checkpoint = load_checkpoint(
        CheckpointConfig(
            name="parity",
            layout="lerobot",
            path=str(folder),
            norm_mode=None,
            state_in_prompt=True,
            horizon=None,
            replan_steps=None,
            denoise_steps=None,
        ),
        device,
    )
    recorded = _read(folder / RECORDING, checkpoint.dims)
    observations = _observations(recorded, folder / PROMPTS)
    results = []
    for form in FORMS:
        outputs = _run(checkpoint, observations, recorded["in.noise"].to(device), form)
        outputs["out.images"] = outputs["out.images"][: len(recorded["out.images"])]
        results += [
            compare_output(form, name, outputs[name].cpu(), recorded[name], bound)
            for name, bound in BOUNDS.items()
        ]
    return results


def _run(
    checkpoint: Checkpoint, observations: list[Observation], noise_BHA: Tensor, form: str
) -> dict[str, Tensor]:
    dims = checkpoint.dims
    inputs = checkpoint.preprocess()(observations, form)
    actions_BHA, _ = run_stages(checkpoint.stages, inputs, lambda: noise_BHA, StageTimer(checkpoint.device))
    live = [dims.cameras.index(camera) for camera in dims.live_cameras] if form == "full" else slice(None)
    return {
        "out.tokens": F.pad(inputs.tokens_BT, (0, dims.max_token_len - inputs.tokens_BT.shape[1])),
        "out.images": (inputs.images_BNCHW[:, live] + 1.0) / 2.0 * 255.0,
        "out.normalised_actions": actions_BHA[..., :ACTION_DIM],
        "out.actions": torch.from_numpy(checkpoint.postprocess()(actions_BHA.cpu().numpy())),
    }


def _read(path: Path, dims: Pi05Dims) -> dict[str, Tensor]:
    recorded = read_recording(path, "lerobot")
    expected: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
        "in.state": (torch.float64, (None, STATE_DIM))
    }
    batch = len(recorded["in.state"]) if "in.state" in recorded else None
    image = (torch.uint8, (batch, None, None, 3))
    actions = (torch.float32, (batch, dims.action_horizon, ACTION_DIM))
    size = dims.image_size
    expected |= {
        "in.agentview_image": image,
        "in.wrist_image": image,
        "in.noise": (torch.float32, (batch, dims.action_horizon, dims.action_dim)),
        "out.tokens": (torch.int64, (batch, dims.max_token_len)),
        "out.images": (torch.float16, (None, len(dims.live_cameras), 3, size, size)),
        "out.normalised_actions": actions,
        "out.actions": actions,
    }
    if missing := sorted(expected.keys() - recorded.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}; record them too")
    check_tensors(recorded, expected, path)
    return recorded


def _observations(recorded: dict[str, Tensor], prompts: Path) -> list[Observation]:
    states = recorded["in.state"].numpy()
    instructions = read_json(prompts)
    is_list = isinstance(instructions, list) and all(map(_is_text, instructions))
    if not is_list or len(instructions) != len(states):
        raise ValueError(f"{prompts} must list {len(states)} instructions, got {brief(instructions)}")
    return [
        Observation(
            {
                "agentview_image": recorded["in.agentview_image"][i].numpy(),
                "robot0_eye_in_hand_image": recorded["in.wrist_image"][i].numpy(),
            },
            states[i],
            instruction,
        )
        for i, instruction in enumerate(instructions)
    ]


def _is_text(value: object) -> bool:
    """Whether a value is text that a tokenizer can spell: JSON may hold halves of a character."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value
