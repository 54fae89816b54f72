"""Write a safetensors file tensor by tensor: the header first, then the numbers as they come.

The format (README of huggingface/safetensors): 8 bytes with the header's length, little-endian; the header,
JSON, padded with spaces to a multiple of 8; then the tensors without gaps.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
) -> str:
    """Write a file and return its SHA-256; one tensor at a time is in memory.

    Args:
        layout: by key, precision and shape of each tensor, in the order of the file. Larger numbers must come
            first, or readers would meet float32 off its alignment.
        tensors: the same keys in the same order.
    """
    header = _header(layout)
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        expected = iter(layout.items())
        for key, tensor in tensors:
            assert (key, (tensor.dtype, tuple(tensor.shape))) == next(expected, None)
            numbers = tensor.contiguous().view(torch.uint8).numpy().data
            file.write(numbers)
            digest.update(numbers)
            del tensor, numbers  # or a view of the array before would live while the next one is read
        assert next(expected, None) is None
    return digest.hexdigest()


def _header(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (dtype, shape) in layout.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        assert start % dtype.itemsize == 0, f"{key} is not aligned; larger numbers must come first"
        header[key] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
