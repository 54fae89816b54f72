"""Eager: the stage as it is, counted. The baseline that every other backend is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from optim.base import Backend, CountedStage, StageContext
from optim.options import JACOBIANS


@dataclass(frozen=True)
class Eager(Backend):
    """Call the module."""

    needs_examples: ClassVar[bool] = False
    jacobians: ClassVar[tuple[str, ...]] = JACOBIANS

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("eager", source.stage)


def eager_stages(stages: Mapping[str, nn.Module]) -> dict[str, CountedStage]:
    """Wrap every stage as it is, to count its calls."""
    return {name: CountedStage("eager", stage) for name, stage in stages.items()}
