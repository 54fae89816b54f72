"""The adapter acts as lerobot's own loop does, on small random policies, where lerobot is installed.

The loop is that of lerobot_eval.py: images as the simulator renders them, LiberoProcessorStep, the policy's
preprocessor, `select_action`, the postprocessor.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eval.sim.env import quat_to_axis_angle
from examples.my_policy.lerobot_policy import LeRobotPolicy
from policies.base import EpisodeKey, Observation, Request
from policies.seeding import stable_seed

pytest.importorskip("lerobot")

KEY = EpisodeKey("libero_spatial", 2, 3, 7)
TASK = "pick up the bowl"
CAMERAS = {"image": "agentview_image", "image2": "robot0_eye_in_hand_image"}
TOLERANCES = {
    "cpu": 1e-5,
    "cuda": 1e-3,
}  # cuDNN's convolutions are in TF32, and the states differ by rounding
SMALL_UNET = {
    "down_dims": (32, 64),
    "horizon": 8,
    "n_action_steps": 4,
    "num_train_timesteps": 5,
    "diffusion_step_embed_dim": 16,
    "spatial_softmax_num_keypoints": 8,
    "crop_shape": None,
}
SMALL = {
    "act": {
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "chunk_size": 12,
        "n_action_steps": 6,
    },
    "diffusion": SMALL_UNET,
    "vqbet": {
        "crop_shape": None,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
        "gpt_hidden_dim": 32,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "vqvae_embedding_dim": 16,
        "vqvae_enc_hidden_dim": 16,
    },
}


@pytest.fixture(autouse=True)
def fake_lerobot() -> None:
    """Leave the stand-in out."""


def save_random(kind: str, folder: Path, **options: Any) -> Any:
    """Save a random policy with its processors, as lerobot does; return its configuration."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    views = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in CAMERAS
    }
    if kind == "vqbet":  # takes one camera
        del views["observation.images.image2"]
    shapes = {"observation.state": 8, "action": 7}
    draw = torch.Generator().manual_seed(0)
    stats = {
        key: {
            "mean": torch.randn(size, generator=draw),
            "std": 0.5 + torch.rand(size, generator=draw),
            "min": -1 - torch.rand(size, generator=draw),
            "max": 1 + torch.rand(size, generator=draw),
        }
        for key, size in (*shapes.items(), *((key, (3, 1, 1)) for key in views))
    }
    config = make_policy_config(
        kind,
        input_features={**views, "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        device="cpu",
        pretrained_backbone_weights=None,
        **SMALL[kind],
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        get_policy_class(kind)(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return config


class LeRobotLoop:
    """One episode, as lerobot_eval.py runs it."""

    def __init__(self, config: Any, folder: Path, device: str) -> None:
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config.device = device
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        self.before, self.after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": device}},
        )
        self.policy.reset()

    def act(self, raw: dict[str, Any], seed: int) -> NDArray[np.float32]:
        from lerobot.envs.utils import preprocess_observation
        from lerobot.processor.env_processor import LiberoProcessorStep

        seen = preprocess_observation(raw)
        seen = self.before({**LiberoProcessorStep().observation(seen), "task": [TASK]})
        torch.manual_seed(seed)
        with torch.inference_mode():
            return self.after(self.policy.select_action(seen))[0].numpy()


def draw_moment(draw: np.random.Generator) -> tuple[dict[str, Any], Observation]:
    """Draw one moment as lerobot's environment gives it, and as the harness does."""
    images = {name: draw.integers(0, 256, (256, 256, 3), np.uint8) for name in CAMERAS}
    position, quat, gripper = draw.standard_normal(3), draw.standard_normal(4), draw.random(2)
    quat /= np.linalg.norm(quat)
    raw = {
        "pixels": {name: image[None] for name, image in images.items()},
        "robot_state": {
            "eef": {"pos": position[None], "quat": quat[None]},
            "gripper": {"qpos": gripper[None]},
        },
    }
    rotated = {CAMERAS[name]: np.ascontiguousarray(image[::-1, ::-1]) for name, image in images.items()}
    state = np.concatenate([position, quat_to_axis_angle(quat), gripper])
    return raw, Observation(rotated, state, TASK)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("kind", "options"), [("act", {}), ("diffusion", {"n_obs_steps": 1}), ("diffusion", {}), ("vqbet", {})]
)
def test_the_adapter_acts_as_lerobots_loop_does(
    kind: str, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    config = save_random(kind, tmp_path, **options)
    policy = LeRobotPolicy(str(tmp_path), device=device)
    loop = LeRobotLoop(config, tmp_path, device)
    steps = config.action_chunk_size if kind == "vqbet" else config.n_action_steps
    draw = np.random.default_rng(5)
    actions: list[NDArray[np.float64]] = []
    for step in range(2 * steps + 2):
        raw, observation = draw_moment(draw)
        call = step // policy.replan_steps
        if step % policy.replan_steps == 0:
            [chunk] = policy.infer([Request(observation, KEY, call)])
            actions = list(chunk.actions_HJ)
        drawn_in = step // steps * steps // policy.replan_steps  # the call that drew the noise
        seed = stable_seed("noise", KEY.seed, KEY.suite, KEY.task_id, KEY.episode, drawn_in)
        np.testing.assert_allclose(actions.pop(0), loop.act(raw, seed), atol=TOLERANCES[device])


def test_a_policy_with_a_plan_of_its_last_call_is_refused(tmp_path: Path) -> None:
    from lerobot.policies.factory import make_policy_config

    config = make_policy_config("tdmpc", device="cpu")
    config.save_pretrained(tmp_path)
    for name in ("model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="type tdmpc keep the plan of its last call"):
        LeRobotPolicy(str(tmp_path), device="cpu")
