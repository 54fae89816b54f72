"""A stage with everything that no input changes computed once.

B batch, H horizon, A padded action dims, P prefix tokens, L layers, G KV heads, D head dimension, K Euler
steps, M = 3 W one norm's modulation, N = 2 L + 1 norms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from policies.pi05.denoise import Denoise, guide
from policies.pi05.prefix import Prefix

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What to do with the function that does the bulk of a stage's work, for example `torch.compile`."""


class PreparedPrefix(nn.Module):
    """Prefix whose RoPE tables and attention bias are made once a call, outside of the wrapped layers.

    Inside, Inductor would compute sines anew in every layer's kernels.
    """

    def __init__(self, stage: Prefix, wrap: Wrap) -> None:
        super().__init__()
        self._stage = [stage]  # a list, so that its weights are not this module's too
        self._keys_values = wrap(stage.keys_values)

    def forward(
        self,
        image_tokens_BQW: Tensor,
        image_mask_BN: Tensor | None,
        tokens_BT: Tensor,
        token_mask_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute what `Prefix.forward` does."""
        x, rope, bias, mask_BP = self._stage[0].prepare(
            image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT
        )
        return *self._keys_values(x, rope, bias), mask_BP


class PreparedDenoise(nn.Module):
    """Denoise whose timesteps and adaRMS modulations are computed; x stays float32.

    Args:
        stage: its weights are shared, not copied.
        wrap: of the function that takes one Euler step.

    Raises:
        ValueError: the stage guides with the exact Jacobian, which needs a backward pass.
    """

    def __init__(self, stage: Denoise, wrap: Wrap | None = None) -> None:
        super().__init__()
        require_identity(stage)
        self._stage = [stage]  # as in PreparedPrefix
        device = stage.action_in_proj.weight.device
        times_K = torch.tensor(stage.timesteps, dtype=torch.float64, device=device)
        with torch.no_grad():
            modulations_NKM = stage.modulations(times_K)
        self.modulations_KNBM = modulations_NKM.transpose(0, 1)[:, :, None].contiguous()
        self.dt = torch.tensor(-1.0 / len(stage.timesteps), device=device)
        self._times_and_gains_K2 = stage.guided_steps(device).T.contiguous()
        self._step = wrap(self._euler_step) if wrap else self._euler_step

    def forward(
        self,
        noise_BHA: Tensor,
        keys_LBGPD: Tensor,
        values_LBGPD: Tensor,
        prefix_mask_BP: Tensor | None,
        old_2BHA: Tensor | None = None,
    ) -> Tensor:
        """Compute actions_BHA as `Denoise.forward` does."""
        self._stage[0].check_old(old_2BHA)
        rope, bias = self._stage[0].suffix_geometry(noise_BHA, keys_LBGPD, prefix_mask_BP)
        x = noise_BHA
        for i, modulations_NBM in enumerate(self.modulations_KNBM):
            guided = () if old_2BHA is None else (old_2BHA, self._times_and_gains_K2[i])
            x = self._step(x, self.dt, modulations_NBM, keys_LBGPD, values_LBGPD, *rope, bias, *guided)
        return x

    def _euler_step(
        self,
        x_BHA: Tensor,
        dt: Tensor,  # a tensor, so that a compiled step serves any number of steps
        modulations_NBM: Tensor,
        keys_LBGPD: Tensor,
        values_LBGPD: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor | None,
        old_2BHA: Tensor | None = None,
        time_and_gain_2: Tensor | None = None,
    ) -> Tensor:
        velocity = self._stage[0].velocity(x_BHA, modulations_NBM, keys_LBGPD, values_LBGPD, (cos, sin), bias)
        if old_2BHA is not None and time_and_gain_2 is not None:
            velocity = guide(velocity, x_BHA, old_2BHA, time_and_gain_2[0], time_and_gain_2[1])
        return x_BHA + dt * velocity


def require_identity(stage: Denoise) -> None:
    """Raise ValueError for a stage whose guidance needs a backward pass, which eager alone can do."""
    if stage.options is not None and stage.options.jacobian != "identity":
        raise ValueError(
            f"clock.jacobian={stage.options.jacobian} needs optim/denoise=eager; use clock.jacobian=identity"
        )


def prepare(stage: nn.Module, wrap: Wrap | None = None) -> Callable[..., Any]:
    """Prepare a stage where there is something to prepare, and wrap the bulk of its work."""
    if isinstance(stage, Denoise):
        return PreparedDenoise(stage, wrap)
    if wrap is None:
        return stage
    return PreparedPrefix(stage, wrap) if isinstance(stage, Prefix) else wrap(stage)
