"""What a lerobot folder says decides what the policy does, by lerobot's formulas."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from policies.base import Observation, Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.denoise import Denoise
from policies.pi05.policy import Pi05Policy, run_stages
from policies.pi05.timing import StageTimer
from tests.policies.pi05.conftest import Counted
from tests.policies.pi05.folder import Folder

Load = Callable[..., Checkpoint]
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
PRE_STATS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POST_STATS = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
STATE_NUMBERS = np.linspace(-0.5, 0.6, 8)


def observe(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    names = ("agentview_image", "robot0_eye_in_hand_image")
    images = {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in names}
    return Observation(images, STATE_NUMBERS, "open the top drawer")


@torch.no_grad()
def act(checkpoint: Checkpoint, form: str = "lean") -> Tensor:
    """Normalised actions for one observation and one noise."""
    dims = checkpoint.dims
    noise = torch.randn(1, dims.action_horizon, dims.action_dim, generator=torch.Generator().manual_seed(0))
    inputs = checkpoint.preprocess()([observe()], form)
    actions, _ = run_stages(checkpoint.stages, inputs, lambda: noise, StageTimer(torch.device("cpu")))
    return actions


def denoise_of(checkpoint: Checkpoint) -> Denoise:
    stage = checkpoint.stages["denoise"]
    assert isinstance(stage, Denoise)
    return stage


def stated(checkpoint: Checkpoint, name: str) -> tuple[Any, str]:
    setting = checkpoint.provenance()["settings"][name]
    return setting["value"], setting["from"]


def test_num_inference_steps_are_the_euler_steps(saved: Folder, load_saved: Load) -> None:
    ten = load_saved()
    saved.edit_config(num_inference_steps=3)
    three = load_saved()
    assert denoise_of(three).timesteps == pytest.approx((1.0, 2 / 3, 1 / 3))
    with_three = {**ten.stages, "denoise": denoise_of(ten).with_steps(3)}
    assert torch.equal(act(three), act(replace(ten, stages=with_three)))
    assert (act(three) - act(ten)).abs().max() > 1e-2
    assert stated(three, "denoise_steps") == (3, "config.json num_inference_steps")


@pytest.mark.parametrize("changes", [{"min_period": 0.02}, {"max_period": 1.5}])
def test_periods_are_those_of_the_time_embedding(
    saved: Folder, load_saved: Load, changes: dict[str, float]
) -> None:
    before = load_saved()
    saved.edit_config(**changes)
    after = load_saved()
    shortest, longest = {"min_period": 4e-3, "max_period": 4.0, **changes}.values()
    denoise = denoise_of(after)
    angles = 0.7 * 2 * np.pi / (shortest * (longest / shortest) ** np.linspace(0, 1, 32))
    embedding = torch.tensor(np.concatenate((np.sin(angles), np.cos(angles))), dtype=torch.float32)
    silu = torch.nn.functional.silu
    condition = silu(denoise.time_mlp_out(silu(denoise.time_mlp_in(embedding))))
    expected = denoise.norm.dense(condition)
    got = denoise.modulations(torch.tensor([0.7], dtype=torch.float64))[-1, 0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (act(after) - act(before)).abs().max() > 1e-3


def test_n_action_steps_are_executed_before_the_next_inference(saved: Folder, load_saved: Load) -> None:
    saved.edit_config(n_action_steps=7)
    checkpoint = load_saved()
    stages = {name: Counted(stage) for name, stage in checkpoint.stages.items()}
    assert Pi05Policy.from_checkpoint(checkpoint, stages, name="x").replan_steps == 7
    assert stated(checkpoint, "replan_steps") == (7, "config.json n_action_steps")


def set_cameras(saved: Folder, *cameras: str, **changes: Any) -> None:
    """Give every file these cameras, in this order, before the state."""
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 256, 256]} for name in cameras}
    state = {"observation.state": {"type": "STATE", "shape": [8]}}
    saved.edit_config(input_features={**images, **state}, **changes)
    action = {"action": {"type": "ACTION", "shape": [7]}}
    saved.edit_step(PRE, "normalizer_processor", features={**images, **state, **action})


def test_cameras_come_in_the_order_of_input_features(saved: Folder, load_saved: Load) -> None:
    before = load_saved()
    images = before.preprocess()([observe()], "lean").images_BNCHW
    set_cameras(saved, "image2", "image")
    after = load_saved()
    assert torch.equal(after.preprocess()([observe()], "lean").images_BNCHW, images.flip(1))
    assert after.preprocess().cameras == ("robot0_eye_in_hand_image", "agentview_image")
    assert (act(after) - act(before)).abs().max() > 1e-3


@pytest.mark.parametrize(("camera", "source"), [("image", 0), ("image2", 1)])
def test_one_camera_is_one_image(saved: Folder, load_saved: Load, camera: str, source: int) -> None:
    both = load_saved().preprocess()([observe()], "full").images_BNCHW
    set_cameras(saved, camera)
    inputs = load_saved().preprocess()([observe()], "full")
    assert torch.equal(inputs.images_BNCHW, both[:, source : source + 1])


@pytest.mark.parametrize("written", [True, False])
def test_empty_cameras_are_masked_and_last(saved: Folder, load_saved: Load, written: bool) -> None:
    before = load_saved()
    names = ("empty_camera_0", "image", "image2") if written else ("image", "image2")
    set_cameras(saved, *names, empty_cameras=1)
    after = load_saved()
    inputs = after.preprocess()([observe()], "full")
    assert inputs.image_mask_BN is not None
    assert inputs.image_mask_BN.tolist() == [[True, True, False]]
    assert torch.equal(inputs.images_BNCHW[:, 2], torch.full((1, 3, 224, 224), -1.0))
    torch.testing.assert_close(act(after, "full"), act(before, "lean"), rtol=0, atol=1e-4)
    assert stated(after, "empty_cameras")[0] == 1


def test_a_camera_that_libero_lacks_is_masked_where_lerobot_masks_it(saved: Folder, load_saved: Load) -> None:
    set_cameras(saved, "right", "image", "image2")
    assert load_saved().dims.masked_cameras == ("observation.images.right",)
    set_cameras(saved, "right", "image")
    with pytest.raises(
        ValueError, match=r"has the cameras observation.images.right, observation.images.image"
    ):
        load_saved()
    set_cameras(saved, "base_0_rgb", "left_wrist_0_rgb")
    with pytest.raises(ValueError, match=r"lerobot's LIBERO has .*image, .*image2; give rename_map"):
        load_saved()


def test_rename_map_says_which_camera_feeds_which_feature(saved: Folder, load_saved: Load) -> None:
    set_cameras(saved, "base_0_rgb", "wrist", "right_wrist_0_rgb")
    names = {"image": "wrist", "image2": "base_0_rgb"}
    rename_map = {f"observation.images.{old}": f"observation.images.{new}" for old, new in names.items()}
    saved.edit_step(PRE, "rename_observations_processor", rename_map=rename_map)
    checkpoint = load_saved()
    assert checkpoint.preprocess().cameras == ("robot0_eye_in_hand_image", "agentview_image")
    assert stated(checkpoint, "cameras")[1] == "config.json input_features and rename_map"


@pytest.mark.parametrize(
    ("rename_map", "message"),
    [
        (
            {"observation.images.front": "observation.images.image"},
            "renames observation.images.front, but lerob",
        ),
        ({"observation.state": "observation.other"}, "renames observation.state, but lerobot's LIBERO has"),
        ({"observation.images.image": "observation.images.image2"}, "gives two cameras one name"),
        (3, "rename_map must be an object of names, got 3"),
    ],
)
def test_rename_map_that_nobody_knows_is_refused(
    saved: Folder, load_saved: Load, rename_map: Any, message: str
) -> None:
    saved.edit_step(PRE, "rename_observations_processor", rename_map=rename_map)
    with pytest.raises(ValueError, match=message):
        load_saved()


def test_tokenizer_length_is_that_of_the_full_form(saved: Folder, load_saved: Load) -> None:
    saved.edit_config(tokenizer_max_length=90)
    saved.edit_step(PRE, "tokenizer_processor", max_length=90)
    assert load_saved().preprocess()([observe()], "full").tokens_BT.shape == (1, 90)
    saved.edit_config(tokenizer_max_length=20)
    saved.edit_step(PRE, "tokenizer_processor", max_length=20)
    with pytest.raises(ValueError, match="prompt must have at most max_token_len=20 tokens"):
        load_saved().preprocess()([observe()], "full")


def test_image_resolution_must_be_that_of_the_weights(saved: Folder, load_saved: Load) -> None:
    saved.edit_config(image_resolution=[112, 112])
    with pytest.raises(
        ValueError, match=r"image_resolution of lerobot.* is 256 in the file, 64 as configured"
    ):
        load_saved()
    saved.edit_config(image_resolution=[224, 112])
    with pytest.raises(ValueError, match="image_resolution must be square, got 224x112"):
        load_saved()


def stats_of(saved: Folder, name: str) -> dict[str, Any]:
    return load_file(saved.path / name)


def words(checkpoint: Checkpoint, state: Any) -> list[int]:
    """The prompt of a normalised state."""
    return checkpoint.tokenizer.encode("open the top drawer", np.asarray(state, np.float64), 200)


def test_eps_and_statistics_of_the_preprocessor_normalise_the_state(saved: Folder, load_saved: Load) -> None:
    stats = stats_of(saved, PRE_STATS)
    mean, std = stats["observation.state.mean"], stats["observation.state.std"]
    for eps in (1e-8, 0.5):
        saved.edit_step(PRE, "normalizer_processor", eps=eps)
        checkpoint = load_saved()
        expected = (STATE_NUMBERS.astype(np.float32) - mean) / (std + np.float32(eps))
        assert checkpoint.preprocess().prompt(observe()) == words(checkpoint, expected)
        assert stated(checkpoint, "state_eps") == (eps, "policy_preprocessor.json eps")


def test_statistics_of_the_postprocessor_unnormalise_without_eps(saved: Folder, load_saved: Load) -> None:
    stats = stats_of(saved, POST_STATS)
    stats["action.mean"] = np.arange(7, dtype=np.float32)
    save_file(stats, saved.path / POST_STATS)
    saved.edit_step(POST, "unnormalizer_processor", eps=0.5)
    checkpoint = load_saved()
    chunk = np.full((1, 50, 32), 2.0, np.float32)
    expected = np.float32(2.0) * stats["action.std"] + stats["action.mean"]
    np.testing.assert_allclose(checkpoint.postprocess()(chunk)[0, 0], expected, rtol=1e-6)
    assert PRE_STATS in checkpoint.norm_stats.source
    assert POST_STATS in checkpoint.norm_stats.source
    state = stats_of(saved, PRE_STATS)["observation.state.mean"]
    np.testing.assert_array_equal(checkpoint.norm_stats.state["mean"], state)


def set_norm_map(saved: Folder, **modes: str) -> None:
    """Give every file this norm map."""
    norm_map = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD", **modes}
    saved.edit_config(normalization_mapping=norm_map)
    saved.edit_step(PRE, "normalizer_processor", norm_map=norm_map)
    saved.edit_step(POST, "unnormalizer_processor", norm_map=norm_map)


def test_quantiles_divide_by_their_range_and_by_eps_where_it_is_zero(saved: Folder, load_saved: Load) -> None:
    stats = stats_of(saved, POST_STATS)
    stats["action.q99"][0] = stats["action.q01"][0]
    save_file(stats, saved.path / POST_STATS)
    set_norm_map(saved, ACTION="QUANTILES")
    saved.edit_step(POST, "unnormalizer_processor", eps=0.25)
    width = stats["action.q99"] - stats["action.q01"]
    width[0] = 0.25
    checkpoint = load_saved()
    expected = np.float32(3.0) * width / 2 + stats["action.q01"]
    chunk = np.full((1, 50, 32), 2.0, np.float32)
    np.testing.assert_allclose(checkpoint.postprocess()(chunk)[0, 0], expected, rtol=1e-6)
    assert checkpoint.provenance()["norm_mode"] == "see settings"  # the state's is another
    assert stated(checkpoint, "action_norm") == ("quantile", "policy_postprocessor.json norm_map")
    assert stated(checkpoint, "state_norm") == ("mean_std", "policy_preprocessor.json norm_map")


def test_quantiles_of_the_state_are_those_of_the_prompt(saved: Folder, load_saved: Load) -> None:
    stats = stats_of(saved, PRE_STATS)
    set_norm_map(saved, STATE="QUANTILES")
    low, high = stats["observation.state.q01"], stats["observation.state.q99"]
    checkpoint = load_saved()
    expected = 2 * (STATE_NUMBERS.astype(np.float32) - low) / (high - low) - 1
    assert checkpoint.preprocess().prompt(observe()) == words(checkpoint, expected)


def test_statistics_of_another_length_are_refused(saved: Folder, load_saved: Load) -> None:
    stats = stats_of(saved, POST_STATS)
    stats["action.std"] = np.ones(32, np.float32)
    save_file(stats, saved.path / POST_STATS)
    with pytest.raises(ValueError, match=r"std must .*7 .*got .*32.*unnormalizer"):
        load_saved()


def test_both_embeddings_are_recorded(saved: Folder, load_saved: Load) -> None:
    value, source = stated(load_saved(), "embedding")
    assert (value, source) == (
        "embed_tokens",
        "model.safetensors stores lm_head too; lerobot reads embed_tokens",
    )
    saved.rewrite(lambda t: t.__delitem__("model.paligemma_with_expert.paligemma.lm_head.weight"))
    assert "embedding" not in load_saved().provenance()["settings"]


def test_policy_runs_one_inference_of_an_unchanged_folder(
    load_saved: Load, request_of: Callable[..., Request]
) -> None:
    checkpoint = load_saved()
    stages = {name: Counted(stage) for name, stage in checkpoint.stages.items()}
    policy = Pi05Policy.from_checkpoint(checkpoint, stages, name="x")
    (chunk,) = policy.infer([request_of(0)])
    assert chunk.actions_HJ.shape == (50, 7)
    assert (policy.replan_steps, policy.denoise_steps) == (10, 10)
