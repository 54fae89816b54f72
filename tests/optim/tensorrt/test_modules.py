"""The modules that become engines are the stages, in the precision that they are to have."""

import pytest
import torch

from optim.base import StageContext
from optim.core.parity import compare, require_parity
from optim.tensorrt.modules import VisionCore, cast_linears, prefix_inputs
from policies.pi05.checkpoint import Checkpoint
from tests.optim.small import random_request, sources
from tests.optim.tensorrt.engines import serve_prefix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vision_in_fp16_keeps_its_norms_and_its_boundary(
    dtype: torch.dtype, small: Checkpoint, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources["vision"]
    before = {name: value.dtype for name, value in source.stage.state_dict().items()}
    core = VisionCore(cast_linears(source.stage, torch.float16), dtype)
    kinds = {
        type(module)
        for module in core.modules()
        if any(p.dtype != torch.float16 for p in module._parameters.values() if p is not None)
    }
    assert {kind.__name__ for kind in kinds} == {"FloatLayerNorm", "Conv2d", "Embedding"}
    with torch.no_grad():
        for args in source.examples:
            tokens = core(*args)
            assert tokens.dtype == dtype
            assert 0 < compare(tokens, source.stage(*args)).rel_error < 0.02
    assert {name: value.dtype for name, value in source.stage.state_dict().items()} == before


@pytest.mark.parametrize("form", ["lean", "full"])
def test_prefix_in_one_engine_equals_the_stage(form: str, small: Checkpoint) -> None:
    source = sources(small, [random_request(0), random_request(1, "open the drawer")], form)["prefix"]
    parity = require_parity(serve_prefix(source, source.stage), source.stage, source.examples, 1e-5)
    assert parity.cosine > 0.999999
    core_args, mask = prefix_inputs(source.stage, *source.examples[0])  # type: ignore[arg-type]
    assert (len(core_args), mask is None) == ((3, True) if form == "lean" else (4, False))
    assert all(arg.is_floating_point() for arg in core_args)
