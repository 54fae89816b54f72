"""Eager: the stage as it is, counted. The baseline that every other pass is compared with."""

from dataclasses import dataclass
from typing import ClassVar

from optim.base import CountedStage, Pass, StageSource


@dataclass(frozen=True)
class Eager(Pass):
    """Call the module."""

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageSource) -> CountedStage:
        """Return the stage, counted."""
        return CountedStage("eager", source.stage)
