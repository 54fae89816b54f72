"""Tables of consecutive places: those of `rope_tables`, computed once."""

import torch

from optim.rope import ConsecutivePlaces, half_tables
from policies.pi05.layers import rope_tables


def test_consecutive_places_have_the_tables_of_their_positions_for_each_prompt_of_a_batch() -> None:
    cos, sin = ConsecutivePlaces(8)(5, 3, 2, torch.device("cpu"))
    expected = half_tables(rope_tables(torch.tensor([[5, 6, 7], [5, 6, 7]]), 8), 2)
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])
    assert cos.shape == (6, 4)


def test_tables_are_computed_once_for_each_run_of_places() -> None:
    places = ConsecutivePlaces(8)
    device = torch.device("cpu")
    assert places(0, 4, 1, device)[0] is places(0, 4, 1, device)[0]
    assert not torch.equal(places(0, 4, 1, device)[0], places(1, 4, 1, device)[0])
