"""Shared fixtures: the simulator stack, GPU skips."""

import pytest
import torch

from eval.sim.stack import prepare


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # item.keywords also holds parameter ids
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def simulator() -> dict[str, str]:
    """The simulator stack, checked and imported; its versions and GL backend."""
    return prepare()
