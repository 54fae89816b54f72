"""Eager: the stage as it is, counted. The baseline that every other pass is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from optim.base import Args, CountedStage


@dataclass(frozen=True)
class Eager:
    """Call the module."""

    def __call__(self, name: str, stage: nn.Module, examples: Sequence[Args]) -> CountedStage:
        """Return the stage, counted; no example is needed."""
        return CountedStage("eager", stage)
