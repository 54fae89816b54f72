"""Roofline: the least time a stage can take, from the bytes it must read and the operations it must do.

One inference, batch 1. P prefix tokens, H action tokens, K Euler steps.

Counted: weights, read once a call and in denoise once a step; the operations of matmuls and attention, masked
tokens included. Not counted, so that the floor stays one: activations and KV cache, which the L2 cache may
hold; embedding tables, of which few rows are read; adaRMS modulations and time MLP, which depend on weights
and steps alone. Weights that are float32 in every precision (patches, the expert's heads) count as others do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from policies.pi05.dims import STAGES, GemmaDims, Pi05Dims

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True)
class Ceiling:
    """What one GPU can do.

    Attributes:
        bytes_per_s: of a copy, read and written bytes together.
        flops_per_s: of large matmuls, by precision.
    """

    bytes_per_s: float
    flops_per_s: Mapping[str, float]


# By a part of torch's name for the GPU. Measured on one H200 with torch 2.11: a copy; matmuls of 544 to 968
# rows with 2048 x 32768 weights, in FP8 through `torch._scaled_mm`.
# float16 was not measured: NVIDIA's data sheet gives it the rate of bfloat16.
CEILINGS = {"H200": Ceiling(4.27e12, {"bfloat16": 710e12, "float16": 710e12, "fp8": 1260e12})}


@dataclass(frozen=True)
class Work:
    """What a stage must do in one inference.

    Attributes:
        layer_weights: numbers in the linears of its layers, the ones that FP8 quantises.
        other_weights: in its other linears.
        reads: how often the weights are read.
        layer_flops, other_flops: of these linears.
        attention_flops: of queries times keys, and of the result times values.
    """

    layer_weights: int
    other_weights: int
    reads: int
    layer_flops: int
    other_flops: int
    attention_flops: int


def work(dims: Pi05Dims, *, images: int, prefix_tokens: int, steps: int) -> dict[str, Work]:
    """Count the work of each stage.

    Args:
        images: that the vision stage gets.
        prefix_tokens: of images and prompt, masked ones included.
    """
    vision = _vision(dims, images)
    prefix = _prefix(dims.prefix, prefix_tokens)
    return dict(zip(STAGES, (vision, prefix, _denoise(dims, prefix_tokens, steps)), strict=True))


def floor_ms(work: Work, ceiling: Ceiling, precision: str) -> float:
    """Compute the least milliseconds of a stage: the larger of reading its weights and doing its operations.

    Args:
        precision: of the layers' linears. With fp8, everything else is bfloat16.

    Raises:
        KeyError: a precision for which the ceiling has no number.
    """
    rest = "bfloat16" if precision == "fp8" else precision
    read_bytes = work.reads * (
        work.layer_weights * WEIGHT_BYTES[precision] + work.other_weights * WEIGHT_BYTES[rest]
    )
    compute_s = work.layer_flops / ceiling.flops_per_s[precision]
    compute_s += (work.other_flops + work.attention_flops) / ceiling.flops_per_s[rest]
    return 1e3 * max(read_bytes / ceiling.bytes_per_s, compute_s)


def find_ceiling(gpu: str | None) -> Ceiling | None:
    """Find what the GPU of this name can do; None where nobody measured it."""
    return next((ceiling for part, ceiling in CEILINGS.items() if gpu is not None and part in gpu), None)


def _vision(dims: Pi05Dims, images: int) -> Work:
    sizes, tokens = dims.vision, images * dims.tokens_per_image
    layers = sizes.layers * (4 * sizes.hidden_size**2 + 2 * sizes.hidden_size * sizes.intermediate_size)
    others = 3 * dims.patch_size**2 * sizes.hidden_size + sizes.hidden_size * dims.prefix.width
    attention = 4 * sizes.layers * tokens * dims.tokens_per_image * sizes.hidden_size
    return Work(layers, others, 1, 2 * tokens * layers, 2 * tokens * others, attention)


def _prefix(sizes: GemmaDims, tokens: int) -> Work:
    # the last layer gives keys and values alone
    layers = (sizes.depth - 1) * _layer_weights(sizes) + _key_value_weights(sizes)
    attention = 4 * (sizes.depth - 1) * tokens * tokens * sizes.num_heads * sizes.head_dim
    return Work(layers, 0, 1, 2 * tokens * layers, 0, attention)


def _denoise(dims: Pi05Dims, prefix_tokens: int, steps: int) -> Work:
    sizes, tokens = dims.expert, dims.action_horizon
    layers = sizes.depth * _layer_weights(sizes)
    others = 2 * dims.action_dim * sizes.width
    keys = prefix_tokens + tokens
    attention = 4 * steps * sizes.depth * tokens * keys * sizes.num_heads * sizes.head_dim
    return Work(layers, others, steps, 2 * steps * tokens * layers, 2 * steps * tokens * others, attention)


def _layer_weights(sizes: GemmaDims) -> int:
    queries_output = 2 * sizes.width * sizes.num_heads * sizes.head_dim
    return queries_output + _key_value_weights(sizes) + 3 * sizes.width * sizes.mlp_dim


def _key_value_weights(sizes: GemmaDims) -> int:
    return 2 * sizes.width * sizes.num_kv_heads * sizes.head_dim
