"""What the tests of backends share."""

import pytest
import torch

from optim.base import StageContext
from policies.pi05.checkpoint import Checkpoint
from tests.optim.small import random_checkpoint, random_request, sources


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two threads on a shared machine are slower, and results do not depend on them


@pytest.fixture(scope="session")
def small() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture(scope="session")
def small_sources(small: Checkpoint) -> dict[str, StageContext]:
    """Two observations, whose prompts differ in length."""
    return sources(small, [random_request(0), random_request(1, "open the top drawer of the wooden cabinet")])
