"""Eager: the stage as it is, counted. The baseline that every other pass is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from optim.base import CountedStage, Pass, StageSource


@dataclass(frozen=True)
class Eager(Pass):
    """Call the module."""

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageSource) -> CountedStage:
        """Return the stage, counted."""
        return CountedStage("eager", source.stage)


def eager_stages(stages: Mapping[str, nn.Module]) -> dict[str, CountedStage]:
    """Return every stage as it is, counted."""
    return {name: CountedStage("eager", stage) for name, stage in stages.items()}
