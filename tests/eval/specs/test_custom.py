"""Policies of others: what is imported, what is refused, what records say, and how a bad answer ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.errors import ConfigCompositionException

from eval.config.compose import compose_run, configure
from eval.config.schema import ConfigError, PolicyConfig
from eval.config.targets import choice_of_policy, refuse_recorded_targets, typed_again
from eval.runners.local import LocalRunner
from eval.runners.recorder import RunFailed
from eval.specs.choose import checked_spec, make_spec
from eval.specs.custom import CheckedPolicy
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from tests.eval import fake_run
from tests.eval.fakes import SIMULATOR

REQUEST = Request(Observation({}, np.zeros(8), "go"), EpisodeKey("libero_spatial", 0, 0, 7), 0)
SOURCE = """
import numpy as np
from policies.base import ActionChunk

class MyPolicy:
    cameras, needs_privileged, replan_steps = (), False, 3
    def __init__(self, size=1):
        self.size = size
    def infer(self, requests):
        return [ActionChunk(np.full((4, 7), 0.1 * self.size)) for _ in requests]
    def provenance(self):
        return {"weights": "none"}
    def engagement(self):
        return {}

class NoPolicy:
    pass

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_package_of_mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "a_package_of_mine"


def built(target: str, **args: Any) -> Any:
    config = configure(
        ["policy=custom", f"policy._target_={target}", *(f"+policy.args.{k}={v}" for k, v in args.items())]
    )
    return make_spec(config.policy).build(config, lambda policy: ()).policy


def test_a_class_gets_its_arguments_and_the_record_says_what_it_is(package: str) -> None:
    policy = built(f"{package}.MyPolicy", size=3)
    [chunk] = policy.infer([REQUEST])
    assert chunk.actions_HJ[0, 0] == pytest.approx(0.3)
    about = policy.provenance()
    assert policy.name == about["target"] == f"{package}.MyPolicy"
    assert (about["weights"], about["args"], about["version"]) == ("none", {"size": 3}, None)
    assert len(about["source_sha256"]) == 64
    assert "weights_sha256" not in about


def test_the_version_of_an_installed_package_is_recorded() -> None:
    class Installed:
        __module__ = "omegaconf.base"

    from eval.specs.custom import origin

    assert origin(Installed)["version"].count(".") == 2


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("no_such_package.Policy", {}, "policy._target_=no_such_package.Policy cannot be imported: Modul"),
        ("{}.NoSuchClass", {}, "cannot be imported: AttributeError"),
        ("{}.number", {}, "policy._target_={}.number must name a class, got a int"),
        ("{}.MyPolicy", {"sice": 3}, "cannot be built with policy.args={{'sice': 3}}: TypeError"),
        ("{}.NoPolicy", {}, "policy={}.NoPolicy lacks infer, provenance, engagement, cameras, "),
    ],
)  # fmt: skip
def test_what_makes_no_policy_is_refused_by_name(
    package: str, target: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        built(target.format(package), **args)
    assert message.format(package) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=random_small"], "has no stages, checkpoint or denoise steps of ours; drop checkpoint="),
        (["denoise.steps=3"], "drop denoise.steps=3"),
        (["optim.on_mismatch=fallback"], "drop optim.on_mismatch=fallback"),
        (["+optim/vision=eager"], "optim.vision must be null with policy={}.MyPolicy, which has no stages"),
    ],
)
def test_what_a_policy_would_ignore_is_refused(package: str, overrides: list[str], message: str) -> None:
    config = configure(["policy=custom", f"policy._target_={package}.MyPolicy", *overrides])
    with pytest.raises(ConfigError) as refused:
        checked_spec(config, overrides)
    assert message.format(package) in str(refused.value)


def test_a_spec_refuses_arguments_that_it_does_not_take() -> None:
    with pytest.raises(
        ConfigError, match=r"^policy\.args of policy=oracle must be what eval\.specs\.oracle\."
    ):
        make_spec(PolicyConfig("oracle", "eval.specs.oracle.OracleSpec", {"speed": 2}))


@pytest.mark.parametrize(
    ("typed", "allowed"),
    [
        ([], False),
        (["seed=8"], False),
        (["policy._target_=a_package_of_mine.MyPolicy"], True),
        (["policy=custom"], False),
    ],
)
def test_a_record_names_no_code_unless_this_command_line_names_it_too(
    typed: list[str], allowed: bool
) -> None:
    cfg = compose_run(["policy=custom", "policy._target_=a_package_of_mine.MyPolicy"])
    if allowed:
        refuse_recorded_targets(cfg, typed)
        return
    with pytest.raises(
        ConfigError, match=r"^policy\._target_=a_package_of_mine\.MyPolicy stands in the record"
    ):
        refuse_recorded_targets(cfg, typed)


