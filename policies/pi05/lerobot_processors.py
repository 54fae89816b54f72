"""What lerobot's policy_preprocessor.json and policy_postprocessor.json may say, step by step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.files import read_json_object
from policies.pi05.lerobot_config import (
    COPY,
    COUNTS,
    Feature,
    check_accepted,
    read_count,
    read_features,
    read_norm_map,
    read_number,
    refusal,
    refuse_unknown,
)
from policies.pi05.norm_stats import LEROBOT_EPS

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PALIGEMMA_TOKENIZER = "google/paligemma-3b-pt-224"  # pi0.5's; lerobot >= 0.6.2 saves a copy in tokenizer/
RELATIVE = "relative_actions_processor"
EPS = (0.0, 1.0)  # of a normaliser; a larger one would hide the statistics
_ABSOLUTE = "this policy acts by LIBERO's own deltas and adds no state"
_CODE = "this policy's prompt is fixed"


@dataclass(frozen=True)
class StepRule:
    """What one step may say: keys that are honoured, few accepted values, or harmless."""

    honoured: frozenset[str] = frozenset()
    accepted: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    required: bool = False
    has_state: bool = False  # names a file of statistics
    artifacts: tuple[dict[str, str], ...] = ()


_DEVICE = StepRule(
    accepted={"float_dtype": ((None, "float32"), "policy.precision chooses the precision here")},
    harmless=frozenset({"device"}),
)
_NORMALIZER = StepRule(
    honoured=frozenset({"eps", "features", "norm_map", "normalize_observation_keys"}),
    required=True,
    has_state=True,
)
# In lerobot's order, which is part of the rule: the prompt has the words of the normalised state.
PRE_STEPS: Mapping[str, StepRule] = {
    "rename_observations_processor": StepRule(honoured=frozenset({"rename_map"})),
    "to_batch_processor": StepRule(),
    RELATIVE: StepRule(
        accepted={"enabled": ((False,), _ABSOLUTE)},
        harmless=frozenset({"exclude_joints", "action_names"}),  # of relative actions
    ),
    "normalizer_processor": _NORMALIZER,
    "pi05_prepare_state_tokenizer_processor_step": StepRule(
        accepted={"max_state_dim": ((32,), "pi0.5 pads to 32"), "task_key": (("task",), _CODE)}, required=True
    ),
    "tokenizer_processor": StepRule(
        honoured=frozenset({"max_length", "tokenizer_name"}),
        accepted={
            "task_key": (("task",), _CODE),
            "padding_side": (("right",), _CODE),
            "padding": (("max_length",), _CODE),
            "truncation": ((True,), _CODE),
        },
        required=True,
        artifacts=({"tokenizer_name": "tokenizer"},),
    ),
    "device_processor": _DEVICE,
}
POST_STEPS: Mapping[str, StepRule] = {
    "unnormalizer_processor": _NORMALIZER,
    "absolute_actions_processor": StepRule(accepted={"enabled": ((False,), _ABSOLUTE)}),
    "device_processor": _DEVICE,
}


@dataclass(frozen=True)
class Normalisation:
    """What a normaliser's step says."""

    source: str  # the processor's file
    eps: float
    norm_map: Mapping[str, str]
    features: Mapping[str, Feature]
    stats: Path


@dataclass(frozen=True)
class Preprocessor:
    """The honoured keys of policy_preprocessor.json."""

    normalisation: Normalisation
    rename_map: Mapping[str, str]
    max_length: int
    tokenizer_name: str | None
    has_relative_actions: bool  # whether the step is there, enabled or not: lerobot >= 0.5.1 wrote the file


def read_preprocessor(folder: Path) -> Preprocessor:
    """Read policy_preprocessor.json; FileNotFoundError, or ValueError for a step, key or value not known."""
    path = folder / PREPROCESSOR
    steps = _read_steps(path, PRE_STEPS)
    tokenizer = steps["tokenizer_processor"]["config"]
    max_length = read_count(
        tokenizer.get("max_length"),
        "tokenizer_processor.max_length",
        COUNTS["tokenizer_max_length"],
        path,
    )
    return Preprocessor(
        _normalisation(steps["normalizer_processor"], "normalizer_processor", path),
        _rename_map(steps.get("rename_observations_processor", {}), path),
        max_length,
        _tokenizer_name(steps["tokenizer_processor"], path),
        RELATIVE in steps,
    )


