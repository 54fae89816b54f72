"""Tables of RoPE as the Triton kernels read them."""

from torch import Tensor


def half_table(table: Tensor, batch: int, dim: int) -> Tensor:
    """Return a table whose halves are equal as rows of all tokens of a batch, (B T, D / 2), contiguous."""
    tokens = table.shape[-2]
    return table[..., : dim // 2].expand(batch, 1, tokens, dim // 2).reshape(-1, dim // 2).contiguous()
