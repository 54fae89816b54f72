"""openpi's folders: what is assumed is said, and the trainer's folder loads by its published sizes."""

from collections.abc import Callable
from typing import Any

import pytest

from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import PI05_FULL, Pi05Dims
from tests.policies.pi05.folder import Folder

MakeConfig = Callable[..., CheckpointConfig]


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [({}, "without state"), ({"state_in_prompt": True, "state_prompt_dims": 8}, "with state")],
)
def test_what_openpi_does_not_say_is_recorded_as_assumed(
    openpi: Folder, config: MakeConfig, changes: dict[str, Any], prompt: str
) -> None:
    settings = load_checkpoint(config(layout="openpi", path=str(openpi.path), **changes)).provenance()[
        "settings"
    ]
    assert {name: stated["value"] for name, stated in settings.items()} == {
        "prompt": prompt,
        "norm": "quantile",
        "actions": "absolute",
    }
    assert {stated["from"] for stated in settings.values()} == {"assumed: openpi's folder does not say"}


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
    assert stated == {"value": "pi05", "from": "checkpoint.sizes"}


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
