"""Denoise stage: the action expert and its whole K-step Euler loop.

B batch, H horizon (actions are tokens), A padded action dims, P prefix tokens, L layers, G KV heads, D head
dimension, W width, K Euler steps, M = 3 W one norm's modulation, N = 2 L + 1 norms.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.base import GuideOptions
from policies.pi05.dims import MAX_PERIOD, MIN_PERIOD, GemmaDims, Pi05Dims
from policies.pi05.layers import Attention, GatedMlp, attend, mask_bias, rms_normalise, rope_tables


def euler_timesteps(steps: int) -> tuple[float, ...]:
    """t at the start of each step, from 1 downwards, summed up in float32 as openpi does."""
    if steps < 1:
        raise ValueError(f"denoise_steps must be >= 1, got {steps}")
    dt = np.float32(-1.0 / steps)
    times = [np.float32(1.0)]
    for _ in range(steps - 1):
        times.append(np.float32(times[-1] + dt))
    return tuple(float(t) for t in times)


def guidance_gain(t: float, beta: float) -> float:
    """Compute how strongly a step at time t is guided: equation 2 of arXiv 2506.07339 with tau = 1 - t.

    min(beta, (1 - tau) / tau / r^2), where r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2).
    """
    tau = 1.0 - t
    return beta if tau <= 0.0 else min(beta, (tau**2 + t**2) / (tau * t))


def guide(
    velocity_BHA: Tensor, x_BHA: Tensor, old_2BHA: Tensor, t: Tensor | float, gain: Tensor | float
) -> Tensor:
    """Guide a velocity towards the old chunk, with the Jacobian as identity: v - g W (OLD - (x - t v))."""
    old_BHA, weights_BHA = old_2BHA.unbind()
    return velocity_BHA - gain * weights_BHA * (old_BHA - (x_BHA - t * velocity_BHA))


def time_embedding(times_K: Tensor, width: int, periods: tuple[float, float]) -> Tensor:
    """Embed t as sin and cos at `width / 2` log-spaced periods: float32 (K, width), computed in float64."""
    shortest, longest = periods
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=times_K.device)
    period = shortest * (longest / shortest) ** fraction
    angles = times_K.double()[:, None] * (2 * math.pi / period)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


class AdaptiveNorm(nn.Module):
    """adaRMS: a linear of the time embedding gives scale, shift and gate; weights in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)


