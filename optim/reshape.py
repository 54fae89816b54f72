"""Inputs of an asked-for size: so many images and prompt tokens, all visible, made from real observations.

B batch, N images, T prompt tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from policies.base import Observation
from policies.pi05.policy import Pi05Policy
from policies.pi05.preprocess import ModelInputs, Preprocess


@dataclass(frozen=True)
class Reshaped:
    """Preprocessing whose result has other sizes; called as `policies.pi05.preprocess.Preprocess` is.

    Attributes:
        preprocess: gives the real images and tokens.
        views: how many images: the real ones in turn, none masked; None leaves them as the form has them.
        prompt_tokens: how many tokens: the prompt's again and again, none masked; None leaves the prompt.

    Non-obvious behaviors:
        A form that pads the prompt masks the padding on the device, so counting what is real waits for the
        device once a call.
    """

    preprocess: Preprocess
    views: int | None = None
    prompt_tokens: int | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Images that an observation must have."""
        return self.preprocess.cameras

    def __call__(self, observations: Sequence[Observation], form: str) -> ModelInputs:
        """Return the inputs of one batch; errors are those of `Preprocess`."""
        inputs = self.preprocess(observations, form)
        if self.views is not None:
            images_BNCHW = repeat_views(inputs.images_BNCHW, self._real_views(inputs), self.views)
            inputs = replace(inputs, images_BNCHW=images_BNCHW, image_mask_BN=None)
        if self.prompt_tokens is not None:
            tokens_BT = repeat_tokens(inputs.tokens_BT, inputs.token_mask_BT, self.prompt_tokens)
            inputs = replace(inputs, tokens_BT=tokens_BT, token_mask_BT=None)
        return inputs

    def _real_views(self, inputs: ModelInputs) -> list[int]:
        if inputs.image_mask_BN is None:
            return list(range(inputs.images_BNCHW.shape[1]))
        dims = self.preprocess.dims
        return [i for i, slot in enumerate(dims.cameras) if slot in dims.live_cameras]


def reshape(policy: Pi05Policy, views: int | None, prompt_tokens: int | None) -> Pi05Policy:
    """Return the policy on inputs of these sizes."""
    if views is None and prompt_tokens is None:
        return policy
    return replace(policy, preprocess=cast(Preprocess, Reshaped(policy.preprocess, views, prompt_tokens)))


def repeat_views(images_BNCHW: Tensor, real: Sequence[int], views: int) -> Tensor:
    """Return `views` images: those of the slots `real`, again and again."""
    return torch.stack([images_BNCHW[:, real[i % len(real)]] for i in range(views)], dim=1)


def repeat_tokens(tokens_BT: Tensor, token_mask_BT: Tensor | None, count: int) -> Tensor:
    """Return `count` tokens of each row: its visible ones, again and again."""
    rows = list(tokens_BT)
    if token_mask_BT is not None:
        rows = [row[mask] for row, mask in zip(rows, token_mask_BT, strict=True)]
    return torch.stack([row.repeat(-(-count // len(row)))[:count] for row in rows])
