"""Lerobot's versions, files that contradict each other, and what the command line says over a folder."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.pi05.checkpoint import Checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from tests.policies.pi05.folder import Folder
from tests.policies.pi05.test_lerobot_settings import POST, PRE, observe, set_norm_map, stated

Load = Callable[..., Checkpoint]


def remove_traces(saved: Folder, *, key: bool = True, step: bool = True) -> None:
    """Take out what lerobot >= 0.5.1 writes."""
    if key:
        saved.edit_json("config.json", lambda config: config.pop("use_relative_actions"))
    if step:
        saved.edit_json(PRE, lambda content: content["steps"].pop(2))


def test_either_trace_of_relative_actions_says_8_numbers_of_state(saved: Folder, load_saved: Load) -> None:
    tokens = load_saved().preprocess().prompt(observe())
    remove_traces(saved, step=False)
    by_step = load_saved()
    saved.edit_config(use_relative_actions=False)
    remove_traces(saved, key=False)
    by_key = load_saved()
    assert by_step.preprocess().prompt(observe()) == by_key.preprocess().prompt(observe()) == tokens
    assert stated(by_step, "state_prompt_dims") == (
        8,
        "policy_preprocessor.json relative_actions_processor, which lerobot >= 0.5.1 writes",
    )
    source = "config.json use_relative_actions, which lerobot >= 0.5.1 writes"
    assert stated(by_key, "state_prompt_dims") == (8, source)


def test_without_a_trace_the_user_must_say_8_or_32(saved: Folder, load_saved: Load) -> None:
    eight = load_saved().preprocess().prompt(observe())
    remove_traces(saved)
    message = (
        r"checkpoint.state_prompt_dims must be 8 or 32, .*saved does not say which: lerobot <= 0.4.4 pads "
        r".*pip show lerobot.*then give checkpoint.state_prompt_dims=8 or checkpoint.state_prompt_dims=32"
    )
    with pytest.raises(ValueError, match=message):
        load_saved()
    assert load_saved(state_prompt_dims=8).preprocess().prompt(observe()) == eight
    padded = load_saved(state_prompt_dims=32)
    assert len(padded.preprocess().prompt(observe())) > len(eight)
    assert stated(padded, "state_prompt_dims") == (32, "checkpoint.state_prompt_dims")


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            "denoise_steps",
            {"denoise_steps": 3},
            (3, "checkpoint.denoise_steps; config.json num_inference_steps says 10"),
        ),
        (
            "replan_steps",
            {"replan_steps": 7},
            (7, "checkpoint.replan_steps; config.json n_action_steps says 10"),
        ),
        ("replan_steps", {"replan_steps": 10}, (10, "checkpoint.replan_steps")),
        (
            "action_norm",
            {"norm_mode": "quantile"},
            ("quantile", "checkpoint.norm_mode; policy_postprocessor.json norm_map says mean_std"),
        ),
        (
            "state_prompt_dims",
            {"state_prompt_dims": 32},
            (
                32,
                "checkpoint.state_prompt_dims; config.json use_relative_actions, which lerobot >= 0.5.1 "
                "writes, says 8",
            ),
        ),
        (
            "prompt",
            {"state_in_prompt": False},
            ("without state", "checkpoint.state_in_prompt; lerobot's own has the state"),
        ),
    ],
)
def test_the_command_line_wins_and_is_recorded(
    load_saved: Load, name: str, changes: dict[str, Any], expected: tuple[Any, str]
) -> None:
    assert stated(load_saved(**changes), name) == expected


def test_files_in_place_of_the_folders_are_recorded(saved: Folder, load_saved: Load, tmp_path: Path) -> None:
    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    stats = str(shutil.copyfile(saved.path / name, tmp_path / "other.safetensors"))
    tokenizer = str(shutil.copyfile(saved.path / "tokenizer.model", tmp_path / "other.model"))
    settings = load_saved(norm_stats=stats, tokenizer=tokenizer).provenance()["settings"]
    assert settings["norm_stats"] == {"value": stats, "from": "checkpoint.norm_stats; not the folder's"}
    assert settings["tokenizer"] == {
        "value": tokenizer,
        "from": "checkpoint.tokenizer; policy_preprocessor.json tokenizer_name is tokenizer",
    }


def test_more_actions_than_a_chunk_has_are_refused(load_saved: Load) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.replan_steps must be 1 to horizon=50, got 51"):
        load_saved(replan_steps=51)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda saved: saved.edit_config(
                normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "QUANTILES"}
            ),
            r"norm_map in .*policy_preprocessor.json contradicts normalization_mapping in .*config.json: "
            "ACTION is MEAN_STD there and QUANTILES here",
        ),
        (
            lambda saved: saved.edit_config(tokenizer_max_length=100),
            r"tokenizer_processor.max_length=200 in .*json contradicts tokenizer_max_length=100 in ",
        ),
        (
            lambda saved: saved.edit_step(PRE, "normalizer_processor", features={}),
            r"features in .*policy_preprocessor.json contradicts input_features and output_features",
        ),
        (
            lambda saved: saved.edit_step(POST, "unnormalizer_processor", features={}),
            r"features in .*policy_postprocessor.json contradicts output_features in .*: action is None",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    saved: Folder, load_saved: Load, spoil: Callable[[Folder], None], message: str
) -> None:
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        load_saved()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_relative_actions": True}, "use_relative_actions must be false, got true in .*config.json"),
        (
            {"use_visual_memory": True},
            "use_visual_memory must be false, got true in .*; this policy remembers",
        ),
        ({"use_proprioceptive_memory": True}, "use_proprioceptive_memory must be false, got true"),
        ({"use_peft": True}, r"use_peft must be false, got true .*merge_and_unload"),
        ({"use_amp": True}, "use_amp must be false, got true .*policy.precision"),
        ({"rtc_config": {"enabled": True}}, "rtc_config must be null, or an object with enabled=false, got"),
        ({"dtype": "float16"}, r"dtype must be one of \('float32', 'bfloat16'\), got float16"),
        ({"n_action_steps": 51}, "n_action_steps must be at most chunk_size=50, got 51"),
        ({"type": "pi0"}, "type must be 'pi05', got pi0 in .*; this is another policy"),
    ],
)
def test_settings_that_this_policy_does_not_have_are_refused(
    saved: Folder, load_saved: Load, changes: dict[str, Any], message: str
) -> None:
    saved.edit_config(**changes)
    with pytest.raises(ValueError, match=message):
        load_saved()


@pytest.mark.parametrize("mode", ["IDENTITY", "MIN_MAX", "QUANTILE10"])
@pytest.mark.parametrize("feature", ["STATE", "ACTION"])
def test_norm_modes_that_are_not_honoured_are_refused(
    saved: Folder, load_saved: Load, feature: str, mode: str
) -> None:
    set_norm_map(saved, **{feature: mode})
    with pytest.raises(
        ValueError, match=rf"normalization_mapping.{feature} must be one of .*, got {mode} in"
    ):
        load_saved()


@pytest.mark.parametrize("rtc", [None, {"enabled": False, "execution_horizon": 10}])
def test_real_time_chunking_that_is_off_is_harmless(saved: Folder, load_saved: Load, rtc: Any) -> None:
    saved.edit_config(rtc_config=rtc)
    load_saved()


@pytest.mark.parametrize("file", [PRE, POST])
def test_missing_processor_is_named(saved: Folder, load_saved: Load, file: str) -> None:
    (saved.path / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{file}, which says how lerobot prepares"):
        load_saved()


def test_statistics_outside_of_the_folder_are_refused(saved: Folder, load_saved: Load) -> None:
    saved.edit_json(PRE, lambda content: content["steps"][3].update(state_file="../stats.safetensors"))
    with pytest.raises(
        ValueError, match=r"normalizer_processor state_file must be a .safetensors file beside"
    ):
        load_saved()


def test_another_tokenizer_needs_its_file(saved: Folder, load_saved: Load) -> None:
    saved.edit_step(PRE, "tokenizer_processor", tokenizer_name="google/other")
    with pytest.raises(
        ValueError, match=r"tokenizer_name must be google/paligemma-3b-pt-224.*'google/other'"
    ):
        load_saved()
    load_saved(tokenizer=str(saved.path / "tokenizer.model"))


def test_small_sizes_are_those_of_sizes_json(saved: Folder, load_saved: Load) -> None:
    sizes = json.loads((saved.path / "sizes.json").read_text())
    assert load_saved().dims.prefix.width == sizes["gemma_2b"]["width"]
    (saved.path / "sizes.json").unlink()
    with pytest.raises(ValueError, match=r"must have 257152 or .* pieces for the 257152 rows"):
        load_saved()


def test_openpis_checkpoint_that_lerobot_converted_is_named() -> None:
    null = dict.fromkeys(("norm_mode", "horizon", "replan_steps", "denoise_steps"))
    options: dict[str, Any] = {"name": "x", "layout": "lerobot", "path": "lerobot/pi05_libero_base", **null}
    message = (
        "checkpoint.state_in_prompt must be false with lerobot/pi05_libero_base: it is openpi's pi05_libero, "
        "trained without, got True; choose checkpoint=lerobot_pi05_libero_base"
    )
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**options, state_in_prompt=True)
    CheckpointConfig(**options, state_in_prompt=False)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("num_inference_steps", 10**9, "a whole number 1 to 1000"),
        ("num_inference_steps", 0, "a whole number 1 to 1000"),
        ("chunk_size", 10**12, "a whole number 1 to 1000"),
        ("n_action_steps", 10**12, "a whole number 1 to 1000"),
        ("tokenizer_max_length", 10**12, "a whole number 1 to 8192"),
        ("empty_cameras", 10**7, "a whole number 0 to 15"),
        ("empty_cameras", -1, "a whole number 0 to 15"),
        ("min_period", 1e-300, "a number 1e-06 to 1e+06"),
        ("max_period", 1e300, "a number 1e-06 to 1e+06"),
        ("max_period", 10**400, "a number 1e-06 to 1e+06"),
    ],
)
def test_a_count_that_nobody_trains_is_refused_in_a_second(
    saved: Folder, load_saved: Load, key: str, value: float, wanted: str
) -> None:
    saved.edit_config(**{key: value})
    began = time.monotonic()
    message = re.escape(f"{key} must be {wanted}, got {str(value)[:100]}")
    with pytest.raises(ValueError, match=rf"{message}.* in .*config\.json; copy it from the training run"):
        load_saved()
    assert time.monotonic() - began < 1.0


def test_the_preprocessors_tokenizer_length_and_eps_have_the_same_bounds(
    saved: Folder, load_saved: Load
) -> None:
    saved.edit_step(PRE, "tokenizer_processor", max_length=10**12)
    with pytest.raises(
        ValueError, match=r"tokenizer_processor.max_length must be a whole number 1 to 8192, got"
    ):
        load_saved()
    saved.edit_step(PRE, "tokenizer_processor", max_length=200)
    saved.edit_step(POST, "unnormalizer_processor", eps=1e300)
    with pytest.raises(
        ValueError, match=r"unnormalizer_processor.eps must be a number 0 to 1, got 1e\+300 in"
    ):
        load_saved()
