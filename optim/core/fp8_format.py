"""The FP8 number format: its dtype, its range, and how values become it."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


FP8_MAX = 448.0  # largest finite e4m3fn


FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


def quantise(x: Tensor, inverse_scale: Tensor) -> Tensor:
    """Compute x * inverse_scale in e4m3, saturated: what a bare cast does depends on torch's version."""
    return (x.float() * inverse_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
