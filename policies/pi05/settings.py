"""What a checkpoint is loaded with: what its folder says, unless the configuration says otherwise.

Each setting is recorded with its source, so that run.json and the opening lines show what was assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from policies.pi05.checkpoint_config import CheckpointConfig, check_replan
from policies.pi05.dims import MAX_PERIOD, MIN_PERIOD
from policies.pi05.lerobot_config import NORM_MODES
from policies.pi05.lerobot_settings import LerobotFolder, read_lerobot_folder
from policies.pi05.norm_stats import STATE_DIM
from policies.text import brief


@dataclass(frozen=True)
class Stated:
    """A value for the records, and where it comes from."""

    value: Any
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "from": self.source}


@dataclass(frozen=True)
class Settings:
    """All that loading needs to know, nothing null but the norm mode of a state that nobody reads."""

    horizon: int
    replan_steps: int
    denoise_steps: int
    state_norm: str | None
    action_norm: str
    state_prompt_dims: int  # 0 without state in the prompt
    periods: tuple[float, float] = (MIN_PERIOD, MAX_PERIOD)  # of the time embedding
    lerobot: LerobotFolder | None = None
    stated: Mapping[str, Stated] = field(default_factory=dict)  # by name, for the records


def resolve(
    config: CheckpointConfig,
    folder: Path | None,
    raw: Mapping[str, Any] | None,
    origins: Mapping[str, str] | None = None,
) -> Settings:
    """Complete a configuration.

    Args:
        folder: of the checkpoint; None for random weights.
        raw: its config.json; None where there is none.
        origins: where a key of `config` has its value from, for the records; `checkpoint.KEY` for others.

    Raises:
        ValueError: the folder says something that is not honoured, contradicts itself, or leaves open what
            actions depend on.
        FileNotFoundError: a file of lerobot is missing.
    """
    origins = {entry.name: f"checkpoint.{entry.name}" for entry in fields(config)} | dict(origins or {})
    if config.layout == "lerobot":
        assert folder is not None
        assert raw is not None
        return _of_lerobot(config, read_lerobot_folder(folder, raw, config.tokenizer), folder, origins)
    stated: dict[str, Stated] = {}
    horizon = config.horizon
    if config.layout == "openpi":
        if raw is not None and horizon is None:
            horizon = raw.get("action_horizon")
        if type(horizon) is not int:
            raise ValueError(
                f"checkpoint.horizon must be given, {folder} does not say it (got {horizon!r:.100}); "
                "it is action_horizon of the training config: 10 for pi05_libero, 50 by default"
            )
        stated = _of_openpi(config, horizon, raw is None, origins)
    assert horizon is not None
    assert config.replan_steps is not None
    assert config.denoise_steps is not None
    assert config.norm_mode is not None
    check_replan(config.replan_steps, horizon)
    return Settings(
        horizon,
        config.replan_steps,
        config.denoise_steps,
        config.norm_mode if config.state_in_prompt else None,
        config.norm_mode,
        config.state_prompt_dims or 0,
        stated=stated | _files(config, origins, ""),
    )


def _of_openpi(
    config: CheckpointConfig, horizon: int, without_config: bool, origins: Mapping[str, str]
) -> dict[str, Stated]:
    """State all that openpi's folder does not say, and the horizon, which config.json says if it is there."""

    def unsaid(key: str) -> str:
        return f"{origins[key]}; openpi's folder does not say"

    prompt = "with state" if config.state_in_prompt else "without state"
    stated = {"prompt": Stated(prompt, unsaid("state_in_prompt"))}
    if config.state_in_prompt:
        stated["state_prompt_dims"] = Stated(config.state_prompt_dims, unsaid("state_prompt_dims"))
    stated |= {
        "norm": Stated(config.norm_mode, unsaid("norm_mode")),
        "actions": Stated("absolute", "assumed; openpi's folder does not say"),
        "horizon": Stated(horizon, unsaid("horizon") if without_config else "config.json action_horizon"),
        "replan_steps": Stated(config.replan_steps, unsaid("replan_steps")),
        "denoise_steps": Stated(config.denoise_steps, unsaid("denoise_steps")),
    }
    if without_config:
        stated["sizes"] = Stated(config.sizes, unsaid("sizes"))
    return stated


def _files(config: CheckpointConfig, origins: Mapping[str, str], tokenizer_name: str) -> dict[str, Stated]:
    """State the files that are read in place of the folder's."""
    stated = {}
    if config.norm_stats is not None:
        stated["norm_stats"] = Stated(config.norm_stats, f"{origins['norm_stats']}; not the folder's")
    if config.tokenizer is not None:
        stated["tokenizer"] = Stated(config.tokenizer, f"{origins['tokenizer']}{tokenizer_name}")
    return stated


