"""Inputs of a chosen size: so many images and prompt tokens, all visible, made from real observations.

B batch, N images, T prompt tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.base import Observation
from policies.pi05.policy import Pi05Policy
from policies.pi05.preprocess import ModelInputs, Preprocess

T = TypeVar("T")


@dataclass(frozen=True)
class Reshaped(Preprocess):
    """Preprocessing for other sizes.

    Attributes:
        views: how many images: the real ones in turn, none masked; None leaves them as the form has them.
        prompt_tokens: how many tokens: the prompt's again and again, none masked; None leaves the prompt.
    """

    views: int | None = None
    prompt_tokens: int | None = None

    def __call__(self, observations: Sequence[Observation], form: str) -> ModelInputs:
        """Make the inputs of one batch; errors are those of `Preprocess`."""
        if self.views is not None and form == "full":
            # lean images, none masked, with the prompt padded as the full form pads it
            plain = replace(self, prompt_multiple=self.dims.max_token_len)
            return plain(observations, "lean")
        inputs = super().__call__(observations, form)
        if self.prompt_tokens is None:
            return inputs
        return replace(inputs, tokens_BT=inputs.tokens_BT[:, : self.prompt_tokens], token_mask_BT=None)

    def frames(self, observation: Observation) -> list[NDArray[np.uint8]]:
        return in_turn(super().frames(observation), self.views)

    def prompt(self, observation: Observation) -> list[int]:
        return in_turn(super().prompt(observation), self.prompt_tokens)


def reshape(policy: Pi05Policy, views: int | None, prompt_tokens: int | None) -> Pi05Policy:
    """Copy a policy; the copy preprocesses to these sizes."""
    given = {field.name: getattr(policy.preprocess, field.name) for field in fields(Preprocess)}
    return replace(policy, preprocess=Reshaped(**given, views=views, prompt_tokens=prompt_tokens))


def in_turn(items: list[T], count: int | None) -> list[T]:
    """Take `count` items, beginning anew at the end; None takes them as they are."""
    return items if count is None else [items[i % len(items)] for i in range(count)]
