"""openpi's folders: what is assumed is said, and the trainer's folder loads by its published sizes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import PI05_FULL, Pi05Dims
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.policies.pi05.folder import Folder

MakeConfig = Callable[..., CheckpointConfig]


UNSAID = "openpi's folder does not say"


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({}, {"prompt": ("without state", "state_in_prompt")}),
        (
            {"state_in_prompt": True, "state_prompt_dims": 8},
            {
                "prompt": ("with state", "state_in_prompt"),
                "state_prompt_dims": (8, "state_prompt_dims"),
            },
        ),
    ],
)
def test_all_that_openpi_does_not_say_is_recorded_with_the_key_that_says_it(
    openpi: Folder, config: MakeConfig, changes: dict[str, Any], prompt: dict[str, tuple[Any, str]]
) -> None:
    checkpoint = load_checkpoint(config(layout="openpi", path=str(openpi.path), **changes))
    expected = prompt | {
        "norm": ("quantile", "norm_mode"),
        "replan_steps": (5, "replan_steps"),
        "denoise_steps": (2, "denoise_steps"),
    }
    settings = checkpoint.provenance()["settings"]
    assert settings.pop("actions") == {"value": "absolute", "from": f"assumed; {UNSAID}"}
    assert settings.pop("horizon") == {"value": 10, "from": "config.json action_horizon"}
    assert settings == {
        name: {"value": value, "from": f"checkpoint.{key}; {UNSAID}"}
        for name, (value, key) in expected.items()
    }


def test_origins_are_those_that_the_caller_knows(openpi: Folder, config: MakeConfig) -> None:
    origins = {"norm_mode": "assumed by checkpoint=x", "denoise_steps": "denoise.steps"}
    checkpoint = load_checkpoint(config(layout="openpi", path=str(openpi.path)), origins=origins)
    settings = checkpoint.provenance()["settings"]
    assert settings["norm"]["from"] == f"assumed by checkpoint=x; {UNSAID}"
    assert settings["denoise_steps"]["from"] == f"denoise.steps; {UNSAID}"
    assert settings["replan_steps"]["from"] == f"checkpoint.replan_steps; {UNSAID}"


@pytest.mark.parametrize("layout", ["openpi", "native", "random"])
def test_files_in_place_of_the_folders_are_recorded(
    layout: str, openpi: Folder, native: Folder, config: MakeConfig, tmp_path: Path
) -> None:
    files = {
        "norm_stats": shutil.copyfile(native.path / "norm_stats.json", tmp_path / "other.json"),
        "tokenizer": shutil.copyfile(TOKENIZER_PATH, tmp_path / "other.model"),
    }
    options: dict[str, Any] = {name: str(path) for name, path in files.items()}
    if layout != "random":
        options |= {"layout": layout, "path": str((openpi if layout == "openpi" else native).path)}
    settings = load_checkpoint(config(**options)).provenance()["settings"]
    assert settings["norm_stats"] == {
        "value": str(files["norm_stats"]),
        "from": "checkpoint.norm_stats; not the folder's",
    }
    assert settings["tokenizer"] == {"value": str(files["tokenizer"]), "from": "checkpoint.tokenizer"}


def test_horizon_is_that_of_config_json_where_none_is_given(openpi: Folder, config: MakeConfig) -> None:
    checkpoint = load_checkpoint(config(layout="openpi", path=str(openpi.path), horizon=None))
    assert checkpoint.dims.action_horizon == 10
    stated = checkpoint.provenance()["settings"]["horizon"]
    assert stated == {"value": 10, "from": "config.json action_horizon"}


def test_trainers_folder_without_config_json_has_the_published_sizes(
    openpi: Folder, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"layout": "openpi", "path": str(openpi.path), "sizes": "pi05"}
    with pytest.raises(ValueError, match=r"checkpoint.sizes must be null, got 'pi05': .*config.json has the"):
        load_checkpoint(config(**options))
    small = load_checkpoint(config(layout="openpi", path=str(openpi.path))).dims
    (openpi.path / "config.json").unlink()
    with pytest.raises(
        ValueError, match=f"pieces for the {PI05_FULL.vocab_size} rows of the embedding, got 512"
    ):
        load_checkpoint(config(**options))
    with pytest.raises(
        ValueError, match=r"checkpoint.horizon must be given, .*10 for pi05_libero, 50 by default"
    ):
        load_checkpoint(config(**options, horizon=None))
    sizes: dict[str, Pi05Dims] = {"pi05": small}
    monkeypatch.setattr("policies.pi05.checkpoint.PUBLISHED", sizes)
    checkpoint = load_checkpoint(config(**options))
    assert checkpoint.dims == small
    stated = checkpoint.provenance()["settings"]["sizes"]
    assert stated == {"value": "pi05", "from": f"checkpoint.sizes; {UNSAID}"}
    assert checkpoint.provenance()["settings"]["horizon"]["from"] == f"checkpoint.horizon; {UNSAID}"


def test_our_own_format_assumes_nothing(native: Folder, config: MakeConfig) -> None:
    assert "settings" not in load_checkpoint(config(layout="native", path=str(native.path))).provenance()


@pytest.mark.parametrize("key", ["norm_mode", "replan_steps", "denoise_steps", "horizon"])
def test_null_is_for_keys_that_the_folder_answers(config: MakeConfig, key: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoint.{key} must be given with layout=native, got None"):
        config(layout="native", path="x", **{key: None})
    if key != "horizon":
        with pytest.raises(ValueError, match=f"checkpoint.{key} must be given with layout=openpi, got None"):
            config(layout="openpi", path="x", **{key: None})
    config(layout="lerobot", path="x", **{key: None})
