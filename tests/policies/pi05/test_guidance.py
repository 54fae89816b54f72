"""Guidance of a denoise stage: the authors' formulae where the exact answer is known, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.base import ACTION_DIM, Guidance, GuideOptions, Request
from policies.pi05.denoise import Denoise, guidance_gain
from policies.pi05.dims import PI05_SMALL
from policies.pi05.policy import Pi05Policy
from policies.seeding import action_noise
from tests.optim.small import eager_policy, random_checkpoint, random_request

HORIZON, STEPS = 10, 5
SIZE = (HORIZON, PI05_SMALL.action_dim)


class LinearNetwork(Denoise):
    """Predicts v = M x for each flattened chunk, whatever the time."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(PI05_SMALL, STEPS)
        self.matrix = matrix

    def velocity(self, x_BHA: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return (x_BHA.flatten(1) @ self.matrix.T).view_as(x_BHA)


def run(stage: Denoise, noise_BHA: Tensor, old_2BHA: Tensor | None) -> Tensor:
    dims = PI05_SMALL.expert
    cache = torch.zeros(dims.depth, len(noise_BHA), dims.num_kv_heads, 3, dims.head_dim)
    with torch.no_grad():
        result = stage(noise_BHA, cache, cache, None, old_2BHA)
    assert not result.requires_grad
    return result


def as_the_authors_do(
    noise_N: np.ndarray,
    matrix: np.ndarray,
    old_N: np.ndarray,
    weights_N: np.ndarray,
    beta: float,
    *,
    exact: bool,
) -> np.ndarray:
    """Algorithm 1 of arXiv 2506.07339 in its own time, tau from 0 to 1, and float64."""
    x_N, size = noise_N.copy(), len(noise_N)
    for step in range(STEPS):
        tau = step / STEPS
        velocity_N = -matrix @ x_N  # their velocity points from the noise to the actions
        clean_N = x_N + (1 - tau) * velocity_N
        jacobian = np.eye(size) - (1 - tau) * matrix if exact else np.eye(size)
        r_squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        strength = beta if tau == 0 else min(beta, (1 - tau) / (tau * r_squared))
        velocity_N = velocity_N + strength * jacobian.T @ (weights_N * (old_N - clean_N))
        x_N = x_N + velocity_N / STEPS
    return x_N


def draws(seed: int, scale: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, noise and an old chunk with weights, of two requests."""
    g = torch.Generator().manual_seed(seed)
    count = SIZE[0] * SIZE[1]
    old_2BHA = torch.stack([torch.randn(2, *SIZE, generator=g), torch.rand(2, *SIZE, generator=g)])
    return scale * torch.randn(count, count, generator=g), torch.randn(2, *SIZE, generator=g), old_2BHA


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_a_linear_network_is_guided_as_the_authors_formulae_say(jacobian: str, beta: float) -> None:
    matrix, noise_BHA, old_2BHA = draws(0)
    result = run(LinearNetwork(matrix).with_guidance(GuideOptions(beta, jacobian)), noise_BHA, old_2BHA)
    for i in range(2):
        numbers = [t[i].flatten().double().numpy() for t in (noise_BHA, old_2BHA[0], old_2BHA[1])]
        expected = as_the_authors_do(
            numbers[0], matrix.double().numpy(), *numbers[1:], beta, exact=jacobian == "exact"
        )
        np.testing.assert_allclose(result[i].flatten().double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_jacobians_differ_unless_the_network_ignores_its_input() -> None:
    matrix, noise_BHA, old_2BHA = draws(1)
    for network, same in ((LinearNetwork(matrix), False), (LinearNetwork(0 * matrix), True)):
        results = [
            run(network.with_guidance(GuideOptions(5.0, jacobian)), noise_BHA, old_2BHA)
            for jacobian in ("identity", "exact")
        ]
        assert torch.allclose(*results, atol=1e-6) == same


@pytest.mark.parametrize(
    ("t", "gain"), [(1.0, 5.0), (0.9, 5.0), (0.8, 4.25), (0.5, 2.0), (0.2, 4.25), (0.1, 5.0)]
)
def test_guidance_is_weakest_half_way_and_clipped_at_the_ends(t: float, gain: float) -> None:
    assert guidance_gain(t, 5.0) == pytest.approx(gain)
    assert guidance_gain(t, 0.0) == 0.0


@pytest.fixture(scope="module")
def guided() -> Callable[..., Pi05Policy]:
    checkpoint = random_checkpoint()

    def make(beta: float = 5.0, jacobian: str = "identity") -> Pi05Policy:
        return eager_policy(checkpoint.with_guidance(GuideOptions(beta, jacobian)))

    return make


def request(seed: int, weight: float | None = None) -> Request:
    """A request with an old chunk of noise, whose first half has this weight."""
    asked = random_request(seed)
    if weight is None:
        return asked
    weights_H = np.where(np.arange(HORIZON) < 5, weight, 0.0).astype(np.float32)
    return replace(asked, guidance=Guidance(action_noise(asked.episode, 99, *SIZE), weights_H))


def test_no_strength_no_weight_and_no_old_chunk_change_no_bit(guided: Callable[..., Pi05Policy]) -> None:
    plain = eager_policy(random_checkpoint())
    [expected] = plain.infer([request(0)])
    assert expected.normalised_HA is None
    for policy, asked in (
        (guided(), request(0)),
        (guided(), request(0, 0.0)),
        (guided(0.0), request(0, 1.0)),
    ):
        [chunk] = policy.infer([asked])
        np.testing.assert_array_equal(chunk.actions_HJ, expected.actions_HJ)
    [chunk] = guided().infer([request(0, 1.0)])
    assert np.abs(chunk.actions_HJ - expected.actions_HJ).max() > 0.01


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
def test_a_batch_of_first_and_later_calls_is_each_alone(
    jacobian: str, guided: Callable[..., Pi05Policy]
) -> None:
    policy = guided(jacobian=jacobian)
    asked = [request(0), request(1, 1.0), request(2, 0.5)]
    for together, one in zip(policy.infer(asked), asked, strict=True):
        [alone] = policy.infer([one])
        np.testing.assert_allclose(together.actions_HJ, alone.actions_HJ, atol=1e-4)


def test_what_is_followed_with_weight_one_comes_close_and_padded_dims_are_free(
    guided: Callable[..., Pi05Policy],
) -> None:
    asked, policy = request(0, 1.0), guided(beta=1000.0)
    old_2BHA = policy.old([asked])
    assert asked.guidance is not None
    assert old_2BHA is not None
    assert not old_2BHA[:, 0, :, ACTION_DIM:].any()
    np.testing.assert_array_equal(old_2BHA[0, 0, :, :ACTION_DIM], asked.guidance.old_HA[:, :ACTION_DIM])
    distances = []
    for policy in (guided(beta=1.0), guided(beta=3.0)):  # three Euler steps: 3 does not overshoot
        [chunk] = policy.infer([asked])
        assert chunk.normalised_HA is not None
        followed = (chunk.normalised_HA - asked.guidance.old_HA)[:5]
        distances.append(float(np.abs(followed[:, :ACTION_DIM]).mean()))
    assert distances[1] < 0.5 * distances[0]


def test_what_is_kept_is_what_the_actions_are_made_of(guided: Callable[..., Pi05Policy]) -> None:
    policy = guided()
    for chunk in policy.infer([request(0), request(1, 1.0)]):
        assert chunk.normalised_HA is not None
        assert chunk.normalised_HA.shape == SIZE
        np.testing.assert_array_equal(policy.postprocess(chunk.normalised_HA[None])[0], chunk.actions_HJ)
    assert policy.provenance()["guidance"] == {"beta": 5.0, "jacobian": "identity"}
    assert "guidance" not in eager_policy(random_checkpoint()).provenance()


def test_guidance_that_a_policy_does_not_take_is_refused(guided: Callable[..., Pi05Policy]) -> None:
    plain = eager_policy(random_checkpoint())
    with pytest.raises(ValueError, match="policy baseline takes no guidance; load it with clock=rtc"):
        plain.infer([request(0, 1.0)])
    asked = request(0, 1.0)
    assert asked.guidance is not None
    short = replace(asked, guidance=replace(asked.guidance, old_HA=asked.guidance.old_HA[1:]))
    with pytest.raises(ValueError, match=r"must have shapes \(10, 32\) and \(10,\), got \(9, 32\)"):
        guided().infer([short])
    matrix, noise_BHA, old_2BHA = draws(2)
    with pytest.raises(ValueError, match="has no guidance and got an old chunk"):
        run(LinearNetwork(matrix), noise_BHA, old_2BHA)
    with pytest.raises(ValueError, match=r"has guidance \(beta=5, jacobian=exact\) and got no old chunk"):
        run(LinearNetwork(matrix).with_guidance(GuideOptions(5.0, "exact")), noise_BHA, None)
