"""The FP8 linears of `optim.fp8` without compiler and graph, with scales that may be wrong, as a backend."""

import math
from dataclasses import dataclass

import torch

from optim.base import Backend, CountedStage, StageContext
from optim.calibrate import observe_amax
from optim.core.parity import require_parity
from optim.fp8 import Fp8Linear, with_fp8_linears


@dataclass(frozen=True)
class Fp8OnCpu(Backend):
    """FP8 linears whose scales may be off.

    Attributes:
        factor: scales are too small by it: inputs above amax / factor saturate.
        disagreement: the scale that takes outputs back from FP8 is larger by it than the one that took inputs
            there.
    """

    factor: float = 1.0
    disagreement: float = 1.0

    def __call__(self, source: StageContext) -> CountedStage:
        def infer() -> None:
            with torch.no_grad():
                for args in source.examples:
                    source.stage(*args)

        observed = observe_amax({source.name: source.stage}, infer)[source.name]
        amax = {name: value / self.factor for name, value in observed.items()}
        stage = with_fp8_linears(source.stage, amax, "all")
        for module in stage.modules():
            if isinstance(module, Fp8Linear):
                module.input_scale.mul_(self.disagreement)
        parity = require_parity(stage, source.stage, source.examples, math.inf)
        return CountedStage("fp8_on_cpu", stage, details={"parity": parity.to_dict()})
