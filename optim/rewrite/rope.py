"""Tables of RoPE as the Triton kernels read them."""

import torch
from torch import Tensor

from policies.pi05.layers import rope_tables

Tables = tuple[Tensor, Tensor]


def half_tables(tables: Tables, batch: int) -> Tables:
    """Take one half of cos and sin, whose halves are equal, as rows of all tokens of a batch (B T, D / 2)."""
    cos, sin = (_half(table, batch) for table in tables)
    return cos, sin


class ConsecutivePositions:
    """Tables of positions that follow one another, computed at the first call for them and kept.

    Non-obvious behaviors:
        A graph that is captured after such a call (a warm-up) reads tables instead of computing them. The
        first call must not be captured: the tables would lie in memory that the graph reuses.
    """

    def __init__(self, head_dim: int) -> None:
        self._head_dim = head_dim
        self._known: dict[tuple[int, int, int, torch.device], Tables] = {}

    def __call__(self, first: int, count: int, batch: int, device: torch.device) -> Tables:
        """Look up cos and sin of positions first to first + count - 1, each (B count, D / 2)."""
        key = (first, count, batch, device)
        if key not in self._known:
            positions_1P = torch.arange(first, first + count, device=device)[None]
            self._known[key] = half_tables(rope_tables(positions_1P, self._head_dim), batch)
        return self._known[key]


def _half(table: Tensor, batch: int) -> Tensor:
    tokens, half = table.shape[-2], table.shape[-1] // 2
    return table[..., :half].expand(batch, 1, tokens, half).reshape(-1, half).contiguous()
