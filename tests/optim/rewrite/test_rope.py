"""Tables of consecutive positions: those of `rope_tables`, computed once."""

import torch

from optim.rewrite.rope import ConsecutivePositions, half_tables
from policies.pi05.layers import rope_tables


def test_consecutive_positions_have_the_tables_of_their_positions_for_each_prompt_of_a_batch() -> None:
    cos, sin = ConsecutivePositions(8)(5, 3, 2, torch.device("cpu"))
    expected = half_tables(rope_tables(torch.tensor([[5, 6, 7], [5, 6, 7]]), 8), 2)
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])
    assert cos.shape == (6, 4)


def test_tables_are_computed_once_for_each_range() -> None:
    tables = ConsecutivePositions(8)
    device = torch.device("cpu")
    assert tables(0, 4, 1, device)[0] is tables(0, 4, 1, device)[0]
    assert not torch.equal(tables(0, 4, 1, device)[0], tables(1, 4, 1, device)[0])
