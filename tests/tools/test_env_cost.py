"""The table of simulator costs compares equal episodes, or the command fails."""

import numpy as np
import pytest

from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey
from tools import env_cost

STEPS = 3


@pytest.fixture(scope="module")
def costs(simulator: dict[str, str]) -> dict[str, env_cost.Cost]:
    """What `compare` measures in a few steps, once for all tests: upstream renders every step."""
    return env_cost.compare(load_tasks("libero_spatial")[0], EpisodeKey("libero_spatial", 0, 0, 7), STEPS)


@pytest.mark.sim
def test_every_environment_ends_in_upstreams_state(
    costs: dict[str, env_cost.Cost], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(env_cost, "compare", lambda task, key, num_steps: costs)
    env_cost.main(["--steps", str(STEPS)])
    table = capsys.readouterr().out
    assert f"{STEPS} oracle steps" in table
    assert table.count(" yes ") == len(costs) == 4
    assert " NO " not in table


@pytest.mark.sim
def test_an_episode_that_ends_elsewhere_is_an_error(
    costs: dict[str, env_cost.Cost], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, final = costs["ours, no cameras"]
    tampered = costs | {"ours, no cameras": (seconds, np.nextafter(final, np.inf))}
    monkeypatch.setattr(env_cost, "compare", lambda task, key, num_steps: tampered)
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
