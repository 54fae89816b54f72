"""The policy, the YAML and the signatures that docs/own_policy.md and the example show are real."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from examples.my_policy.lerobot_policy import LeRobotPolicy
from examples.my_policy.tiny import TinyPolicy
from policies.base import EpisodeKey, Observation, Policy, Request
from policies.chunking import ActionQueue
from policies.files import ROOT

PAGE = (ROOT / "docs" / "own_policy.md").read_text()
YAMLS = ROOT / "examples" / "my_policy" / "conf" / "policy"
ARGUMENTS = {"my_policy.tiny.TinyPolicy": TinyPolicy, "my_policy.lerobot_policy.LeRobotPolicy": LeRobotPolicy}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def request(call: int) -> Request:
    return Request(Observation({}, np.zeros(8), "pick"), EpisodeKey("libero_spatial", 0, 1, 7), call)


def documented_policy(size: float) -> Policy:
    names: dict[str, type[Policy]] = {}
    exec(blocks("python")[0], names)
    return names["RandomPolicy"](size=size)  # type: ignore[call-arg]


def test_the_smallest_policy_has_thirteen_lines_at_most() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 13


@pytest.mark.parametrize("make", [documented_policy, TinyPolicy])
def test_the_smallest_policies_draw_actions_from_the_key_and_their_size(make: type[TinyPolicy]) -> None:
    policy = make(size=0.3)
    first, second = policy.infer([request(0), request(1)])
    queue = ActionQueue(policy.replan_steps)
    queue.refill(first)
    assert len(queue) == policy.replan_steps
    assert not np.array_equal(first.actions_HJ, second.actions_HJ)
    [again] = make(size=0.6).infer([request(1)])
    np.testing.assert_allclose(again.actions_HJ, 2 * second.actions_HJ)
    assert (policy.provenance(), policy.engagement(), policy.cameras) == ({}, {}, ())


def test_the_page_shows_the_yaml_of_the_example() -> None:
    assert yaml.safe_load(blocks("yaml")[0]) == yaml.safe_load((YAMLS / "tiny.yaml").read_text())


@pytest.mark.parametrize("path", sorted(YAMLS.iterdir()), ids=lambda path: path.name)
def test_each_yaml_gives_the_arguments_of_its_class_with_their_defaults(path: Path) -> None:
    shown = yaml.safe_load(path.read_text())
    parameters = inspect.signature(ARGUMENTS[shown["_target_"]]).parameters
    empty = {"cameras": {}, "config": {}, "path": "???"}
    assert shown["name"] == path.stem
    assert shown["args"] == {
        name: empty.get(name, parameter.default)
        for name, parameter in parameters.items()
        if name in shown["args"]
    }
    left_out = set(parameters) - set(shown["args"])
    assert left_out <= {"live_episodes"}
