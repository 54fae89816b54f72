"""Seeds and noise are functions of names."""

import numpy as np

from policies.base import EpisodeKey
from policies.seeding import action_noise, stable_seed

KEY = EpisodeKey("libero_spatial", 3, 5, 7)


def test_stable_seed_is_the_same_on_every_machine() -> None:
    assert stable_seed("reset", "libero_spatial", 0, 0, 7) == 3324998203


def test_noise_changes_with_each_part_of_its_key_and_with_nothing_else() -> None:
    reference = action_noise(KEY, 0, 10, 32)
    np.testing.assert_array_equal(reference, action_noise(KEY, 0, 10, 32))
    for key, call in [
        (EpisodeKey("libero_goal", 3, 5, 7), 0),
        (EpisodeKey("libero_spatial", 4, 5, 7), 0),
        (EpisodeKey("libero_spatial", 3, 6, 7), 0),
        (EpisodeKey("libero_spatial", 3, 5, 8), 0),
        (KEY, 1),
    ]:
        assert not np.array_equal(reference, action_noise(key, call, 10, 32))


def test_noise_is_standard_normal() -> None:
    draws = np.stack([action_noise(KEY, call, 50, 32) for call in range(50)])
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
