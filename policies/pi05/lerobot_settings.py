"""What lerobot's config.json and processors say together; where they contradict each other it is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.pi05.lerobot_config import (
    ACTION,
    STATE,
    LerobotConfig,
    read_lerobot_config,
)
from policies.pi05.lerobot_processors import (
    PALIGEMMA_TOKENIZER,
    PREPROCESSOR,
    Normalisation,
    Preprocessor,
    read_postprocessor,
    read_preprocessor,
)
from policies.text import brief, shorten

IMAGES = "observation.images."
# What lerobot's LIBERO environment calls its cameras (envs/configs.py), and the slot that each feeds here.
LIBERO_CAMERAS = {f"{IMAGES}image": "base_0_rgb", f"{IMAGES}image2": "left_wrist_0_rgb"}
EMPTY_CAMERA = f"{IMAGES}empty_camera_"


@dataclass(frozen=True)
class LerobotFolder:
    """A folder of lerobot, whose parts agree."""

    config: LerobotConfig
    preprocessor: Preprocessor
    postprocessor: Normalisation
    cameras: tuple[str, ...]  # the network's slots, in the order of its input; empty ones come last
    masked_cameras: tuple[str, ...]

    @property
    def version_says_8(self) -> str | None:
        """Name the key that tells lerobot >= 0.5.1, which words 8 numbers of state; None without one."""
        if self.config.has_relative_actions:
            return "config.json use_relative_actions, which lerobot >= 0.5.1 writes"
        if self.preprocessor.has_relative_actions:
            return "policy_preprocessor.json relative_actions_processor, which lerobot >= 0.5.1 writes"
        return None


def read_lerobot_folder(folder: Path, raw_config: Mapping[str, Any], tokenizer: str | None) -> LerobotFolder:
    """Read what the folder says; `tokenizer` is `checkpoint.tokenizer`.

    Raises ValueError for a key, value or step that is not honoured, or two files that contradict each other;
    FileNotFoundError where a file is missing.
    """
    config = read_lerobot_config(raw_config, str(folder / "config.json"))
    preprocessor, postprocessor = read_preprocessor(folder), read_postprocessor(folder)
    for normalisation in (preprocessor.normalisation, postprocessor):
        _require_equal(
            "norm_map",
            "normalization_mapping",
            normalisation.norm_map,
            config.norm_map,
            normalisation,
            config,
        )
    features = {**config.input_features, **config.output_features}
    _require_equal(
        "features",
        "input_features and output_features",
        _without_empty(preprocessor.normalisation.features),
        _without_empty(features),
        preprocessor.normalisation,
        config,
    )
    _require_equal(
        "features", "output_features", postprocessor.features, config.output_features, postprocessor, config
    )
    for name, normalisation in ((STATE, preprocessor.normalisation), (ACTION, postprocessor)):
        if name not in normalisation.features:
            raise ValueError(
                f"{normalisation.source} has no feature {name!r}, so lerobot would not normalise it; "
                "copy the file from the training run"
            )
    if preprocessor.max_length != config.tokenizer_max_length:
        raise ValueError(
            f"tokenizer_processor.max_length={preprocessor.max_length} in {folder / PREPROCESSOR} "
            f"contradicts tokenizer_max_length={config.tokenizer_max_length} in {config.source}; "
            "copy both from one training run"
        )
    if tokenizer is None and preprocessor.tokenizer_name not in (PALIGEMMA_TOKENIZER, "tokenizer"):
        raise ValueError(
            f"tokenizer_processor.tokenizer_name must be {PALIGEMMA_TOKENIZER}, or tokenizer for a copy in "
            f"the folder, got {preprocessor.tokenizer_name!r:.100} in {folder / PREPROCESSOR}; "
            "give that one's SentencePiece model, checkpoint.tokenizer=FILE"
        )
    live, masked = _cameras(config, preprocessor)
    return LerobotFolder(config, preprocessor, postprocessor, (*live, *masked), masked)


def _cameras(config: LerobotConfig, preprocessor: Preprocessor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The slots with a camera in the order of `input_features`, and the others, which lerobot puts last."""
    rename_map, source = preprocessor.rename_map, preprocessor.normalisation.source
    if unknown := sorted(rename_map.keys() - LIBERO_CAMERAS.keys()):
        raise ValueError(
            f"rename_map in {source} renames {shorten(map(brief, unknown))}, but lerobot's LIBERO has "
            f"{', '.join(LIBERO_CAMERAS)}; correct the names where you know which camera is meant"
        )
    names = [rename_map.get(name, name) for name in LIBERO_CAMERAS]
    if len(set(names)) < len(names):
        raise ValueError(
            f"rename_map in {source} gives two cameras one name: {brief(rename_map)}; correct it"
        )
    slots = dict(zip(names, LIBERO_CAMERAS.values(), strict=True))
    images = [name for name, feature in config.input_features.items() if feature.type == "VISUAL"]
    empty = [f"{EMPTY_CAMERA}{i}" for i in range(config.empty_cameras)]
    images += [name for name in empty if name not in images]
    live = tuple(slots[name] for name in images if name in slots)
    masked = tuple(name for name in images if name not in slots)
    others = [name for name in masked if not name.startswith(EMPTY_CAMERA)]
    # lerobot masks other cameras too, if its LIBERO feeds all it has (policies/utils.py)
    if not live or (others and len(live) < len(slots) and not rename_map):
        raise ValueError(
            f"input_features in {config.source} has the cameras {shorten(map(brief, images)) or 'none'}, "
            f"but lerobot's LIBERO has {', '.join(LIBERO_CAMERAS)}; give rename_map of "
            f"rename_observations_processor in {source} the names, from LIBERO's to these"
        )
    return live, masked


def _without_empty(features: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty cameras, which lerobot adds to one file and not always to the other."""
    return {name: feature for name, feature in features.items() if not name.startswith(EMPTY_CAMERA)}


def _require_equal(
    key: str,
    config_key: str,
    got: Mapping[str, Any],
    wanted: Mapping[str, Any],
    normalisation: Normalisation,
    config: LerobotConfig,
) -> None:
    if got == wanted:
        return
    names = sorted(name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name))
    raise ValueError(
        f"{key} in {normalisation.source} contradicts {config_key} in {config.source}: "
        + ", ".join(f"{brief(name)} is {got.get(name)} there and {wanted.get(name)} here" for name in names)
        + "; lerobot acts by the processor's: copy both from one training run"
    )
