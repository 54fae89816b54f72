"""What the server's tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two threads on a shared machine are slower, and actions depend on their number
