"""The reference of the denoise kernels is the denoise stage; sizes that it does not take are refused."""

import itertools
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optim import fused_denoise
from optim.base import CannotRun, StageContext
from optim.core.engines import Build
from optim.core.parity import stage_parity
from optim.fused_denoise import Fused, FusedDenoise, choose_kernel, sizes_of
from optim.kernels.denoise.contract import Sizes, pack_qkv
from optim.kernels.denoise.launch import programs
from optim.kernels.denoise.ring import num_slots, ring_obstacle, ring_order, tiling
from optim.kernels.split_attention import SplitAttention
from policies.pi05.denoise import Denoise, SuffixAttention
from policies.pi05.dims import PI05_SMALL, GemmaDims
from tests.optim import references
from tests.optim.small import random_checkpoint, random_request, sources


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused_denoise.KERNELS, "phases", references.denoise)


@pytest.mark.parametrize("form", ["lean", "full"])
def test_the_kernels_reference_is_the_stage(form: str) -> None:
    source = sources(random_checkpoint(), [random_request(0), random_request(1)], form)["denoise"]
    assert isinstance(source.stage, Denoise)
    fused = FusedDenoise(source.stage, "phases")
    for args in source.examples:
        with torch.no_grad():
            assert stage_parity(fused(*args), source.stage(*args)).rel_error < 1e-6


def test_two_requests_at_once_are_the_stage_too(small_sources: dict[str, StageContext]) -> None:
    stage = small_sources["denoise"].stage
    assert isinstance(stage, Denoise)
    noise, keys, values, _ = small_sources["denoise"].examples[0]
    assert noise is not None
    assert keys is not None
    assert values is not None
    two = (noise.repeat(2, 1, 1), keys.repeat(1, 2, 1, 1, 1), values.repeat(1, 2, 1, 1, 1), None)
    two[0][1].neg_()
    with torch.no_grad():
        assert stage_parity(FusedDenoise(stage, "phases")(*two), stage(*two)).rel_error < 1e-6


def test_packed_projection_pairs_the_partners_of_rope() -> None:
    q, k, v = (torch.arange(start, start + 4.0)[:, None] for start in (0.0, 10.0, 20.0))
    assert pack_qkv(q, k, v, 4).flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13, 20, 22, 21, 23]


def test_blocks_cover_their_sizes_and_two_steps_fit_shared_memory() -> None:
    for sizes in (Sizes(1024, 8, 256, 4096), Sizes(256, 4, 64, 512), Sizes(64, 4, 16, 128)):
        for rows in (1, 10, 30, 50, 64, 400):
            blocks = sizes.blocks(rows)
            step = blocks["SPLIT"] * blocks["BLOCK_K"]
            assert [size % step for size in (sizes.width, sizes.heads * sizes.head_dim, sizes.mlp_dim)] == [
                0
            ] * 3
            assert blocks["M"] >= min(rows, 64)
            assert blocks["BLOCK_K"] >= 16
            assert 2 * 2 * step * (blocks["M"] + blocks["N_GATE_UP"]) <= 128 * 1024


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 2}, "expert.num_kv_heads must be 1, got 2"),
        ({"num_heads": 3}, r"expert.num_heads \* expert.head_dim must be a power of two >= 64, got 96"),
        ({"head_dim": 24}, r"expert.head_dim must be one of \(16, 32, 64, 128, 256\), got 24"),
        ({"width": 96}, "expert.width must be a power of two >= 64, got 96"),
        ({"mlp_dim": 100}, "expert.mlp_dim must be a power of two >= 64, got 100"),
    ],
)
def test_sizes_that_the_kernels_do_not_take_are_named(changes: dict[str, int], words: str) -> None:
    expert = GemmaDims(**{**asdict(PI05_SMALL.expert), **changes})
    shared = {
        name: value for name, value in changes.items() if name in ("num_heads", "num_kv_heads", "head_dim")
    }
    dims = replace(PI05_SMALL, expert=expert, prefix=replace(PI05_SMALL.prefix, **shared))
    with pytest.raises(ValueError, match=words):
        sizes_of(Denoise(dims, 1))


def test_a_capture_without_a_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
        Fused(warmup=0)


def test_the_fused_kernel_serves_denoise_on_a_gpu_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    with pytest.raises(RuntimeError, match="the fused kernel serves denoise; choose optim/prefix=fused_fp8"):
        Fused().check("prefix", cuda, torch.bfloat16)
    with pytest.raises(CannotRun, match="it needs an NVIDIA GPU"):
        Fused().check("denoise", torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="it needs Triton"):
        Fused().check("denoise", cuda, torch.bfloat16)


FULL = Sizes(1024, 8, 256, 4096)
H200_PROCESSORS, H200_SHARED = 132, 232_448


def test_the_ring_has_as_many_slots_as_shared_memory_holds() -> None:
    assert tiling(FULL).slot_bytes == 32 * 1024
    assert [num_slots(FULL, shared) for shared in (101_376, 166_912, H200_SHARED)] == [2, 4, 6]
    assert ring_obstacle(FULL, 10, H200_PROCESSORS, H200_SHARED) is None


