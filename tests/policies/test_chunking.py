"""ActionQueue hands out the head of each chunk and refuses chunks it cannot serve."""

import numpy as np
import pytest

from policies.base import ActionChunk
from policies.chunking import ActionQueue, checked


def test_queue_hands_out_replan_steps_of_each_chunk_in_order() -> None:
    queue = ActionQueue(replan_steps=2)
    actions = np.arange(70.0).reshape(10, 7)
    queue.refill(ActionChunk(actions))
    assert len(queue) == 2
    np.testing.assert_array_equal(queue.pop(), actions[0])
    queue.refill(ActionChunk(actions + 1))
    np.testing.assert_array_equal([queue.pop(), queue.pop()], actions[:2] + 1)
    with pytest.raises(IndexError):
        queue.pop()


@pytest.mark.parametrize("shape", [(1, 7), (10, 8), (7,)])
def test_queue_refuses_chunks_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least replan_steps=2 rows of 7 actions"):
        ActionQueue(2).refill(ActionChunk(np.zeros(shape)))


def test_queue_refuses_actions_that_are_not_finite() -> None:
    actions = np.zeros((10, 7))
    actions[3, 2] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        ActionQueue(2).refill(ActionChunk(actions))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ">f8"])
def test_equal_actions_have_equal_bytes_whatever_their_type(dtype: str) -> None:
    actions = np.arange(-3.0, 4.0)[None] / (1 if dtype == np.int8 else 3)
    given = actions.astype(dtype)
    taken = checked(ActionChunk(given), 1)
    assert (taken.dtype, taken.tobytes()) == (np.float64, given.astype(np.float64).tobytes())
    assert (
        checked(ActionChunk(actions), 1) is actions
    )  # those of the project's policies are hashed as they are


def test_replan_steps_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="replan_steps must be >= 1, got 0"):
        ActionQueue(0)
