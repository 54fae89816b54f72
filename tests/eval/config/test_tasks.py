"""What is known of a configuration before its tasks are loaded."""

import re
from pathlib import Path

import pytest

from eval.config.compose import configure
from eval.config.schema import ConfigError
from eval.config.tasks import choose_tasks, refuse_elsewhere, warnings_of


@pytest.mark.parametrize(
    ("checkpoint", "suite", "warned"),
    [
        ("reference", "libero_spatial", False),
        ("reference", "libero_goal", False),
        ("reference", "libero_10", True),
        ("lerobot_pi05_libero", "libero_10", False),
        ("lerobot_pi05_libero", "libero_90", True),
        ("random_small", "libero_goal", False),
    ],
)
def test_a_suite_that_a_checkpoint_was_not_trained_for_is_named(
    checkpoint: str, suite: str, warned: bool
) -> None:
    warnings = warnings_of(configure([f"checkpoint={checkpoint}", f"suite={suite}"]), has_stages=True)
    assert [f"not for {suite}" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize("checkpoint", ["pi05_libero", "lerobot_pi05_libero", "native"])
def test_nothing_is_said_of_the_suites_of_a_folder_that_nobody_knows(checkpoint: str) -> None:
    overrides = [f"checkpoint={checkpoint}", "checkpoint.path=/data/mine", "suite=libero_90"]
    assert warnings_of(configure(overrides), has_stages=True) == []
    [warning] = warnings_of(configure([*overrides, "checkpoint.suites=[libero_goal]"]), has_stages=True)
    assert warning.startswith(f"checkpoint={checkpoint} was trained for libero_goal, not for libero_90")


def test_the_oracle_has_no_checkpoint_to_warn_of() -> None:
    config = configure(["policy=oracle", "checkpoint=reference"])
    config.suite.name, config.suite.max_steps = "libero_goal", 300
    assert warnings_of(config, has_stages=False) == []


def test_other_control_steps_than_the_suites_are_named() -> None:
    [warning] = warnings_of(configure(["suite.max_steps=12"]), has_stages=True)
    assert warning.startswith("suite.max_steps=12, not the 220 of libero_spatial")


def test_a_perturbed_suite_has_its_bases_limit_and_another_of_the_packages_has_none() -> None:
    short = configure(["policy=oracle", "suite=libero_goal_lan", "suite.max_steps=12"])
    [warning] = warnings_of(short, has_stages=False)
    assert warning.startswith("suite.max_steps=12, not the 300 of libero_goal_lan")
    other = configure(["policy=oracle", "suite.name=libero_goal_with_mug"])
    assert warnings_of(other, has_stages=False) == []


def test_other_words_than_the_suites_and_a_task_that_is_left_out_are_named() -> None:
    [warning] = warnings_of(
        configure(["policy=oracle", "suite=libero_goal_lan", "suite.instruction=filename"]), has_stages=False
    )
    assert warning.startswith("suite.instruction=filename, not the bddl that libero_goal_lan is for")
    [warning] = warnings_of(configure(["policy=oracle", "suite=libero_10_plus_language"]), has_stages=False)
    assert warning.startswith("left out of libero_10_plus_language: task 1400, its instruction is a note")


def test_tasks_of_plus_are_chosen_by_level_and_by_its_ids() -> None:
    chosen = ["policy=oracle", "suite=libero_spatial_plus_camera", "protocol=plus"]
    levels = {level: choose_tasks(configure([*chosen, f"suite.level={level}"])) for level in range(1, 6)}
    assert {task.level for task in levels[4]} == {4}
    assert sum(map(len, levels.values())) == len(choose_tasks(configure(chosen))) == 376
    ids = [task.task_id for task in levels[4]][:2]
    two = choose_tasks(configure([*chosen, f"suite.tasks={ids}"]))
    assert [task.task_id for task in two] == ids
    with pytest.raises(
        ConfigError, match=r"^suite.tasks must be of \d+, .* 366 more, the ids of LIBERO-Plus"
    ):
        choose_tasks(configure([*chosen, "suite.tasks=[5000]"]))


def test_a_relative_path_of_a_resumed_run_leads_somewhere_or_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(["checkpoint=native", "checkpoint.path=weights", "optim.scales=s.json"])
    monkeypatch.chdir(tmp_path)
    way_out = f" of the run is relative, and leads nowhere from {tmp_path}; change to the folder that "
    with pytest.raises(ConfigError, match=re.escape(f"checkpoint.path=weights{way_out}")):
        refuse_elsewhere(config, {})
    (tmp_path / "weights").mkdir()
    with pytest.raises(ConfigError, match=re.escape(f"optim.scales=s.json{way_out}")):
        refuse_elsewhere(config, {})
    (tmp_path / "s.json").touch()
    refuse_elsewhere(config, {})
    refuse_elsewhere(configure(["checkpoint=reference"]), {})
    clock = configure(["clock=wait", "clock.latency_from=bench.json"])
    with pytest.raises(ConfigError, match=re.escape(f"clock.latency_from=bench.json{way_out}")):
        refuse_elsewhere(clock, {})


def test_a_folder_of_lerobots_is_not_looked_for_on_a_hub_when_it_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lerobot = [
        "checkpoint=lerobot_pi05_libero",
        "checkpoint.path=./last",
        f"checkpoint.tokenizer={__file__}",
    ]
    config = configure(lerobot)
    with pytest.raises(ConfigError, match=r"checkpoint\.path=\./last of the run is relative, and leads "):
        refuse_elsewhere(config, {"weights_label": "last"})
    refuse_elsewhere(config, {"weights_label": "/home/them/.cache/huggingface/hub/models--their--last/x"})
