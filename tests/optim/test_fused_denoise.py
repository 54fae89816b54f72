"""The kernels' plain references together are the denoise stage; sizes they do not take are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from optim import fused_denoise, fused_denoise_ops
from optim.base import StageSource
from optim.fused_attention import reference as attend_reference
from optim.fused_denoise import Fused, FusedDenoise, require_sizes
from optim.fused_denoise_ops import (
    add_residual_reference,
    euler_step_reference,
    gate_up_reference,
    pack_qkv,
    power_of_two_within,
    qkv_reference,
)
from optim.parity import stage_parity
from policies.pi05.denoise import Denoise
from policies.pi05.dims import PI05_SMALL, GemmaDims
from tests.optim.small import random_checkpoint, random_request, sources


def use_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `FusedDenoise` run on the kernels' references."""

    def qkv(x: Tensor, m: Any, weight: Tensor, rope: Any, outputs: tuple[Tensor, ...], launch: Any) -> None:
        for out, value in zip(outputs, qkv_reference(x, m, weight, rope, outputs[0].shape), strict=True):
            out.copy_(value)

    def attend(*args: Any, overlap: bool) -> Tensor:
        return attend_reference(*args).transpose(1, 2).contiguous()

    references: dict[str, Any] = {
        "qkv": qkv,
        "attend_split": attend,
        "gate_up": lambda x, m, w, hidden, launch: hidden.copy_(gate_up_reference(x, m, w)),
        "add_residual": lambda a, w, gate, x, launch: x.copy_(add_residual_reference(a, w, gate, x)),
        "action_in": lambda a, w, b, x, launch: x.copy_(fused_denoise_ops.action_in_reference(a, w, b)),
        "euler_step": lambda x, m, w, dt, a, launch: a.copy_(euler_step_reference(x, m, w, dt, a)),
    }
    for name, function in references.items():
        monkeypatch.setattr(fused_denoise, name, function)


@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize(("weights", "least", "most"), [("bf16", 0.0, 1e-6), ("fp8", 1e-4, 0.1)])
def test_the_references_in_their_order_are_the_stage(
    form: str, weights: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_references(monkeypatch)
    source = sources(random_checkpoint(), [random_request(0), random_request(1)], form)["denoise"]
    assert isinstance(source.stage, Denoise)
    fused = FusedDenoise(source.stage, weights=weights)
    for args in source.examples:
        with torch.no_grad():
            assert least <= stage_parity(fused(*args), source.stage(*args)).rel_error < most


def test_rows_of_a_batch_are_independent(
    small_sources: dict[str, StageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_references(monkeypatch)
    stage = small_sources["denoise"].stage
    assert isinstance(stage, Denoise)
    noise, keys, values, _ = small_sources["denoise"].examples[0]
    assert noise is not None
    assert keys is not None
    assert values is not None
    two = (noise.repeat(2, 1, 1), keys.repeat(1, 2, 1, 1, 1), values.repeat(1, 2, 1, 1, 1), None)
    two[0][1].neg_()
    with torch.no_grad():
        assert stage_parity(FusedDenoise(stage)(*two), stage(*two)).rel_error < 1e-6


def test_packed_projection_pairs_the_partners_of_rope() -> None:
    q, k, v = (torch.arange(start, start + 4.0)[:, None] for start in (0.0, 10.0, 20.0))
    assert pack_qkv(q, k, v, 4).flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13, 20, 21, 22, 23]


def test_blocks_divide_their_sizes() -> None:
    assert [power_of_two_within(128, size, "width") for size in (1024, 64, 4304, 96)] == [128, 64, 16, 32]
    with pytest.raises(ValueError, match=r"width must be a multiple of 16, got 1000; use optim/denoise=comp"):
        power_of_two_within(128, 1000, "width")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 2}, "expert.num_kv_heads must be 1, got 2"),
        ({"head_dim": 24}, r"expert.head_dim must be one of \(16, 32, 64, 128, 256\), got 24"),
        ({"width": 72}, "expert.width must be a multiple of 16, got 72"),
        ({"mlp_dim": 100}, "expert.mlp_dim must be a multiple of 16, got 100"),
    ],
)
def test_sizes_that_the_kernels_do_not_take_are_named(changes: dict[str, int], words: str) -> None:
    from dataclasses import asdict, replace

    expert = GemmaDims(**{**asdict(PI05_SMALL.expert), **changes})
    shared = {name: value for name, value in changes.items() if name in ("num_kv_heads", "head_dim")}
    dims = replace(PI05_SMALL, expert=expert, prefix=replace(PI05_SMALL.prefix, **shared))
    with pytest.raises(ValueError, match=words):
        require_sizes(Denoise(dims, 1))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must be one of bf16, fp8, got 'int4'"):
        Fused(weights="int4")
    with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
        Fused(warmup=0)


def test_fused_kernels_serve_denoise_on_a_gpu_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    with pytest.raises(RuntimeError, match="fused kernels serve denoise; choose optim/prefix=fused_fp8"):
        Fused().check("prefix", cuda, torch.bfloat16)
    with pytest.raises(RuntimeError, match="it needs an NVIDIA GPU"):
        Fused().check("denoise", torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="it needs Triton"):
        Fused().check("denoise", cuda, torch.bfloat16)
