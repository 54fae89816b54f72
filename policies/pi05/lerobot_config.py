"""What lerobot's config.json may say: each key is honoured, has few accepted values, or is harmless.

Non-obvious behaviors:
    The lists are those of lerobot 0.4.0 to 0.6.2. A key of a later version is refused until somebody has
    looked what it does to actions.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.pi05.dims import MAX_CAMERAS, MAX_DENOISE_STEPS, MAX_HORIZON, MAX_PROMPT_TOKENS
from policies.text import brief, shorten

HONOURED = frozenset(
    {
        "type",
        "paligemma_variant",
        "action_expert_variant",
        "dtype",
        "chunk_size",
        "n_action_steps",
        "num_inference_steps",
        "min_period",
        "max_period",
        "max_action_dim",
        "image_resolution",
        "tokenizer_max_length",
        "input_features",
        "output_features",
        "empty_cameras",
        "normalization_mapping",
        "rtc_config",
    }
)
OPTIONAL = frozenset({"empty_cameras", "rtc_config", "dtype"})  # lerobot's defaults change no action
# Accepted values of keys that change actions in a way that this network does not have, and the way out.
ACCEPTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n_obs_steps": ((1,), "this network sees one observation"),
    "max_state_dim": ((32,), "pi0.5 pads to 32"),
    "use_amp": ((False,), "retrain or save without it; policy.precision chooses the precision here"),
    "use_peft": ((False,), "merge the adapter into its base with peft's merge_and_unload(), and save that"),
    "use_relative_actions": ((False,), "this policy acts by LIBERO's own deltas and adds no state"),
    "use_visual_memory": ((False,), "this policy remembers no frames"),
    "use_proprioceptive_memory": ((False,), "this policy remembers no states"),
    "rtc_training_max_delay": ((0,), "this policy does not act while it infers"),
}
# Keys that change no action.
HARMLESS = frozenset(
    {
        # where lerobot ran and how fast: policy.device, policy.precision and conf/optim decide here
        *("device", "compile_model", "compile_mode"),
        # training
        *("gradient_checkpointing", "freeze_vision_encoder", "train_expert_only"),
        *(f"time_sampling_{name}" for name in ("beta_alpha", "beta_beta", "scale", "offset")),
        *(f"optimizer_{name}" for name in ("lr", "betas", "eps", "weight_decay", "grad_clip_norm")),
        *(f"scheduler_{name}" for name in ("warmup_steps", "decay_steps", "decay_lr")),
        # the hub
        *("push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"),
        # of relative actions and of memory, which are refused
        *("relative_exclude_joints", "action_feature_names"),
        *("memory_frames", "memory_stride", "memory_temporal_attention_every"),
    }
)
DTYPES = ("float32", "bfloat16")
FEATURE_TYPES = ("VISUAL", "STATE", "ACTION")
NORM_MODES = {"MEAN_STD": "mean_std", "QUANTILES": "quantile"}  # to checkpoint.norm_mode
COPY = "copy it from the training run"
# Counts, each with its range; lerobot's defaults are 50, 50, 10, 200 and 0.
COUNTS: Mapping[str, tuple[int, int]] = {
    "chunk_size": (1, MAX_HORIZON),
    "n_action_steps": (1, MAX_HORIZON),
    "num_inference_steps": (1, MAX_DENOISE_STEPS),
    "tokenizer_max_length": (1, MAX_PROMPT_TOKENS),
    "empty_cameras": (0, MAX_CAMERAS - 1),
}
PERIODS = (1e-6, 1e6)  # of the time embedding, whose times are 0 to 1
STATE, ACTION = "observation.state", "action"
STATE_SHAPE, ACTION_SHAPE = (8,), (7,)  # LIBERO's


@dataclass(frozen=True)
class Feature:
    """An entry of `input_features` or `output_features`."""

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LerobotConfig:
    """The honoured keys of config.json, apart from sizes, which `Pi05Dims.from_lerobot` reads."""

    source: str  # the file
    chunk_size: int
    n_action_steps: int
    num_inference_steps: int
    min_period: float
    max_period: float
    tokenizer_max_length: int
    dtype: str | None
    empty_cameras: int
    input_features: Mapping[str, Feature]
    output_features: Mapping[str, Feature]
    norm_map: Mapping[str, str]
    has_relative_actions: bool  # whether the key is there: lerobot >= 0.5.1 wrote the file


def read_lerobot_config(raw: Mapping[str, Any], source: str) -> LerobotConfig:
    """Check every key of config.json; ValueError for one that is unknown, missing, or has a refused value."""
    if raw.get("type") != "pi05":
        raise refusal("type", "'pi05'", raw.get("type"), source, "this is another policy")
    refuse_unknown("", raw, {*HONOURED, *ACCEPTED, *HARMLESS}, source)
    for key in sorted(HONOURED - OPTIONAL - raw.keys()):
        raise ValueError(f"{source} has no {key!r}; lerobot writes it, so this file is not complete")
    check_accepted("", raw, ACCEPTED, source)
    rtc = raw.get("rtc_config")
    if rtc is not None and not (isinstance(rtc, Mapping) and rtc.get("enabled") is False):
        wanted = "null, or an object with enabled=false"
        raise refusal("rtc_config", wanted, rtc, source, "this policy does not act while it infers")
    dtype = raw.get("dtype")
    if dtype not in (None, *DTYPES):
        raise refusal("dtype", f"one of {DTYPES}", dtype, source, "policy.precision chooses it here")
    counts = {name: read_count(raw.get(name, 0), name, COUNTS[name], source) for name in COUNTS}
    if counts["n_action_steps"] > counts["chunk_size"]:
        wanted = f"at most chunk_size={counts['chunk_size']}"
        raise refusal("n_action_steps", wanted, counts["n_action_steps"], source, "a chunk has no more")
    return LerobotConfig(
        source=source,
        **counts,
        min_period=read_number(raw["min_period"], "min_period", PERIODS, source),
        max_period=read_number(raw["max_period"], "max_period", PERIODS, source),
        dtype=dtype,
        input_features=read_features(raw["input_features"], "input_features", source),
        output_features=read_features(raw["output_features"], "output_features", source),
        norm_map=read_norm_map(raw["normalization_mapping"], "normalization_mapping", source),
        has_relative_actions="use_relative_actions" in raw,
    )


def read_features(raw: Any, key: str, source: str) -> dict[str, Feature]:
    """Read features in their order; ValueError for anything but cameras, LIBERO's state and its action."""
    if not isinstance(raw, Mapping):
        raise refusal(key, "an object", raw, source, COPY)
    features = {}
    for name, entry in raw.items():
        what = f"{key}.{brief(name)}"
        if not isinstance(entry, Mapping) or set(entry) != {"type", "shape"}:
            raise refusal(what, "an object with type and shape", entry, source, COPY)
        kind, shape = entry["type"], entry["shape"]
        if kind not in FEATURE_TYPES:
            raise refusal(
                f"{what}.type", f"one of {FEATURE_TYPES}", kind, source, "LIBERO has no such feature"
            )
        if not isinstance(shape, list) or not all(type(size) is int and size >= 1 for size in shape):
            raise refusal(f"{what}.shape", "a list of sizes", shape, source, COPY)
        feature = features[name] = Feature(kind, tuple(shape))
        wanted = {"STATE": (STATE, STATE_SHAPE), "ACTION": (ACTION, ACTION_SHAPE)}.get(kind)
        if wanted and (name, feature.shape) != wanted:
            robot = f"{wanted[0]} with shape {list(wanted[1])}, as LIBERO has"
            raise refusal(
                what, robot, f"{name} with shape {shape}", source, "these weights belong to another robot"
            )
        if kind == "VISUAL" and (len(shape) != 3 or shape[0] != 3):
            raise refusal(f"{what}.shape", "[3, height, width]", shape, source, "LIBERO has colours")
    return features


