"""Configuration: every YAML under conf/ composes into the schema, also one that nobody has listed here."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from eval.app.command import CONF
from eval.config.compose import check
from eval.config.schema import Config, ConfigError, register
from eval.sim.suites import PERTURBED, PLUS, PRO, SUITES, SuiteName
from policies.pi05.dims import STAGES
from policies.pi05.weight_files import file_sha256


def options(conf: Path) -> list[tuple[str, str]]:
    """Return (group, option) of each YAML below `conf`; those that begin with _ are parts of others."""
    files = sorted(conf.glob("*/**/*.yaml"))
    return [
        (str(file.parent.relative_to(conf)), file.stem) for file in files if not file.name.startswith("_")
    ]


def overrides(conf: Path, group: str, option: str) -> list[str]:
    """Return the command line that chooses an option, with a value for each key that it leaves open."""
    choice = [f"+{group}={option}" if group == "experiment" else f"{group}={option}"]
    yaml = OmegaConf.load(conf / group / f"{option}.yaml")
    open_keys = [str(key) for key in yaml if OmegaConf.is_missing(yaml, key)]
    if group == "clock" and option != "free":
        choice.append("clock.latency_ms=50")
    return choice + [f"{group.replace('/', '.')}.{key}=some_value" for key in open_keys]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        yield


def composed(*arguments: str) -> Config:
    return check(compose("config", list(arguments)))


@pytest.mark.parametrize(("group", "option"), options(Path(CONF)))
def test_every_option_composes_into_the_schema(group: str, option: str) -> None:
    config = composed(*overrides(Path(CONF), group, option))
    part: Any = config
    for name in () if group == "experiment" else group.split("/"):
        part = getattr(part, name)
    assert isinstance(config, Config)
    assert part is not None
    assert getattr(part, "name", option) == (part._target_ if option == "custom" else option)


def test_every_group_of_the_defaults_list_has_options() -> None:
    groups = {group for group, _ in options(Path(CONF))}
    assert groups >= {"suite", "protocol", "checkpoint", "policy", "denoise", "runner", "tracking"}
    assert groups >= {f"optim/{stage}" for stage in STAGES}


def test_every_backend_takes_its_options_without_weights_or_gpu() -> None:
    for group, option in options(Path(CONF)):
        if group.startswith("optim/"):
            backend = instantiate(OmegaConf.load(Path(CONF) / group / f"{option}.yaml"))
            assert is_dataclass(backend), (group, option)
            assert callable(backend), (group, option)


def test_a_yaml_that_nobody_listed_is_found_and_composes(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "checkpoint" / "new.yaml").write_text(
        "defaults: [native]\nname: new\npath: ???\nreplan_steps: 2\n"
    )
    assert set(options(conf)) - set(options(Path(CONF))) == {("checkpoint", "new")}
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        config = composed(*overrides(conf, "checkpoint", "new"))
    assert (config.checkpoint.name, config.checkpoint.path) == ("new", "some_value")
    assert (config.checkpoint.replan_steps, config.checkpoint.horizon) == (2, 10)


def test_the_default_run_is_the_shipped_checkpoint_on_libero_spatial_offline() -> None:
    config = composed()
    assert (config.policy.name, config.suite.name, config.protocol.name) == (
        "baseline",
        "libero_spatial",
        "quick",
    )
    weights = Path(str(config.checkpoint.path)) / "model.safetensors"
    assert config.checkpoint.name == "reference"
    assert file_sha256(weights) == config.checkpoint.sha256
    assert config.tracking.mode == "offline"
    assert (config.seed, config.protocol.seeding) == (7, "paired")


def test_a_policy_and_a_stage_and_the_steps_are_chosen_apart() -> None:
    config = composed("policy=baseline", "optim/vision=eager", "denoise.steps=3")
    assert config.policy.name == "baseline"
    assert config.optim.vision == {"_target_": "optim.eager.Eager"}
    assert config.denoise.steps == 3


def test_steps_default_to_those_of_the_checkpoint() -> None:
    assert composed("checkpoint.denoise_steps=4").denoise.steps == 4
    assert composed("checkpoint.denoise_steps=4", "denoise.steps=2").denoise.steps == 2


def test_suites_are_liberos_with_openpis_step_limits() -> None:
    limits = {option: composed("policy=baseline", f"suite={option}").suite.max_steps for option in SUITES}
    assert limits == {  # openpi examples/libero/main.py
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


def test_every_perturbed_suite_is_a_choice_with_its_bases_step_limit() -> None:
    dimensions = [*PRO, *(f"plus_{part}" for part in PLUS if part != "pose")]
    perturbed = {f"{base}_{part}": base for base in PERTURBED for part in dimensions}
    assert {option for group, option in options(Path(CONF)) if group == "suite"} == {*SUITES, *perturbed}
    for option, base in perturbed.items():
        suite = composed("policy=baseline", f"suite={option}").suite
        assert suite.name == option
        assert suite.max_steps == OmegaConf.load(Path(CONF) / "suite" / f"{base}.yaml").max_steps


def test_another_start_and_the_control_arm_have_names_of_their_own() -> None:
    robot = ("policy=baseline", "suite=libero_goal_plus_robot")
    assert composed(*robot).suite.init == "controller", "as published"
    assert composed(*robot, "suite.init=pose").suite.name == "libero_goal_plus_pose"
    assert composed(*robot, "suite.control=true").suite.name == "libero_goal_plus_robot_control"
    lan = composed("policy=baseline", "suite=libero_goal_lan", "suite.control=true").suite
    assert (lan.name, SuiteName.parse(lan.name).source) == ("libero_goal_lan_control", "filename")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            ["suite.level=3"],
            "suite.level must be null for libero_spatial, got 3; it is an",
        ),
        (["suite.control=true"], "suite.control must be null for libero_spatial, got True; it is an option"),
        (
            ["suite=libero_10_lan", "suite.round_camera=true"],
            "suite.round_camera must be null for libero_10_",
        ),
        (
            ["suite=libero_10_plus_noise", "suite.init=pose"],
            "suite.init must be null for libero_10_plus_noise",
        ),
        (["suite=libero_10_plus_robot", "suite.init=arm"], "suite.init must be one of controller, pose, got"),
        (
            ["suite=libero_10_plus_noise", "suite.level=6"],
            "suite.level must be 1 to 5, or null for all",
        ),
        (["suite.instruction=name"], "suite.instruction must be one of filename, bddl, got 'name'"),
        (
            ["suite=libero_10_plus_language", "suite.instruction=filename"],
            "suite.instruction must be one of b",
        ),
        (["suite.name=../goal"], "suite.name must be letters, digits and _.- alone, got '../goal'"),
    ],
)
def test_an_option_that_a_suite_has_not_is_refused(bad: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}"):
        composed("policy=baseline", *bad)


def test_the_official_protocol_is_fifty_episodes_of_every_task() -> None:
    protocol = composed("protocol=official").protocol
    assert (protocol.num_tasks, protocol.first_episode, protocol.episodes) == (None, 0, 50)


def test_below_the_door_there_is_no_dictconfig() -> None:
    config = composed("policy=baseline", "suite.tasks=[0,3]", "tracking.tags=[a]")
    values = [config.suite, config.suite.tasks, config.optim, config.optim.vision, config.tracking.tags]
    assert [type(value) for value in values[1::2]] == [list, dict]
    assert not any(isinstance(value, DictConfig) for value in values)


@pytest.mark.parametrize(
    "bad",
    [
        "suite.max_steps=0",
        "suite.tasks=[]",
        "suite.tasks=[3,3]",
        "protocol.num_tasks=0",
        "protocol.first_episode=-1",
        "protocol.episodes=0",
        "protocol.seeding=random",
        "policy.form=flat",
        "policy.form=thick",
        "policy.precision=float16",
        "denoise.steps=0",
        "runner.max_errors=-1",
        "runner.warmup_inferences=-1",
        "runner.workers=0",
        "runner.max_batch=0",
        "runner.max_wait_ms=-1",
        "runner.retries=-1",
        "runner.episode_timeout_s=0",
        "runner.episode_timeout_s=1e300",
        "shard=2/1",
        "tracking.mode=dryrun",
        "tracking.project='a\nb'",
        "seed=-1",
        "video=some",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(bad: str) -> None:
    key = bad.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key.replace('.', '[.]')} must be .*, got "):
        composed(bad)
