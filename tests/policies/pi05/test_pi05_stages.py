"""What must hold of the three stages whatever the weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.denoise import Denoise, euler_timesteps
from policies.pi05.layers import MASKED, attend, mask_bias
from policies.pi05.policy import run_stages
from policies.pi05.preprocess import ModelInputs, assemble, prepare_images
from policies.pi05.timing import StageTimer

SHORT, LONG = [2, 40, 50, 60], [2, 40, 50, 60, 70, 80, 90]


def _inputs(small: Checkpoint, prompts: list[list[int]], form: str) -> ModelInputs:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 2, 224, 224, 3), dtype=torch.uint8, generator=generator)
    return assemble(prepare_images(images[: len(prompts)], 224), prompts, small.dims, form)


def _noise(batch: int) -> Tensor:
    return torch.randn(batch, 10, 32, generator=torch.Generator().manual_seed(1))


def _actions(checkpoint: Checkpoint, inputs: ModelInputs, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return run_stages(checkpoint.stages, inputs, lambda: noise, StageTimer(torch.device("cpu")))[0]


def test_lean_equals_full(small: Checkpoint) -> None:
    noise = _noise(2)
    full = _actions(small, _inputs(small, [SHORT, LONG], "full"), noise)
    lean = _actions(small, _inputs(small, [SHORT, LONG], "lean"), noise)
    torch.testing.assert_close(lean, full, rtol=1e-5, atol=1e-5)


def test_batch_of_two_prompt_lengths_equals_singles(small: Checkpoint) -> None:
    noise = _noise(2)
    both = _inputs(small, [SHORT, LONG], "lean")
    batched = _actions(small, both, noise)
    for row, prompt in enumerate((SHORT, LONG)):
        single = ModelInputs(both.images_BNCHW[row : row + 1], None, torch.tensor([prompt]), None)
        torch.testing.assert_close(
            _actions(small, single, noise[row : row + 1])[0], batched[row], rtol=1e-5, atol=1e-5
        )


def test_pixels_of_a_masked_camera_change_nothing(small: Checkpoint) -> None:
    inputs = _inputs(small, [LONG], "full")
    images = inputs.images_BNCHW.clone()
    images[:, 2] = torch.rand(images[:, 2].shape, generator=torch.Generator().manual_seed(2))
    changed = replace(inputs, images_BNCHW=images)
    torch.testing.assert_close(_actions(small, changed, _noise(1)), _actions(small, inputs, _noise(1)))


def test_every_camera_token_and_noise_reaches_the_actions(small: Checkpoint) -> None:
    inputs, noise = _inputs(small, [LONG], "lean"), _noise(1)
    before = _actions(small, inputs, noise)
    for camera in range(2):
        images = inputs.images_BNCHW.clone()
        images[:, camera] *= -1
        assert not torch.allclose(_actions(small, replace(inputs, images_BNCHW=images), noise), before)
    tokens = inputs.tokens_BT.clone()
    tokens[:, -1] += 1
    assert not torch.allclose(_actions(small, replace(inputs, tokens_BT=tokens), noise), before)
    assert not torch.allclose(_actions(small, inputs, noise * 0.9), before)


def test_bfloat16_is_close_to_float32(small: Checkpoint) -> None:
    bf16 = load_checkpoint(small.config, dtype=torch.bfloat16)
    inputs, noise = _inputs(small, [LONG], "lean"), _noise(1)
    exact, rounded = _actions(small, inputs, noise), _actions(bf16, inputs, noise)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()
    assert not torch.equal(rounded, exact)


def test_norms_embeddings_of_patches_and_heads_stay_float32(
    config: Callable[..., CheckpointConfig],
) -> None:
    stages = load_checkpoint(config(), dtype=torch.bfloat16).stages
    kept = {
        f"{stage}.{name}"
        for stage, module in stages.items()
        for name, parameter in module.named_parameters()
        if parameter.dtype == torch.float32
    }
    assert "prefix.embedding.weight" not in kept
    assert "vision.projector.weight" not in kept
    assert "denoise.layers.0.self_attn.q_proj.weight" not in kept
    assert {
        "vision.embeddings.patch_embedding.weight",
        "vision.embeddings.position_embedding.weight",
        "vision.layers.0.layer_norm1.weight",
        "prefix.layers.2.input_layernorm.weight",
        "denoise.layers.0.input_layernorm.dense.weight",
        "denoise.norm.dense.bias",
        "denoise.time_mlp_in.weight",
        "denoise.action_out_proj.weight",
    } <= kept


def test_precomputed_modulations_give_the_same_actions(small: Checkpoint) -> None:
    denoise = small.stages["denoise"]
    assert isinstance(denoise, Denoise)
    cache = torch.randn(2, 3, 1, 1, 20, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        modulations = denoise.modulations(torch.tensor(denoise.timesteps, dtype=torch.float64))
        precomputed = denoise.integrate(_noise(1), modulations, cache[0], cache[1], None)
        assert torch.equal(precomputed, denoise(_noise(1), cache[0], cache[1], None))


def test_one_euler_step_subtracts_the_velocity_at_one(small: Checkpoint) -> None:
    denoise = small.stages["denoise"]
    assert isinstance(denoise, Denoise)
    keys, values = torch.randn(2, 3, 1, 1, 20, 32, generator=torch.Generator().manual_seed(4))
    one = denoise.with_steps(1)
    with torch.no_grad():
        modulations = one.modulations(torch.ones(1))[:, 0, None]
        rope, bias = one.suffix_geometry(_noise(1), keys, None)
        velocity = one.velocity(_noise(1), modulations, keys, values, rope, bias)
        torch.testing.assert_close(one(_noise(1), keys, values, None), _noise(1) - velocity)


def test_with_steps_shares_weights_and_leaves_the_original(small: Checkpoint) -> None:
    denoise = small.stages["denoise"]
    assert isinstance(denoise, Denoise)
    other = denoise.with_steps(7)
    assert len(denoise.timesteps) == 3
    assert len(other.timesteps) == 7
    assert other.norm.dense.weight is denoise.norm.dense.weight


def test_timesteps_fall_from_one_to_one_step_above_zero() -> None:
    times = euler_timesteps(10)
    assert times[0] == 1.0
    assert times[-1] == pytest.approx(0.1, abs=1e-6)
    assert all(isinstance(t, float) for t in times)
    with pytest.raises(ValueError, match="denoise_steps must be >= 1, got 0"):
        euler_timesteps(0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_over_few_heads_equals_repeated_heads(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(2, 4, 6, 16, generator=generator)
    keys, values = torch.randn(2, 2, kv_heads, 9, 16, generator=generator)
    visible = torch.rand(2, 1, 6, 9, generator=generator) < 0.7
    per_key = visible[:, :, :1]
    for bias in (None, mask_bias(per_key, torch.float32), mask_bias(visible, torch.float32)):
        repeat = 4 // kv_heads
        scores = queries @ keys.repeat_interleave(repeat, 1).transpose(-1, -2) / 4.0
        weights = (scores if bias is None else scores + bias).softmax(-1)
        expected = weights @ values.repeat_interleave(repeat, 1)
        torch.testing.assert_close(attend(queries, keys, values, bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_query_that_sees_nothing_averages_all_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    queries = 100 * torch.randn(1, 2, 3, 16, generator=generator).to(dtype)
    keys, values = torch.randn(2, 1, 1, 8, 16, generator=generator).to(dtype)
    bias = torch.full((1, 1, 3, 8), MASKED, dtype=dtype)
    average = values.float().mean(dim=2, keepdim=True).to(dtype).expand(1, 2, 3, 16)
    torch.testing.assert_close(attend(queries, keys, values, bias), average)
