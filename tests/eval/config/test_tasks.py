"""What is known of a configuration before its tasks are loaded."""

import pytest

from eval.config.compose import configure
from eval.config.tasks import warn_of_suite


@pytest.mark.parametrize(
    ("checkpoint", "suite", "warned"),
    [
        ("reference", "libero_spatial", False),
        ("reference", "libero_goal", True),
        ("lerobot_pi05_libero", "libero_10", False),
        ("lerobot_pi05_libero", "libero_90", True),
        ("random_small", "libero_goal", False),
    ],
)
def test_a_suite_that_a_checkpoint_was_not_trained_for_is_named(
    checkpoint: str, suite: str, warned: bool
) -> None:
    warning = warn_of_suite(configure([f"checkpoint={checkpoint}", f"suite={suite}"]))
    assert (warning is not None) == warned
    assert warning is None or f"not for {suite}" in warning


def test_the_oracle_has_no_checkpoint_to_warn_of() -> None:
    config = configure(["policy=oracle"])
    config.suite.name = "libero_goal"
    assert warn_of_suite(config) is None