def modulate(x_BHW: Tensor, modulation_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Norm the input, and take the residual's gate, both in the input's dtype."""
    scale, shift, gate = modulation_BM[:, None].chunk(3, dim=-1)
    normed = rms_normalise(x_BHW) * (1.0 + scale) + shift
    return normed.to(x_BHW.dtype), gate.to(x_BHW.dtype)


class SuffixAttention(nn.Module):
    """Action tokens attend to the prefix and to each other."""

    def forward(
        self,
        queries_BXHD: Tensor,
        prefix_keys_BGPD: Tensor,
        prefix_values_BGPD: Tensor,
        keys_BGHD: Tensor,
        values_BGHD: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Compute attended_BXHD; X is the number of query heads."""
        keys = torch.cat((prefix_keys_BGPD, keys_BGHD), dim=2)
        values = torch.cat((prefix_values_BGPD, values_BGHD), dim=2)
        return attend(queries_BXHD, keys, values, bias)


class ExpertLayer(nn.Module):
    """One layer of the action expert; its norms live here, the caller computes their modulations."""

    def __init__(self, dims: GemmaDims) -> None:
        super().__init__()
        self.input_layernorm = AdaptiveNorm(dims.width)
        self.self_attn = Attention(dims.width, dims.num_heads, dims.num_kv_heads, dims.head_dim)
        self.attend = SuffixAttention()
        self.post_attention_layernorm = AdaptiveNorm(dims.width)
        self.mlp = GatedMlp(dims.width, dims.mlp_dim)

    def forward(
        self,
        x_BHW: Tensor,
        attention_BM: Tensor,
        mlp_BM: Tensor,
        keys_BGPD: Tensor,
        values_BGPD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias: Tensor | None,
    ) -> Tensor:
        normed, gate = modulate(x_BHW, attention_BM)
        queries, keys, values = self.self_attn.project(normed, rope)
        attended = self.attend(queries, keys_BGPD, values_BGPD, keys, values, bias)
        x_BHW = x_BHW + self.self_attn.output(attended) * gate
        normed, gate = modulate(x_BHW, mlp_BM)
        return x_BHW + self.mlp(normed) * gate


class Denoise(nn.Module):
    """Noise and KV cache in, normalised actions out.

    Non-obvious behaviors:
        x, t, dt, the four heads and the modulations are float32 in every precision; only the layers follow
        the cache's dtype.

    Attributes:
        options: of guidance; None computes without an old chunk.
    """

    def __init__(self, dims: Pi05Dims, steps: int) -> None:
        super().__init__()
        width = dims.expert.width
        self.head_dim = dims.expert.head_dim
        self.timesteps = euler_timesteps(steps)
        self.options: GuideOptions | None = None
        self.periods = (MIN_PERIOD, MAX_PERIOD)
        self.action_in_proj = nn.Linear(dims.action_dim, width)
        self.action_out_proj = nn.Linear(width, dims.action_dim)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.layers = nn.ModuleList(ExpertLayer(dims.expert) for _ in range(dims.expert.depth))
        self.norm = AdaptiveNorm(width)

    def with_steps(self, steps: int) -> "Denoise":
        """Copy the stage for `steps` Euler steps; the weights are shared."""
        other = copy.copy(self)
        other.timesteps = euler_timesteps(steps)
        return other

    def with_periods(self, shortest: float, longest: float) -> "Denoise":
        """Copy the stage for another time embedding; the weights are shared."""
        other = copy.copy(self)
        other.periods = (shortest, longest)
        return other

    def with_guidance(self, options: GuideOptions) -> "Denoise":
        """Copy the stage as one that guides its actions towards an old chunk; the weights are shared."""
        other = copy.copy(self)
        other.options = options
        return other

    def guided_steps(self, device: torch.device) -> Tensor:
        """Make float32 steps_2E: each timestep and the strength of its guidance; none without guidance."""
        times = () if self.options is None else self.timesteps
        gains = [guidance_gain(t, self.options.beta) for t in times if self.options is not None]
        return torch.tensor((times, gains), dtype=torch.float32, device=device)

    def check_old(self, old_2BHA: Tensor | None) -> None:
        """Raise ValueError for an old chunk without guidance, or guidance without one."""
        if (old_2BHA is None) != (self.options is None):
            if self.options is None:
                raise ValueError("the denoise stage has no guidance and got an old chunk; load clock=rtc")
            raise ValueError(f"the denoise stage has guidance ({self.options}) and got no old chunk")

    def forward(
        self,
        noise_BHA: Tensor,
        keys_LBGPD: Tensor,
        values_LBGPD: Tensor,
        prefix_mask_BP: Tensor | None,
        old_2BHA: Tensor | None = None,
    ) -> Tensor:
        """Denoise to actions_BHA, float32, still normalised.

        Args:
            noise_BHA: float32 N(0, 1).
            keys_LBGPD: prefix keys after RoPE.
            prefix_mask_BP: False where the prefix is masked; None if nowhere.
            old_2BHA: float32, the old chunk and the weight of each of its numbers, where the stage has
                `options`; zero weights guide nothing.
        """
        device = noise_BHA.device
        times = [torch.full((1,), t, dtype=torch.float64, device=device) for t in self.timesteps]
        modulations_NKM = self.modulations(torch.cat(times))
        return self.integrate(noise_BHA, modulations_NKM, keys_LBGPD, values_LBGPD, prefix_mask_BP, old_2BHA)

    def modulations(self, times_K: Tensor) -> Tensor:
        """Compute all that depends on t, for K values at once: float32 modulations_NKM.

        Norms come in the order in which they are applied: each layer's attention norm, then its MLP norm; the
        final norm last.
        """
        embedding = time_embedding(times_K, self.time_mlp_in.in_features, self.periods)
        condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedding))))
        # they are registered in the order in which they are applied
        norms = [module for module in self.modules() if isinstance(module, AdaptiveNorm)]
        return torch.stack([norm.dense(condition) for norm in norms])

    def integrate(
        self,
        noise_BHA: Tensor,
        modulations_NKM: Tensor,
        keys_LBGPD: Tensor,
        values_LBGPD: Tensor,
        prefix_mask_BP: Tensor | None,
        old_2BHA: Tensor | None = None,
    ) -> Tensor:
        """Run the Euler loop to actions_BHA with the modulations of its K timesteps given."""
        self.check_old(old_2BHA)
        rope, bias = self.suffix_geometry(noise_BHA, keys_LBGPD, prefix_mask_BP)
        dt = -1.0 / len(self.timesteps)
        x = noise_BHA
        for step in range(len(self.timesteps)):
            predict = partial(
                self.velocity,
                modulations_NBM=modulations_NKM[:, step, None],
                keys_LBGPD=keys_LBGPD,
                values_LBGPD=values_LBGPD,
                rope=rope,
                bias=bias,
            )
            x = x + dt * (predict(x) if old_2BHA is None else self._guided(predict, x, old_2BHA, step))
        return x

    def _guided(
        self, predict: Callable[[Tensor], Tensor], x_BHA: Tensor, old_2BHA: Tensor, step: int
    ) -> Tensor:
        """Compute v - g J^T W (OLD - A); A = x - t v are the actions as this step sees them, J = dA / dx."""
        assert self.options is not None
        t = self.timesteps[step]
        gain = guidance_gain(t, self.options.beta)
        if self.options.jacobian == "identity":
            return guide(predict(x_BHA), x_BHA, old_2BHA, t, gain)
        with torch.enable_grad():
            x = x_BHA.detach().requires_grad_()
            velocity = predict(x)
            actions = x - t * velocity
            old_BHA, weights_BHA = old_2BHA.unbind()
            error = weights_BHA * (old_BHA - actions.detach())
            [correction] = torch.autograd.grad(actions, x, error)
        return velocity.detach() - gain * correction

    def suffix_geometry(
        self, noise_BHA: Tensor, keys_LBGPD: Tensor, prefix_mask_BP: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """RoPE tables of the action tokens, which follow the valid prefix, and the attention bias."""
        suffix_1H = torch.arange(noise_BHA.shape[1], device=noise_BHA.device)[None]
        if prefix_mask_BP is None:
            return rope_tables(suffix_1H + keys_LBGPD.shape[3], self.head_dim), None
        positions_BH = suffix_1H + prefix_mask_BP.sum(dim=1, keepdim=True)
        visible = torch.cat((prefix_mask_BP, torch.ones_like(positions_BH, dtype=torch.bool)), dim=1)
        return rope_tables(positions_BH, self.head_dim), mask_bias(visible[:, None, None], keys_LBGPD.dtype)

    def velocity(
        self,
        x_BHA: Tensor,
        modulations_NBM: Tensor,
        keys_LBGPD: Tensor,
        values_LBGPD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias: Tensor | None,
    ) -> Tensor:
        """Predict v(x, t), float32 (B, H, A); the modulations' B may be 1 for one t in the whole batch."""
        x = self.action_in_proj(x_BHA).to(keys_LBGPD.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(
                x,
                modulations_NBM[2 * i],
                modulations_NBM[2 * i + 1],
                keys_LBGPD[i],
                values_LBGPD[i],
                rope,
                bias,
            )
        normed, _ = modulate(x, modulations_NBM[-1])
        return self.action_out_proj(normed.float())