def read_norm_map(raw: Any, key: str, source: str) -> dict[str, str]:
    """Read the norm mode of each kind of feature, IDENTITY where none is given, as in lerobot.

    Raises ValueError for a mode of state or action that is not in `NORM_MODES`, or for normalised images.
    """
    if not isinstance(raw, Mapping):
        raise refusal(key, "an object", raw, source, COPY)
    refuse_unknown(f"{key}.", raw, FEATURE_TYPES, source)
    modes = {kind: raw.get(kind, "IDENTITY") for kind in FEATURE_TYPES}
    if modes["VISUAL"] != "IDENTITY":
        raise refusal(f"{key}.VISUAL", "IDENTITY", modes["VISUAL"], source, "pi0.5 scales levels alone")
    for kind in ("STATE", "ACTION"):
        if modes[kind] not in tuple(NORM_MODES):
            wanted = f"one of {tuple(NORM_MODES)}"
            raise refusal(f"{key}.{kind}", wanted, modes[kind], source, "train with one of them")
    return modes


def refuse_unknown(prefix: str, raw: Mapping[str, Any], known: Collection[str], source: str) -> None:
    """Raise ValueError for keys that are not in the lists."""
    if unknown := sorted(raw.keys() - set(known)):
        named = shorten(f"{prefix}{brief(key)}={brief(raw[key])}" for key in unknown)
        raise ValueError(
            f"{source} says {named}, which this project does not know and lerobot 0.6.2 does not write; "
            "it may change actions: find out what it does, and remove the key where it does nothing"
        )


def check_accepted(
    prefix: str, raw: Mapping[str, Any], accepted: Mapping[str, tuple[tuple[Any, ...], str]], source: str
) -> None:
    """Raise ValueError for a key whose value is none of those accepted."""
    for key, (values, way_out) in accepted.items():
        if key in raw and not any(type(raw[key]) is type(value) and raw[key] == value for value in values):
            wanted = " or ".join(map(json.dumps, values))
            raise refusal(f"{prefix}{key}", wanted, raw[key], source, way_out)


def refusal(key: str, wanted: str, got: Any, source: str | Path, way_out: str) -> ValueError:
    """Word the error for a value that is not honoured."""
    return ValueError(f"{key} must be {wanted}, got {brief(got)} in {source}; {way_out}")


def read_count(value: Any, key: str, bounds: tuple[int, int], source: str | Path) -> int:
    """Read a whole number; ValueError for anything else, or outside of the bounds."""
    least, most = bounds
    if type(value) is not int or not least <= value <= most:
        raise refusal(key, f"a whole number {least} to {most}", value, source, COPY)
    return value


def read_number(value: Any, key: str, bounds: tuple[float, float], source: str | Path) -> float:
    """Read a number; ValueError for anything else, or outside of the bounds."""
    least, most = bounds
    if type(value) not in (int, float) or not least <= value <= most:
        raise refusal(key, f"a number {least:g} to {most:g}", value, source, COPY)
    return float(value)
