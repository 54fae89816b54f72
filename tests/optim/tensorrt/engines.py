"""An engine in bytes, and a prefix whose engine is PyTorch."""

from typing import Any

from torch import Tensor, nn

from optim.base import StageContext
from optim.tensorrt.cache import SerializedEngine
from optim.tensorrt.modules import PrefixCore, prefix_inputs

ENGINE = SerializedEngine(b"plan", ("x", "bias"), (0, 2), ("output0", "output1"), (1, 0), 6)


def serve_prefix(source: StageContext, stage: nn.Module) -> Any:
    """What serves the prefix when its engine is this stage in PyTorch."""
    core = PrefixCore(stage)

    def served(*args: Tensor | None) -> Any:
        core_args, mask = prefix_inputs(source.stage, *args)  # type: ignore[arg-type]
        return *core(*core_args), mask

    return served
