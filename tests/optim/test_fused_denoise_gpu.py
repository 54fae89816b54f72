"""Each fused kernel against its plain reference, and the whole stage against eager, on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optim.base import StageMismatch
from optim.fused_denoise import Fused, FusedDenoise
from optim.fused_denoise_ops import (
    DEFAULT_BLOCKS,
    Launch,
    Modulation,
    Weight,
    action_in,
    action_in_reference,
    add_residual,
    add_residual_reference,
    euler_step,
    euler_step_reference,
    gate_up,
    gate_up_reference,
    qkv,
    qkv_reference,
)
from optim.parity import compare, stage_parity
from policies.pi05.denoise import Denoise
from policies.pi05.dims import PI05_FULL, PI05_SMALL, GemmaDims
from policies.reference.sizes import DIMS as REFERENCE
from tests.optim.small import random_checkpoint, random_request, sources

pytestmark = pytest.mark.gpu

EXPERTS = [PI05_FULL.expert, REFERENCE.expert, PI05_SMALL.expert]
BATCHES = [(1, 10), (1, 50), (3, 10)]  # batch, horizon
LAUNCH = Launch(DEFAULT_BLOCKS)
BOUND = 0.01  # bfloat16 inputs, float32 sums


def drawer(seed: int) -> torch.Generator:
    return torch.Generator("cuda").manual_seed(seed)


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", generator=generator).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What a kernel does not write stays NaN."""
    return torch.full(shape, float("nan"), device="cuda", dtype=dtype)


def modulation(generator: torch.Generator, width: int, columns: int) -> Modulation:
    return Modulation(1.0 + 0.3 * draw(generator, width), draw(generator, columns), draw(generator, width))


@pytest.mark.parametrize("expert", EXPERTS, ids=["full", "reference", "small"])
@pytest.mark.parametrize("batch_horizon", BATCHES)
@pytest.mark.parametrize("pack", [Weight, Weight.in_fp8], ids=["bf16", "fp8"])
def test_each_kernel_meets_its_reference(
    expert: GemmaDims, batch_horizon: tuple[int, int], pack: Callable[[Tensor], Weight]
) -> None:
    batch, horizon = batch_horizon
    rows, width, dim, mlp = batch * horizon, expert.width, expert.head_dim, expert.mlp_dim
    for seed in range(2):
        g = drawer(seed)
        x = draw(g, rows, width)

        columns = (expert.num_heads + 2) * dim
        packed = pack((draw(g, columns, width) / width**0.5).bfloat16())
        m, rope = (
            modulation(g, width, columns),
            (draw(g, rows, dim // 2).cos(), draw(g, rows, dim // 2).sin()),
        )
        outputs = (
            poisoned(batch, expert.num_heads, horizon, dim),
            poisoned(batch, 1, horizon, dim),
            poisoned(batch, 1, horizon, dim),
        )
        qkv(x, m, packed, rope, outputs, LAUNCH)
        expected = qkv_reference(x, m, packed, rope, outputs[0].shape)
        assert stage_parity(outputs, expected).rel_error < BOUND

        packed = pack((draw(g, 2 * mlp, width) / width**0.5).bfloat16())
        m = modulation(g, width, 2 * mlp)
        hidden = poisoned(rows, mlp)
        gate_up(x, m, packed, hidden, LAUNCH)
        assert compare(hidden, gate_up_reference(x, m, packed)).rel_error < BOUND

        packed = pack((draw(g, width, mlp) / mlp**0.5).bfloat16())
        expected_x = add_residual_reference(hidden, packed, m.gate_W, x)
        add_residual(hidden, packed, m.gate_W, x, LAUNCH)
        assert compare(x, expected_x).rel_error < BOUND

        actions, weight, bias = draw(g, rows, 32), draw(g, width, 32), draw(g, width)
        x = poisoned(rows, width, dtype=torch.float32)
        action_in(actions, weight, bias, x, LAUNCH)
        assert compare(x, action_in_reference(actions, weight, bias)).rel_error < 1e-5

        weight, m = draw(g, 32, width) / width**0.5, modulation(g, width, 32)
        expected_actions = euler_step_reference(x, m, weight, -0.1, actions)
        euler_step(x, m, weight, -0.1, actions, LAUNCH)
        assert compare(actions, expected_actions).rel_error < 1e-5


@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize("horizon", [10, 50])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.02), ("fp8", 0.1)])
def test_fused_stage_meets_eager_on_fresh_inputs_and_refuses_another_length(
    form: str, horizon: int, overlap: bool, weights: str, bound: float
) -> None:
    checkpoint = random_checkpoint("cuda", torch.bfloat16, horizon=horizon)
    stage = Fused(weights=weights, overlap=overlap)(sources(checkpoint, [random_request(0)], form)["denoise"])
    fresh = sources(checkpoint, [random_request(5), random_request(6)], form)["denoise"]
    with torch.no_grad():
        for args in fresh.examples:
            assert stage_parity(stage(*args), fresh.stage(*args)).rel_error < bound
    noise, keys, values, mask = fresh.examples[0]
    assert keys is not None
    assert values is not None
    with pytest.raises(StageMismatch, match="denoise input 1"):
        stage(noise, keys[:, :, :, 1:], values[:, :, :, 1:], mask)


def test_too_many_rows_are_refused() -> None:
    checkpoint = random_checkpoint("cuda", torch.bfloat16)
    [args] = sources(checkpoint, [random_request(0)])["denoise"].examples
    stage = checkpoint.stages["denoise"]
    assert isinstance(stage, Denoise)
    noise, keys, values, _ = args
    assert noise is not None
    assert keys is not None
    assert values is not None
    many = (noise.repeat(7, 1, 1), keys.repeat(1, 7, 1, 1, 1), values.repeat(1, 7, 1, 1, 1), None)
    with pytest.raises(ValueError, match=r"batch \* horizon must be <= 64, got 70"):
        FusedDenoise(stage)(*many)
