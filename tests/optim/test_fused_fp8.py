"""The row kernels' references around FP8 matmuls are the stages in FP8; wrong places are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from optim import fused_fp8
from optim.base import CannotRun, StageContext
from optim.core.parity import stage_parity
from optim.fp8 import with_fp8_linears
from optim.fused_fp8 import FusedFp8, fused_stage
from tests.optim import references
from tests.optim.small import random_checkpoint, random_request, sources


def use_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fused stages run on the kernels' references."""

    def add_norm(x: Tensor, delta: Tensor | None, norm: Any, inverse_scale: Tensor | None) -> Tensor:
        total, rows8 = references.add_norm(x, delta, norm, inverse_scale)
        x.copy_(total)
        return rows8

    def rope_split(qkv: Tensor, rope: Any, queries: Tensor | None, keys: Tensor, values: Tensor) -> None:
        heads = 0 if queries is None else queries.shape[1]
        parts = references.rope_split(qkv, rope, heads, keys.shape)
        for to, part in zip((queries, keys, values), parts, strict=True):
            if to is not None:
                to.copy_(part)

    functions: dict[str, Any] = {
        "add_norm": add_norm,
        "rope_split": rope_split,
        "embed_patches": references.embed_patches,
        "flash": references.flash,
        "image_attention": references.image_attention,
        "gelu": references.gelu,
        "geglu": references.geglu,
    }
    for name, function in functions.items():
        monkeypatch.setattr(fused_fp8, name, function)


@pytest.mark.parametrize("name", ["vision", "prefix"])
@pytest.mark.parametrize("form", ["lean", "full"])
def test_the_references_in_their_order_are_the_stage_in_fp8(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_references(monkeypatch)
    source = sources(random_checkpoint(), [random_request(0), random_request(1)], form)[name]
    in_fp8 = with_fp8_linears(source.stage, source.amax, "all")
    fused = fused_stage(in_fp8)
    for args in source.examples:
        with torch.no_grad():
            assert stage_parity(fused(*args), in_fp8(*args)).rel_error < 0.02
            assert 1e-3 < stage_parity(fused(*args), source.stage(*args)).rel_error < 0.15


def test_prompts_of_a_batch_are_independent(
    small_sources: dict[str, StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_references(monkeypatch)
    source = small_sources["prefix"]
    images, _, tokens, _ = source.examples[0]
    assert images is not None
    assert tokens is not None
    in_fp8 = with_fp8_linears(source.stage, source.amax, "all")
    two = (torch.cat((images, images.flip(1))), None, tokens.repeat(2, 1), None)
    with torch.no_grad():
        assert stage_parity(fused_stage(in_fp8)(*two), in_fp8(*two)).rel_error < 0.02


def test_fused_fp8_says_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    with pytest.raises(RuntimeError, match="serve vision and prefix; choose optim/denoise=fused"):
        FusedFp8().check("denoise", cuda, torch.bfloat16)
    with pytest.raises(CannotRun, match="it needs an NVIDIA GPU"):
        FusedFp8().check("prefix", torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(CannotRun, match=r"FP8 needs compute capability 8\.9"):
        FusedFp8().check("prefix", cuda, torch.bfloat16)
    with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
        FusedFp8(warmup=0)
