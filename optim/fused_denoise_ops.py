"""The fused steps of an expert layer: launches of Triton kernels, each with its plain reference beside it.

M rows (B * H), W width of the expert, X query heads, D head dimension, H horizon, F width of the MLP, A
action dimensions, N columns of a weight. Weights are (out, in) as in `nn.Linear`, packed as the kernels say.

Floors of one layer at full size and bf16, on an H200 (4.27 TB/s), by the bytes of its weights: qkv 5.2 MB,
1.2 us; output projection 4.2 MB, 1.0 us; gate and up 16.8 MB, 3.9 us; down 8.4 MB, 2.0 us.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from optim.fp8 import FP8_MAX, quantise
from optim.fused_attention import dependent
from policies.pi05.layers import NORM_EPS, rms_normalise

MOST_ROWS = 64


@dataclass(frozen=True)
class Modulation:
    """What adaRMS adds to one norm at one t, folded into the matmul that follows.

    Attributes:
        one_plus_scale_W: float32.
        shifted_N: float32, the shift times the weight that follows (plus that weight's bias, if it has one).
        gate_W: float32, of the residual.
    """

    one_plus_scale_W: Tensor
    shifted_N: Tensor
    gate_W: Tensor


@dataclass(frozen=True)
class Weight:
    """A packed weight (out, in): in the activations' precision, or in FP8 with a scale for each row.

    Attributes:
        scale_N: float32; None if the values are the weight.
    """

    values_NK: Tensor
    scale_N: Tensor | None = None

    @classmethod
    def in_fp8(cls, weight_NK: Tensor) -> "Weight":
        """Return a weight in FP8, each row with a scale of its own."""
        scale_N = weight_NK.float().abs().amax(dim=1).clamp(min=1e-12) / FP8_MAX
        return cls(quantise(weight_NK, 1.0 / scale_N[:, None]).contiguous(), scale_N)

    def dense(self) -> Tensor:
        """Return the weight in float32."""
        values = self.values_NK.float()
        return values if self.scale_N is None else values * self.scale_N[:, None]


@dataclass(frozen=True)
class Blocks:
    """How a kernel cuts its weight: columns of a program, inner dimension of a step, warps, stages."""

    n: int
    k: int
    warps: int = 4
    stages: int = 4


@dataclass(frozen=True)
class Launch:
    """How the kernels of a stage are launched.

    Attributes:
        blocks: of each kernel.
        overlap: launch a kernel before the one that it waits for has ended.
    """

    blocks: Mapping[str, Blocks]
    overlap: bool = False


DEFAULT_BLOCKS = {
    "qkv": Blocks(32, 128),
    "gate_up": Blocks(64, 128),
    "residual": Blocks(16, 256),
    "action_in": Blocks(64, 32),
    "euler": Blocks(16, 128),
}
# By the major compute capability; 132 processors want at least as many programs. Others get the default.
BLOCKS: dict[int, dict[str, Blocks]] = {9: DEFAULT_BLOCKS}
OVERLAP_CAPABILITY = 9  # Hopper


def launch_for(device: torch.device, *, overlap: bool) -> Launch:
    """Return how to launch on a device; it overlaps where it is asked to and the GPU can."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    return Launch(BLOCKS.get(major, DEFAULT_BLOCKS), overlap and major >= OVERLAP_CAPABILITY)


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Return rows first[0], second[0], first[1], second[1], ..."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


def power_of_two_within(block: int, size: int, what: str) -> int:
    """Return the largest power of two up to `block` that divides `size`.

    Raises:
        ValueError: it is below 16, the least that tensor cores take.
    """
    found = min(block, size & -size)
    if found < 16:
        raise ValueError(f"{what} must be a multiple of 16, got {size}; use optim/denoise=compile")
    return found


def qkv(
    x_MW: Tensor,
    modulation: Modulation,
    weight: Weight,
    rope: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor],
    launch: Launch,
) -> None:
    """Write queries_BXHD, keys_B1HD (both after RoPE) and values_B1HD.

    Args:
        weight: X heads of queries, one of keys, one of values; see `pack_qkv`.
        rope: float32 cos and sin, each (M, D / 2).
    """
    from optim.fused_denoise_kernels import qkv_kernel

    queries_BXHD, keys, values = outputs
    _, heads, horizon, dim = queries_BXHD.shape
    rows, width = x_MW.shape
    blocks = launch.blocks["qkv"]
    block_n = power_of_two_within(min(blocks.n, dim), dim, "head_dim")
    qkv_kernel[(weight.values_NK.shape[0] // block_n,)](
        x_MW,
        modulation.one_plus_scale_W,
        modulation.shifted_N,
        *_pointers(weight),
        *rope,
        queries_BXHD,
        keys,
        values,
        rows,
        horizon,
        NORM_EPS,
        W=width,
        X=heads,
        D=dim,
        BLOCK_M=_block_rows(rows),
        BLOCK_N=block_n,
        BLOCK_K=power_of_two_within(blocks.k, width, "expert.width"),
        SCALED=weight.scale_N is not None,
        OVERLAP=launch.overlap,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **dependent(launch.overlap),
    )


def qkv_reference(
    x_MW: Tensor, modulation: Modulation, weight: Weight, rope: tuple[Tensor, Tensor], shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `qkv` writes for queries of `shape`, float32."""
    batch, heads, horizon, dim = shape
    out_MN = _modulated(x_MW, modulation, weight.dense())
    out = out_MN.view(batch, horizon, heads + 2, dim).transpose(1, 2)
    cos, sin = (table.view(batch, 1, horizon, dim // 2) for table in rope)
    first, second = out[:, : heads + 1, :, 0::2], out[:, : heads + 1, :, 1::2]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated[:, :heads], rotated[:, heads:], out[:, heads + 1 :]


def pack_qkv(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    """Return one weight whose rows pair the partners of RoPE: d, d + D / 2 for each d of a head."""
    heads = [*q.split(dim), *k.split(dim)]
    paired = [interleave(head[: dim // 2], head[dim // 2 :]) for head in heads]
    return torch.cat([*paired, v]).contiguous()


def gate_up(x_MW: Tensor, modulation: Modulation, weight: Weight, hidden_MF: Tensor, launch: Launch) -> None:
    """Write the GEGLU of the gate and up projections, whose columns alternate in `weight`."""
    from optim.fused_denoise_kernels import gate_up_kernel

    rows, width = x_MW.shape
    columns = weight.values_NK.shape[0]
    blocks = launch.blocks["gate_up"]
    block_n = power_of_two_within(blocks.n, columns, "expert.mlp_dim")
    gate_up_kernel[(columns // block_n,)](
        x_MW,
        modulation.one_plus_scale_W,
        modulation.shifted_N,
        *_pointers(weight),
        hidden_MF,
        rows,
        NORM_EPS,
        W=width,
        F=columns // 2,
        BLOCK_M=_block_rows(rows),
        BLOCK_N=block_n,
        BLOCK_K=power_of_two_within(blocks.k, width, "expert.width"),
        SCALED=weight.scale_N is not None,
        OVERLAP=launch.overlap,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **dependent(launch.overlap),
    )


def gate_up_reference(x_MW: Tensor, modulation: Modulation, weight: Weight) -> Tensor:
    """Return what `gate_up` writes, float32."""
    out_MN = _modulated(x_MW, modulation, weight.dense())
    return F.gelu(out_MN[:, 0::2], approximate="tanh") * out_MN[:, 1::2]


def add_residual(a_MK: Tensor, weight: Weight, gate_N: Tensor, x_MN: Tensor, launch: Launch) -> None:
    """Add gate * (a times weight) to `x_MN`, in place."""
    from optim.fused_denoise_kernels import residual_kernel

    rows, inner = a_MK.shape
    columns = weight.values_NK.shape[0]
    blocks = launch.blocks["residual"]
    block_n = power_of_two_within(blocks.n, columns, "expert.width")
    residual_kernel[(columns // block_n,)](
        a_MK,
        *_pointers(weight),
        gate_N,
        x_MN,
        rows,
        K=inner,
        N=columns,
        BLOCK_M=_block_rows(rows),
        BLOCK_N=block_n,
        BLOCK_K=power_of_two_within(blocks.k, inner, "heads * head_dim and expert.mlp_dim"),
        SCALED=weight.scale_N is not None,
        OVERLAP=launch.overlap,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **dependent(launch.overlap),
    )


def add_residual_reference(a_MK: Tensor, weight: Weight, gate_N: Tensor, x_MN: Tensor) -> Tensor:
    """Return what `add_residual` leaves in `x_MN`."""
    return x_MN + gate_N * (a_MK.float() @ weight.dense().T)


def action_in(actions_MA: Tensor, weight_WA: Tensor, bias_W: Tensor, x_MW: Tensor, launch: Launch) -> None:
    """Write the embedded actions, float32."""
    from optim.fused_denoise_kernels import action_in_kernel

    rows, dim = actions_MA.shape
    width = weight_WA.shape[0]
    blocks = launch.blocks["action_in"]
    block_n = power_of_two_within(blocks.n, width, "expert.width")
    action_in_kernel[(width // block_n,)](
        actions_MA,
        weight_WA,
        bias_W,
        x_MW,
        rows,
        A=dim,
        W=width,
        BLOCK_M=_block_rows(rows),
        BLOCK_N=block_n,
        OVERLAP=launch.overlap,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **dependent(launch.overlap),
    )


def action_in_reference(actions_MA: Tensor, weight_WA: Tensor, bias_W: Tensor) -> Tensor:
    """Return what `action_in` writes."""
    return F.linear(actions_MA, weight_WA, bias_W)


def euler_step(
    x_MW: Tensor, modulation: Modulation, weight_AW: Tensor, dt: float, actions_MA: Tensor, launch: Launch
) -> None:
    """Take one Euler step of `actions_MA`, in place: final norm, projection to a velocity, times dt."""
    from optim.fused_denoise_kernels import euler_kernel

    rows, width = x_MW.shape
    dim = weight_AW.shape[0]
    blocks = launch.blocks["euler"]
    block_n = power_of_two_within(blocks.n, dim, "action_dim")
    euler_kernel[(dim // block_n,)](
        x_MW,
        modulation.one_plus_scale_W,
        modulation.shifted_N,
        weight_AW,
        actions_MA,
        rows,
        dt,
        NORM_EPS,
        A=dim,
        W=width,
        BLOCK_M=_block_rows(rows),
        BLOCK_N=block_n,
        BLOCK_K=power_of_two_within(blocks.k, width, "expert.width"),
        OVERLAP=launch.overlap,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **dependent(launch.overlap),
    )


def euler_step_reference(
    x_MW: Tensor, modulation: Modulation, weight_AW: Tensor, dt: float, actions_MA: Tensor
) -> Tensor:
    """Return what `euler_step` leaves in `actions_MA`."""
    return actions_MA + dt * _modulated(x_MW, modulation, weight_AW)


def _modulated(x_MW: Tensor, modulation: Modulation, weight_NW: Tensor) -> Tensor:
    scaled = rms_normalise(x_MW) * modulation.one_plus_scale_W
    return scaled @ weight_NW.T + modulation.shifted_N


def _pointers(weight: Weight) -> tuple[Tensor, Tensor]:
    """Return values and scale; the values twice where there is no scale, which is then not read."""
    return weight.values_NK, weight.values_NK if weight.scale_N is None else weight.scale_N


def _block_rows(rows: int) -> int:
    if rows > MOST_ROWS:
        raise ValueError(
            f"batch * horizon must be <= {MOST_ROWS}, got {rows}; "
            "use optim/denoise=compile, or smaller batches"
        )
    return max(16, 1 << (rows - 1).bit_length())