@pytest.mark.parametrize(
    ("sizes", "rows", "processors", "shared", "why"),
    [
        (FULL, 17, H200_PROCESSORS, H200_SHARED, "batch * horizon must be <= 16, got 17"),
        (FULL, 10, 108, 166_912, "it needs 128 processors, this GPU has 108"),
        (FULL, 10, 142, 101_376, "it needs 4 slots in shared memory, 101376 bytes hold 2"),
        (
            Sizes(64, 4, 16, 128),
            10,
            H200_PROCESSORS,
            H200_SHARED,
            "expert.width, expert.mlp_dim and num_heads * head_dim must be >= 256, got 64",
        ),
        (
            Sizes(256, 16, 16, 512),
            10,
            H200_PROCESSORS,
            H200_SHARED,
            "expert.head_dim must be >= 32, got 16",
        ),
    ],
)
def test_what_the_ring_does_not_take_is_named(
    sizes: Sizes, rows: int, processors: int, shared: int, why: str
) -> None:
    assert ring_obstacle(sizes, rows, processors, shared) == why


@pytest.mark.parametrize(
    ("rows", "processors", "kernel"),
    [
        (1, 132, "ring"),
        (16, 132, "ring"),
        (17, 132, "compile"),
        (50, 132, "compile"),
        (10, 108, "phases"),
        (16, 108, "phases"),
        (17, 108, "compile"),
    ],
)
def test_up_to_sixteen_rows_are_a_persistent_kernels_and_more_are_compiled(
    rows: int, processors: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(multi_processor_count=processors, shared_memory_per_block_optin=H200_SHARED)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    programs.cache_clear()
    assert choose_kernel(FULL, rows, torch.device("cuda", 0)) == kernel
    programs.cache_clear()
    assert choose_kernel(FULL, rows, torch.device("cpu")) == ("phases" if rows <= 16 else "compile")


def test_each_batch_size_gets_the_fastest_kernel_and_the_details_name_them(
    small_sources: dict[str, StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_sources["denoise"]
    two = tuple(
        arg if arg is None else arg.repeat_interleave(2, dim=0 if arg.ndim == 3 else 1)
        for arg in source.examples[0]
    )
    made: list[str] = []

    class Kernel(FusedDenoise):
        def __init__(self, stage: Denoise, kernel: str) -> None:
            made.append(kernel)
            super().__init__(stage, "phases")

    monkeypatch.setattr(fused_denoise, "FusedDenoise", Kernel)
    monkeypatch.setattr(fused_denoise, "capture_each", lambda function, warmup: lambda args: function)
    monkeypatch.setattr(
        fused_denoise, "obstacle_on", lambda _, sizes, rows: "too many" if rows > 16 else None
    )
    monkeypatch.setattr(fused_denoise, "compile_denoise", lambda stage, warmup: lambda args: stage)
    stage = Fused()(replace(source, examples=[*source.examples, two]))
    assert made == ["ring"]
    assert (stage.details["kernel"], stage.details["engines"]) == ("ring, compile", 3)
    assert Fused()(replace(source, examples=[two])).details["kernel"] == "compile"
    assert Fused(kernel="phases")(replace(source, examples=[two])).details["kernel"] == "phases"
    assert made == ["ring", "phases"]


def test_more_rows_are_served_by_what_optim_denoise_compile_makes(
    small_sources: dict[str, StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[type, bool, int]] = []

    def build_compiled(stage: nn.Module, *, graph: bool, warmup: int) -> Build:
        [attention] = {type(module) for module in stage.modules() if isinstance(module, SuffixAttention)}
        asked.append((attention, graph, warmup))
        return lambda args: small_sources["denoise"].stage

    monkeypatch.setattr(fused_denoise, "build_compiled", build_compiled)
    Fused(kernel="compile", warmup=2)(small_sources["denoise"])
    assert asked == [(SplitAttention, True, 2)]


def test_a_kernel_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be one of auto, ring, phases, compile, got 'fast'"):
        Fused(kernel="fast")


@pytest.mark.parametrize(("columns", "tiles", "inner"), [(32, 1, 64), (16, 1, 128), (32, 2, 64), (16, 1, 32)])
def test_chunks_have_each_weight_where_the_kernel_reads_it(columns: int, tiles: int, inner: int) -> None:
    size = 2 * 8 * inner
    weight_LCK = torch.arange(2 * 4 * columns * size).view(2, 4 * columns, size)
    packed = ring_order(weight_LCK, columns, tiles, inner).view(2, -1, 2, tiles, 8, columns, inner)
    for layer, column, k in itertools.product(range(2), range(0, 4 * columns, 5), range(0, size, 7)):
        program, tile, of_tile = column // (tiles * columns), column // columns % tiles, column % columns
        chunk, warp, of_warp = k // (8 * inner), k // inner % 8, k % inner
        if inner >= 64 and column % 2:
            of_warp ^= 32
        position = (layer, program, chunk, tile, warp, of_tile, of_warp)
        assert packed[position] == weight_LCK[layer, column, k], position