def test_a_yaml_that_only_the_record_names_is_told_with_its_flag(tmp_path: Path) -> None:
    recorded = ["policy=mine", "policy.args.size=3"]
    with pytest.raises(ConfigError) as refused:
        configure([*recorded, "seed=8"], typed=["seed=8"])
    assert str(refused.value) == (
        "policy=mine stands in the record, and there is no policy/mine.yaml in conf/; eval and eval.sweep "
        "take --config-dir FOLDER, with the folder that has it, as when the run began"
    )
    with pytest.raises(ConfigCompositionException):
        configure(recorded, typed=["policy=mine"])  # what this command line chooses has Hydra's own error
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text("name: mine\n_target_: a.B\nargs: {size: 1}\n")
    assert configure(recorded, typed=[], folders=[tmp_path]).policy.args == {"size": 3}


def test_a_record_may_name_what_stands_in_conf_or_in_a_config_dir(tmp_path: Path) -> None:
    refuse_recorded_targets(compose_run(["policy=native_fp8", "optim/vision=eager"]), [])
    cfg = compose_run(["policy=custom", "policy._target_=a_package_of_mine.MyPolicy"])
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text("_target_: a_package_of_mine.MyPolicy\n")
    refuse_recorded_targets(cfg, [], [tmp_path])


@pytest.mark.parametrize("key", ["optim.vision._target_", "+optim.vision.inner._target_"])
def test_a_target_at_any_depth_is_found(key: str) -> None:
    cfg = compose_run([f"{key}=os.system"])
    with pytest.raises(ConfigError, match=r"_target_=os\.system stands in the record alone"):
        refuse_recorded_targets(cfg, [])
    with pytest.raises(ConfigError, match=r"_target_=os\.system stands in the record alone"):
        configure([f"{key}=os.system"], typed=[])


class Answers:
    """A policy that gives what it was given."""

    cameras: tuple[str, ...] = ()
    needs_privileged = False
    replan_steps = 3

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def infer(self, requests: Sequence[Request]) -> Any:
        return self.answer

    def provenance(self) -> dict[str, Any]:
        return {}

    def engagement(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "policy mine answered 1 requests with 0 chunks; infer returns one ActionChunk for each"),
        ([np.zeros((4, 7))], "policy mine answered with ndarray; infer returns ActionChunk"),
        ([ActionChunk([[0.0] * 7] * 4)], "policy mine answered with list; infer returns ActionChunk"),  # type: ignore[arg-type]
        ([ActionChunk(np.zeros((4, 6)))], "at least replan_steps=3 rows of 7 actions, got shape (4, 6)"),
        ([ActionChunk(np.zeros((2, 7)))], "at least replan_steps=3 rows of 7 actions, got shape (2, 7)"),
        ([ActionChunk(np.full((4, 7), np.nan))], "the policy returned actions that are not finite: [nan"),
        ([ActionChunk(np.full((4, 7), "x"))], "policy mine answered with actions of dtype <U1, not numbers"),
        (None, "policy mine answered with NoneType; infer returns a list of ActionChunk"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_one_line_in_the_episodes_record(
    answer: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = CheckedPolicy(Answers(answer), "mine", {})
    monkeypatch.setattr(fake_run, "start", lambda *_, **__: LocalRunner(policy, SIMULATOR))
    with pytest.raises(RunFailed) as failed:
        fake_run.run(tmp_path / "run")
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("replan_steps", 0, "replan_steps of policy=mine must be >= 1, got 0"),
        ("replan_steps", 2.5, "replan_steps of policy=mine must be >= 1, got 2.5"),
        ("cameras", "agentview_image", "cameras of policy=mine must be a tuple of names, got"),
        ("cameras", ("front",), "cameras of policy=mine must be among agentview_image, robot0_eye"),
    ],
)  # fmt: skip
def test_a_member_that_no_runner_can_use_is_refused(member: str, value: Any, message: str) -> None:
    policy = Answers([])
    setattr(policy, member, value)
    with pytest.raises(ConfigError) as refused:
        CheckedPolicy(policy, "mine", {})
    assert message in str(refused.value)


def test_the_line_that_resumes_a_served_policy_names_the_policy_that_has_its_keys() -> None:
    recorded = ["policy=remote", "policy.label=weights", "policy.url=ws://127.0.0.1:1", "seed=8"]
    again = typed_again(recorded)
    assert again == ["policy.url=ws://127.0.0.1:1"]
    with pytest.raises(ConfigCompositionException):  # before any record is read
        compose_run(["resume=RUN", *again])
    cfg = compose_run(["resume=RUN", *choice_of_policy(recorded, again), *again])
    assert cfg.policy.url == "ws://127.0.0.1:1"
    own = ["policy=custom", "policy._target_=a.Policy"]
    assert choice_of_policy(own, typed_again(own)) == []  # every policy has a `_target_`
