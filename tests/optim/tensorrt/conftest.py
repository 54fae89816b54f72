"""What the tests of TensorRT share."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def quantize_op() -> Iterator[None]:
    """modelopt's operator, rounding to e4m3, where modelopt is absent."""
    if importlib.util.find_spec("modelopt") or hasattr(torch.ops.tensorrt, "quantize_op"):
        yield
        return

    def rounded(x: Tensor, amax: Tensor, *how: Any) -> Tensor:
        assert how == (8, 4, False, False)
        assert amax.shape == (1,)
        scaled = (x.float() * (448.0 / amax)).clamp(-448.0, 448.0)
        return (scaled.to(torch.float8_e4m3fn).float() * (amax / 448.0)).to(x.dtype)

    with torch.library._scoped_library("tensorrt", "FRAGMENT") as library:
        library.define(
            "quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, "
            "bool narrow_range) -> Tensor"
        )
        library.impl("quantize_op", rounded, "CompositeExplicitAutograd")
        yield
