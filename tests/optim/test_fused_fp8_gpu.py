"""Each row kernel against its reference, and the stages against eager, on a GPU."""

import pytest
import torch
from torch import Tensor

from optim.base import StageMismatch
from optim.core.fp8_format import FP8
from optim.core.parity import compare, stage_parity
from optim.fused_fp8 import FusedFp8
from optim.kernels.flash import flash, image_attention
from optim.kernels.patches import embed_patches
from optim.kernels.rows import Norm, add_norm, geglu, gelu, rope_split
from policies.pi05.dims import PI05_FULL
from policies.pi05.vision import PatchEmbeddings
from tests.optim import references
from tests.optim.small import random_checkpoint, random_request, sources

pytestmark = pytest.mark.gpu

BOUND = 0.01  # of FP8 numbers: a few fall on the other side of a rounding


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator).to(dtype)


def close(output: Tensor, reference: Tensor) -> bool:
    assert output.dtype == reference.dtype
    return compare(output.float(), reference.float()).rel_error < BOUND


@pytest.mark.parametrize(("rows", "width"), [(512, 1152), (535, 2048), (7, 64), (1, 4304)])
@pytest.mark.parametrize("scale", [3.0, 300.0])  # the second saturates
def test_row_kernels_meet_their_references(rows: int, width: int, scale: float) -> None:
    inverse_scale = torch.tensor(scale, device="cuda")
    weight, bias = draw(1, width, dtype=torch.float32), draw(2, width, dtype=torch.float32)
    for norm in (Norm(weight, None, 1e-6), Norm(weight, bias, 1e-6)):
        for delta in (None, draw(3, rows, width)):
            x = draw(4, rows, width)
            total, expected = references.add_norm(x, delta, norm, inverse_scale)
            normed = add_norm(x, delta, norm, inverse_scale)
            assert torch.equal(x, total)
            assert close(normed, expected)
            x = draw(4, rows, width)
            expected = references.add_norm(x, delta, norm, None)[1]
            assert close(add_norm(x, delta, norm, None), expected)
    x = draw(5, rows, width)
    assert close(gelu(x, inverse_scale), references.gelu(x, inverse_scale))
    assert close(geglu(x, inverse_scale), references.geglu(x, inverse_scale))


# batch, query heads, KV heads, tokens, head dimension
@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 535, 256), (2, 4, 1, 65, 64), (1, 4, 2, 968, 32), (1, 2, 1, 20, 16)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_kernels_meet_their_references(shape: tuple[int, ...], masked: bool) -> None:
    batch, heads, kv_heads, tokens, dim = shape
    rows = batch * tokens
    qkv = draw(0, rows, (heads + 2 * kv_heads) * dim)
    rope = (
        draw(1, rows, dim // 2, dtype=torch.float32).cos(),
        draw(2, rows, dim // 2, dtype=torch.float32).sin(),
    )
    queries = torch.full((batch, heads, tokens, dim), float("nan"), device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.full_like(queries[:, :kv_heads], float("nan")) for _ in range(2))
    rope_split(qkv, rope, queries, keys, values)
    expected = references.rope_split(qkv, rope, heads, keys.shape)
    assert stage_parity((queries, keys, values), expected).rel_error < BOUND
    rope_split(qkv[:, heads * dim :].contiguous(), rope, None, keys.fill_(float("nan")), values)
    assert stage_parity((keys, values), expected[1:]).rel_error < BOUND
    bias = None
    if masked:
        bias = torch.zeros(batch, 1, tokens, tokens, device="cuda", dtype=torch.bfloat16)
        bias[-1, :, :, : tokens // 3] = -1e30
        bias[-1, :, 1] = -1e30  # a row that sees nothing averages
        bias[0, :, 2, : tokens // 2] = -1e30  # the first part of the keys hidden, and
        bias[0, :, 3, tokens // 2 :] = -1e30  # the last
    inverse_scale = torch.tensor(100.0, device="cuda")
    attended = flash(queries, keys, values, bias, inverse_scale)
    assert attended.dtype == FP8
    expected8 = references.flash(queries, keys, values, bias, inverse_scale)
    assert compare(attended.float(), expected8.float()).rel_error < 0.03  # weights are bf16 in the kernel


# images, tokens, heads, head dimension
@pytest.mark.parametrize("shape", [(2, 256, 16, 72), (3, 100, 4, 16), (1, 37, 2, 128)])
def test_attention_within_images_meets_its_reference(shape: tuple[int, ...]) -> None:
    images, tokens, heads, dim = shape
    qkv, inverse_scale = draw(0, images * tokens, 3 * heads * dim), torch.tensor(100.0, device="cuda")
    attended = image_attention(qkv, images, dim, inverse_scale)
    expected8 = references.image_attention(qkv, images, dim, inverse_scale)
    assert attended.dtype == FP8
    assert compare(attended.float(), expected8.float()).rel_error < 0.03  # weights are bf16 in the kernel


@pytest.mark.parametrize("images", [1, 2])
def test_patch_embedding_is_as_exact_as_float32(images: int) -> None:
    module = PatchEmbeddings(PI05_FULL).cuda()
    pixels = draw(0, images, 3, 224, 224, dtype=torch.float32).clamp(-1.0, 1.0)
    with torch.no_grad():
        tokens = embed_patches(module, pixels, torch.float32)
        assert compare(tokens, references.embed_patches(module, pixels, torch.float32)).rel_error < 2e-6
        assert torch.equal(embed_patches(module, pixels, torch.bfloat16), tokens.bfloat16())


@pytest.mark.parametrize("name", ["vision", "prefix"])
@pytest.mark.parametrize("form", ["lean", "full"])
def test_fused_stage_meets_eager_on_fresh_inputs_and_refuses_another_shape(name: str, form: str) -> None:
    checkpoint = random_checkpoint("cuda", torch.bfloat16)
    stage = FusedFp8()(sources(checkpoint, [random_request(0)], form)[name])
    fresh = sources(checkpoint, [random_request(5), random_request(6)], form)[name]
    with torch.no_grad():
        for args in fresh.examples:
            assert stage_parity(stage(*args), fresh.stage(*args)).rel_error < 0.15
    first = fresh.examples[0][0]
    assert first is not None
    with pytest.raises(StageMismatch, match=f"{name} input 0"):
        stage(first[:, 1:], *fresh.examples[0][1:])
