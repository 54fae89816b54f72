"""The table of simulator costs compares equal episodes, or the command fails."""

import numpy as np
import pytest
from numpy.typing import NDArray

from eval import env_cost
from eval.libero_env import Task
from policies.base import EpisodeKey

STEPS = 3


@pytest.mark.sim
def test_every_environment_ends_in_upstreams_state(capsys: pytest.CaptureFixture[str]) -> None:
    env_cost.main(["--task", "0", "--steps", str(STEPS)])
    table = capsys.readouterr().out
    assert f"{STEPS} oracle steps" in table
    assert table.count(" yes ") == 4
    assert " NO " not in table


@pytest.mark.sim
def test_an_episode_that_ends_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_cost = env_cost.our_cost

    def tampered(
        task: Task, key: EpisodeKey, actions: list[NDArray[np.float64]], look_every: int | None
    ) -> env_cost.Cost:
        """Leave out the last action in the environment without cameras."""
        return true_cost(task, key, actions[:-1] if look_every is None else actions, look_every)

    monkeypatch.setattr(env_cost, "our_cost", tampered)
    with pytest.raises(SystemExit) as stopped:
        env_cost.main(["--steps", str(STEPS)])
    assert isinstance(stopped.value.code, str)  # Python prints it on stderr and exits 1
    assert stopped.value.code.startswith("error: final states differ")
    assert "ours, no cameras" in stopped.value.code
    assert "every 5 steps" not in stopped.value.code
    table = capsys.readouterr().out
    assert (table.count(" yes "), table.count(" NO ")) == (3, 1)


def test_states_are_compared_to_the_bit() -> None:
    state = np.linspace(0.0, 1.0, 5)
    off = state.copy()
    off[3] = np.nextafter(off[3], 2.0)
    assert env_cost.unequal({"upstream": ({}, state), "same": ({}, state.copy()), "off": ({}, off)}) == [
        "off"
    ]
    assert env_cost.unequal({"upstream": ({}, state), "longer": ({}, np.append(state, 0.0))}) == ["longer"]


def test_an_episode_without_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        env_cost.main(["--steps", "0"])
    assert stopped.value.code == 2
    assert "--steps must be >= 1, got 0" in capsys.readouterr().err