def _of_lerobot(
    config: CheckpointConfig, saved: LerobotFolder, folder: Path, origins: Mapping[str, str]
) -> Settings:
    file = saved.config
    if config.horizon not in (None, file.chunk_size):
        raise ValueError(
            f"checkpoint.horizon must be {file.chunk_size} as chunk_size in {file.source}, got "
            f"{config.horizon}; set checkpoint.horizon={file.chunk_size} or null, it belongs to the weights"
        )
    stated: dict[str, Stated] = {"horizon": Stated(file.chunk_size, "config.json chunk_size")}

    def choose(name: str, option: str, saved_value: Any, key: str) -> Any:
        """Take the configuration's value of `option`, or else the folder's; state which."""
        given = getattr(config, option)
        if given is None:
            stated[name] = Stated(saved_value, key)
            return saved_value
        says = "" if given == saved_value else f"; {key} says {saved_value}"
        stated[name] = Stated(given, f"{origins[option]}{says}")
        return given

    before, after = saved.preprocessor.normalisation, saved.postprocessor
    denoise_steps = choose(
        "denoise_steps", "denoise_steps", file.num_inference_steps, "config.json num_inference_steps"
    )
    replan_steps = choose("replan_steps", "replan_steps", file.n_action_steps, "config.json n_action_steps")
    check_replan(replan_steps, file.chunk_size)
    action_norm = choose(
        "action_norm",
        "norm_mode",
        NORM_MODES[after.norm_map["ACTION"]],
        "policy_postprocessor.json norm_map",
    )
    state_norm, state_prompt_dims = None, 0
    if config.state_in_prompt:
        state_norm = choose(
            "state_norm",
            "norm_mode",
            NORM_MODES[before.norm_map["STATE"]],
            "policy_preprocessor.json norm_map",
        )
        state_prompt_dims = _state_prompt_dims(config, saved, folder, stated, origins)
        stated["state_eps"] = Stated(before.eps, "policy_preprocessor.json eps")
    else:
        stated["prompt"] = Stated(
            "without state", f"{origins['state_in_prompt']}; lerobot's own has the state"
        )
    stated["action_eps"] = Stated(after.eps, "policy_postprocessor.json eps")
    stated["min_period"] = Stated(file.min_period, "config.json min_period")
    stated["max_period"] = Stated(file.max_period, "config.json max_period")
    cameras = [camera for camera in saved.cameras if camera not in saved.masked_cameras]
    renamed = " and rename_map" if saved.preprocessor.rename_map else ""
    stated["cameras"] = Stated(cameras, f"config.json input_features{renamed}")
    stated["empty_cameras"] = Stated(
        len(saved.masked_cameras), "config.json input_features and empty_cameras"
    )
    stated["resize"] = Stated("bilinear, not antialiased", "layout lerobot")
    named = brief(saved.preprocessor.tokenizer_name)
    if file.dtype is not None:
        stated["trained_dtype"] = Stated(file.dtype, "config.json dtype; policy.precision decides here")
    return Settings(
        file.chunk_size,
        replan_steps,
        denoise_steps,
        state_norm,
        action_norm,
        state_prompt_dims,
        (file.min_period, file.max_period),
        saved,
        stated | _files(config, origins, f"; policy_preprocessor.json tokenizer_name is {named}"),
    )


def _state_prompt_dims(
    config: CheckpointConfig,
    saved: LerobotFolder,
    folder: Path,
    stated: dict[str, Stated],
    origins: Mapping[str, str],
) -> int:
    """Decide how many numbers of state the prompt has: lerobot <= 0.4.4 padded them to 32 first."""
    says = saved.version_says_8
    if config.state_prompt_dims is not None:
        other = f"; {says}, says {STATE_DIM}" if says and config.state_prompt_dims != STATE_DIM else ""
        stated["state_prompt_dims"] = Stated(
            config.state_prompt_dims, f"{origins['state_prompt_dims']}{other}"
        )
        return config.state_prompt_dims
    if says is None:
        raise ValueError(
            f"checkpoint.state_prompt_dims must be 8 or 32, {folder} does not say which: lerobot <= 0.4.4 "
            "pads the state to 32 numbers before it words them in the prompt, lerobot >= 0.5.0 words the 8, "
            "and only >= 0.5.1 leaves a trace (use_relative_actions). To find out, look at the lerobot "
            "version of the training environment (pip show lerobot, or the requirements.txt of its W&B run), "
            "or try both on a few episodes, the wrong one is near 0 %; then give "
            "checkpoint.state_prompt_dims=8 or checkpoint.state_prompt_dims=32"
        )
    stated["state_prompt_dims"] = Stated(STATE_DIM, says)
    return STATE_DIM
