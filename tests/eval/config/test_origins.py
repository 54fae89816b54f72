"""Each value of a checkpoint's configuration has an origin that is true; suites are of the YAML's weights."""

import pytest

from eval.config.compose import configure
from eval.config.groups import load_yaml, options
from eval.config.origins import checkpoint_origins, checkpoint_yaml, trained_suites

FOLDER = "checkpoint.path=/data/weights"


def test_what_the_yaml_says_is_assumed_by_it_and_what_the_command_line_says_is_the_keys() -> None:
    plain = checkpoint_origins(configure(["checkpoint=pi05_openpi", FOLDER]))
    assumed = "assumed by checkpoint=pi05_openpi"
    keys = ("norm_mode", "state_in_prompt", "state_prompt_dims", "replan_steps", "denoise_steps", "horizon")
    assert {key: plain.get(key) for key in keys} == dict.fromkeys(keys, assumed)
    assert "path" not in plain

    typed = ["checkpoint.norm_mode=mean_std", "checkpoint.replan_steps=7", "checkpoint.denoise_steps=3"]
    origins = checkpoint_origins(configure(["checkpoint=pi05_openpi", FOLDER, *typed]))
    assert [key for key in keys if key not in origins] == ["norm_mode", "replan_steps", "denoise_steps"]


@pytest.mark.parametrize("checkpoint", ["pi05_libero", "lerobot_pi05_libero"])
def test_denoise_steps_are_of_the_key_that_says_them(checkpoint: str) -> None:
    def origin(*overrides: str) -> str | None:
        return checkpoint_origins(configure([f"checkpoint={checkpoint}", FOLDER, *overrides])).get(
            "denoise_steps"
        )

    assert origin() == f"assumed by checkpoint={checkpoint}"
    assert origin("denoise.steps=3") == "denoise.steps"
    assert origin("checkpoint.denoise_steps=3") is None  # `checkpoint.denoise_steps`, as any key
    assert origin("checkpoint.denoise_steps=3", "denoise.steps=4") == "denoise.steps"


def test_a_checkpoint_without_a_yaml_of_its_name_has_no_origin_but_its_keys() -> None:
    config = configure(["checkpoint=pi05_libero", FOLDER, "checkpoint.name=mine"])
    assert checkpoint_origins(config) == {}
    assert trained_suites(config.checkpoint) is None


def test_a_yaml_is_read_with_those_that_it_begins_with() -> None:
    for name in options("checkpoint"):
        yaml = checkpoint_yaml(name)
        assert yaml["name"] == name
        assert "defaults" not in yaml
        assert (
            yaml.items()
            >= {k: v for k, v in load_yaml("checkpoint", name).items() if k != "defaults"}.items()
        )
    assert checkpoint_yaml("pi05_openpi")["norm_mode"] == "quantile"  # pi05_libero's


FOUR = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
OTHER_WEIGHTS = ["checkpoint=reference", FOLDER, "checkpoint.sha256=null"]


@pytest.mark.parametrize(
    ("overrides", "suites"),
    [
        (["checkpoint=reference"], FOUR[:3]),
        (["checkpoint=reference", FOLDER], FOUR[:3]),  # of the same hash, or it will not load
        (OTHER_WEIGHTS, None),
        ([*OTHER_WEIGHTS, "checkpoint.suites=[libero_goal]"], ["libero_goal"]),
        (["checkpoint=lerobot_pi05_libero"], FOUR),
        (["checkpoint=lerobot_pi05_libero_base"], FOUR),
        (["checkpoint=lerobot_pi05_libero", FOLDER], None),
        (["checkpoint=lerobot_pi05_libero_base", FOLDER], None),
        (["checkpoint=pi05_libero", FOLDER], None),
        (["checkpoint=pi05_libero", FOLDER, "checkpoint.suites=[libero_90]"], ["libero_90"]),
        (["checkpoint=native", FOLDER], None),
    ],
)
def test_suites_are_those_of_the_weights_that_the_yaml_names(
    overrides: list[str], suites: list[str] | None
) -> None:
    assert trained_suites(configure(overrides).checkpoint) == suites