def read_postprocessor(folder: Path) -> Normalisation:
    """Read policy_postprocessor.json; errors as in `read_preprocessor`."""
    path = folder / POSTPROCESSOR
    steps = _read_steps(path, POST_STEPS)
    return _normalisation(steps["unnormalizer_processor"], "unnormalizer_processor", path)


def _read_steps(path: Path, rules: Mapping[str, StepRule]) -> dict[str, dict[str, Any]]:
    """Map the steps' names to their entries, each with a config; every key is checked."""
    raw = _read_json(path)
    refuse_unknown("", raw, ("name", "steps"), str(path))
    entries = raw.get("steps")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise refusal("steps", "a list of objects", entries, path, COPY)
    steps: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry.get("registry_name")
        if not isinstance(name, str) or name not in rules:
            known = ", ".join(rules)
            raise refusal(
                "registry_name of a step", f"one of {known}", name or entry, path, "there are no other steps"
            )
        if name in steps:
            raise ValueError(f"{path} has the step {name} twice; this policy has it once")
        rule = rules[name]
        known_keys = {"registry_name", "config", *(["state_file"] if rule.has_state else [])}
        refuse_unknown(
            f"{name} ", entry, known_keys | ({"artifacts"} if rule.artifacts else set()), str(path)
        )
        if entry.get("artifacts", None) not in (None, {}, *rule.artifacts):
            wanted = " or ".join(map(json.dumps, rule.artifacts))
            raise refusal(f"{name} artifacts", wanted, entry["artifacts"], path, "lerobot writes no other")
        config = entry.get("config", {})
        if not isinstance(config, dict):
            raise refusal(f"{name} config", "an object", config, path, COPY)
        refuse_unknown(f"{name}.", config, {*rule.honoured, *rule.accepted, *rule.harmless}, str(path))
        check_accepted(f"{name}.", config, rule.accepted, str(path))
        steps[name] = {**entry, "config": config}
    if missing := [name for name, rule in rules.items() if rule.required and name not in steps]:
        raise ValueError(
            f"{path} lacks the step {', '.join(missing)}; lerobot would act without it, which no pi0.5 was "
            "trained for: copy the file from the training run"
        )
    if list(steps) != (order := [name for name in rules if name in steps]):
        raise refusal("the steps' order", ", ".join(order), ", ".join(steps), path, "lerobot writes no other")
    return steps


def _normalisation(step: Mapping[str, Any], name: str, path: Path) -> Normalisation:
    config, source = step["config"], str(path)
    eps = read_number(config.get("eps", LEROBOT_EPS), f"{name}.eps", EPS, source)
    keys = config.get("normalize_observation_keys")
    if keys is not None and not (isinstance(keys, list) and "observation.state" in keys):
        wanted = "null, or a list with observation.state"
        raise refusal(f"{name}.normalize_observation_keys", wanted, keys, source, COPY)
    file = step.get("state_file")
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
        raise refusal(f"{name} state_file", "a .safetensors file beside it", file, source, COPY)
    if not (path.parent / file).is_file():
        raise FileNotFoundError(
            f"no norm stats: {name} in {path} names {path.parent / file}; "
            "without them actions have the wrong scale; copy the file from the training run"
        )
    return Normalisation(
        source,
        eps,
        read_norm_map(config.get("norm_map"), f"{name}.norm_map", source),
        read_features(config.get("features"), f"{name}.features", source),
        path.parent / file,
    )


def _rename_map(step: Mapping[str, Any], path: Path) -> dict[str, str]:
    rename_map = step.get("config", {}).get("rename_map", {})
    if not isinstance(rename_map, dict) or not all(isinstance(name, str) for name in rename_map.values()):
        raise refusal("rename_map", "an object of names", rename_map, path, COPY)
    return rename_map


def _tokenizer_name(step: Mapping[str, Any], path: Path) -> str | None:
    name = step["config"].get("tokenizer_name")
    if name is not None and not isinstance(name, str):
        raise refusal("tokenizer_processor.tokenizer_name", "a name", name, path, COPY)
    return name


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which says how lerobot prepares observations and actions; copy it from the training "
            "run, or from the hub; of a folder of lerobot < 0.4, run lerobot's "
            "migrate_policy_normalization.py first"
        )
    return read_json_object(path)
