"""What a policy of others says of itself is recorded as readers read it, or refused before an episode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.api import evaluate
from eval.config.schema import ConfigError
from eval.records.reader import read_run
from eval.records.writer import RecordingError
from eval.runners.local import LocalRunner
from eval.specs.custom import CheckedPolicy
from policies.base import ActionChunk
from tests.eval import fake_run
from tests.eval.fakes import SIMULATOR, ArithmeticPolicy
from tests.eval.specs.test_custom import REQUEST

SERVED = {"backend": "mine", "calls": 1, "misses": 0}


class Says(ArithmeticPolicy):
    """Says of itself what it is told to."""

    def __init__(self, facts: Any = None, engagement: Any = None) -> None:
        super().__init__()
        self.facts = {} if facts is None else facts
        self.served = {} if engagement is None else engagement

    def provenance(self) -> Any:
        return self.facts

    def engagement(self) -> Any:
        return self.served


def deep() -> Any:
    value: Any = 1
    for _ in range(3000):
        value = [value]
    return value


class Raises:
    def __get__(self, *_: Any) -> Any:
        raise ZeroDivisionError("not\nnow")


FACTS: list[tuple[Any, str]] = [
    ("text", "must return a mapping, got 'text'"),
    ([], "must return a mapping, got []"),
    ({"checkpoint": 3}, "cannot be recorded: checkpoint: Input should be a valid string, got 3"),
    ({"checkpoint": Path("/a")}, "cannot be recorded: it.checkpoint is a PosixPath, which has no JSON form"),
    ({"checkpoint": "x" * 2000}, "checkpoint: String should have at most 1000 characters"),
    ({"weights_sha256": ["a"]}, "weights_sha256: Input should be a valid string, got ['a']"),
    ({"weights_label": True}, "weights_label: Input should be a valid string, got True"),
    ({"denoise_steps": "ten"}, "denoise_steps: Input should be a valid integer, got 'ten'"),
    ({"horizon": -1}, "horizon: Input should be greater than or equal to 0, got -1"),
    ({"settings": 3}, "settings: Input should be a valid dictionary, got 3"),
    ({"settings": {"a": {"value": 1}}}, "settings.a.from: Field required"),
    ({"dtype": "float32", "form": "x"}, "has a dtype, and must have device, denoise_steps, replan_steps too"),
    ({"x": np.float32(1)}, "it.x is a float32, which has no JSON form"),
    ({"x": np.zeros(3)}, "it.x is a ndarray, which has no JSON form"),
    ({"x": float("nan")}, "it.x must be finite, got nan"),
    ({"x": {3: 4}}, "it.x has the key 3; JSON keys are text"),
    ({"x": "y" * 5_000_000}, "must have at most 4194304 characters in JSON"),
    ({"x": deep()}, "too deep to record"),
]
ENGAGEMENTS: list[tuple[Any, str]] = [
    ("text", "must return a mapping, got 'text'"),
    ({"vision": {"calls": 3}}, "vision.backend: Field required"),
    ({"vision": {**SERVED, "calls": 1.5}}, "vision.calls: Input should be a valid integer, got 1.5"),
    ({"vision": {**SERVED, "misses": -1}}, "vision.misses: Input should be greater than or equal to 0"),
    ({"vision": {**SERVED, "more": 1}}, "vision.more: Extra inputs are not permitted"),
    ({"vision": {**SERVED, "calls": np.int64(3)}}, "it.vision.calls is a int64, which has no JSON form"),
    ({3: SERVED}, "it has the key 3; JSON keys are text"),
]
MEMBERS: list[tuple[str, Any, str]] = [
    ("cameras", None, "cameras of policy=mine must be a tuple of names, got None"),
    ("cameras", 3, "cameras of policy=mine must be a tuple of names, got 3"),
    ("cameras", ("agentview_image", 3), "cameras of policy=mine must be a tuple of names, got ('agentv"),
    ("cameras", ("agentview_image",) * 2, "cameras of policy=mine must be a tuple of names, got ('agentv"),
    ("cameras", {"agentview_image"}, "cameras of policy=mine must be a tuple of names, got {'agentv"),
    ("needs_privileged", None, "needs_privileged of policy=mine must be True or False, got None"),
    ("infer", None, "infer of policy=mine must be a method"),
    ("provenance", {}, "provenance of policy=mine must be a method"),
    ("engagement", {}, "engagement of policy=mine must be a method"),
]


def refused(policy: Any) -> str:
    with pytest.raises(ConfigError) as error:
        CheckedPolicy(policy, "mine", {})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("facts", "says"), FACTS)
def test_a_provenance_that_no_run_can_record_is_refused(facts: Any, says: str) -> None:
    message = refused(Says(facts))
    assert message.startswith("provenance() of policy=mine ")
    assert says in message


@pytest.mark.parametrize(("engagement", "says"), ENGAGEMENTS)
def test_an_engagement_that_no_run_can_record_is_refused(engagement: Any, says: str) -> None:
    message = refused(Says({}, engagement))
    assert message.startswith("engagement() of policy=mine ")
    assert says in message


@pytest.mark.parametrize(("member", "value", "says"), MEMBERS)
def test_a_member_of_another_type_is_refused(member: str, value: Any, says: str) -> None:
    policy = Says()
    setattr(policy, member, value)
    assert says in refused(policy)


@pytest.mark.parametrize("member", ["provenance", "engagement", "cameras"])
def test_a_member_that_raises_is_one_line(member: str) -> None:
    policy = type("Broken", (Says,), {member: Raises()})()
    assert "raised ZeroDivisionError: not" in refused(policy)


def test_a_policy_that_is_an_object_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^provenance\(\) of policy=mine cannot be recorded: checkpoint"):
        evaluate(Says({"checkpoint": 3}), folder=tmp_path / "run", name="mine", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_is_accepted_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "checkpoint": "best",
        "weights_sha256": None,
        "weights_label": "of today",
        "more": {"sizes": (1, 2.5, None, True), "name": "ä"},
    }
    policy = CheckedPolicy(Says(facts, {"vision": {**SERVED, "details": {"a": 1}}}), "mine", {"target": "t"})
    monkeypatch.setattr(fake_run, "start", lambda *_, **__: LocalRunner(policy, SIMULATOR))
    run = fake_run.run(tmp_path / "run")
    about = policy.provenance()
    assert about == {**facts, "more": {"sizes": [1, 2.5, None, True], "name": "ä"}, "target": "t"}
    assert run.run["engagement"]["vision"]["details"] == {"a": 1}
    assert read_run(tmp_path / "run").episodes


class Turns(Says):
    """Its engagement is one at first, and none after some calls."""

    def infer(self, requests: Any) -> list[ActionChunk]:
        if self.calls == 4:
            self.served = {"vision": {"calls": "many"}}
        return super().infer(requests)


def test_an_engagement_that_turns_wrong_ends_the_run_in_one_line_and_leaves_it_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = CheckedPolicy(Turns({}, {"vision": SERVED}), "mine", {})
    monkeypatch.setattr(fake_run, "start", lambda *_, **__: LocalRunner(policy, SIMULATOR))
    with pytest.raises(RecordingError, match=r"^engagement\(\) of policy=mine cannot be recorded: vision"):
        fake_run.run(tmp_path / "run")
    assert read_run(tmp_path / "run").episodes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda chunk: ActionChunk(chunk.actions_HJ, 3), "stage_ms or backends that are no mapping"),
        (lambda chunk: ActionChunk(chunk.actions_HJ, {"a": np.float32(1)}), "stage_ms['a']="),
        (lambda chunk: ActionChunk(chunk.actions_HJ, {"a": 0.0}), "stage_ms['a']=0.0; it must be"),
        (lambda chunk: ActionChunk(chunk.actions_HJ, {"a": 1e30}), "stage_ms['a']=1e+30"),
        (lambda chunk: ActionChunk(chunk.actions_HJ, {3: 1.0}), "stage_ms[3]=1.0"),
        (lambda chunk: ActionChunk(chunk.actions_HJ, {}, {"a": None}), "backends['a']=None; both must be"),
        (lambda chunk: ActionChunk(chunk.actions_HJ, setup_ms=-1.0), "setup_ms=-1.0; it must be"),
    ],
)
def test_a_chunk_that_no_run_can_record_is_an_error_of_its_episode(
    change: Callable[[ActionChunk], ActionChunk], says: str
) -> None:
    class Changes(Says):
        def infer(self, requests: Any) -> list[ActionChunk]:
            return [change(chunk) for chunk in super().infer(requests)]

    with pytest.raises(ValueError, match=r"^policy mine answered with ") as error:
        CheckedPolicy(Changes(), "mine", {}).infer([REQUEST])
    assert says in str(error.value)
