"""Nothing in a lerobot folder is ignored: each key, flipped, changes the outcome, is refused or harmless."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.policy import Pi05Policy
from tests.policies.pi05.conftest import LEROBOT_SMALL, LEROBOT_STATS, Counted
from tests.policies.pi05.folder import Folder
from tests.policies.pi05.test_lerobot_settings import act, observe, set_norm_map

CONFIG, PRE, POST = FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
OTHER_STATS = "other.safetensors"  # twice the deviations
SWAPPED = {"observation.images.image": "observation.images.image2"}
UNKNOWN = {"observation.images.x": "observation.images.image"}
SWAPPED |= {new: old for old, new in SWAPPED.items()}
# Values that lerobot knows, beside the flipped ones.
ALTERNATIVES: dict[tuple[str, str], list[Any]] = {
    (CONFIG, "dtype"): ["bfloat16", "float16"],
    (CONFIG, "type"): ["pi0"],
    (CONFIG, "paligemma_variant"): ["gemma_300m"],
    (CONFIG, "action_expert_variant"): ["gemma_2b"],
    (CONFIG, "rtc_config"): [{"enabled": True}, {"enabled": False, "execution_horizon": 5}],
    (CONFIG, "image_resolution"): [[112, 112]],
    (CONFIG, "device"): ["cuda"],
    **{
        (file, f"{step}{kind}"): ["QUANTILES", "IDENTITY"]
        for file, step in (
            (CONFIG, "normalization_mapping."),
            (PRE, "normalizer_processor.norm_map."),
            (POST, "unnormalizer_processor.norm_map."),
        )
        for kind in ("STATE", "ACTION")
    },
    (PRE, "rename_observations_processor.rename_map"): [SWAPPED, UNKNOWN],
    (PRE, "tokenizer_processor.padding_side"): ["left"],
    (PRE, "tokenizer_processor.padding"): ["longest"],
    (PRE, "tokenizer_processor.tokenizer_name"): ["google/paligemma-3b-pt-224", "google/gemma-2b"],
    (PRE, "normalizer_processor.state_file"): [OTHER_STATS],
    (POST, "unnormalizer_processor.state_file"): [OTHER_STATS],
    **{(file, "device_processor.float_dtype"): ["float32", "bfloat16"] for file in (PRE, POST)},
}
# What a flip changes, of `outcome`.
STATE_WORDS = {"state", "tokens", "normalised actions", "actions"}
HONOURED: dict[tuple[str, str], set[str]] = {
    (CONFIG, "num_inference_steps"): {"normalised actions", "actions"},
    (CONFIG, "min_period"): {"normalised actions", "actions"},
    (CONFIG, "max_period"): {"normalised actions", "actions"},
    (CONFIG, "chunk_size"): {"normalised actions", "actions"},
    (CONFIG, "n_action_steps"): {"executed"},
    (CONFIG, "empty_cameras"): {"images", "image mask"},
    (PRE, "rename_observations_processor.rename_map"): {"images", "normalised actions", "actions"},
    (PRE, "normalizer_processor.eps"): STATE_WORDS,
    (PRE, "normalizer_processor.state_file"): STATE_WORDS,
    (POST, "unnormalizer_processor.state_file"): {"actions"},
}
ELSEWHERE = "policy.device, policy.precision and conf/optim decide here"
HUB = "says where a copy lies"
TRAINING = "of training alone"
OFF = "of something that is off, and refused where it is on"
# No value changes an action: by file, the dotted path; a step's path begins with its name.
HARMLESS: dict[str, dict[str, str]] = {
    CONFIG: {
        **dict.fromkeys(("device", "compile_model", "compile_mode"), ELSEWHERE),
        **dict.fromkeys(("push_to_hub", "repo_id", "private", "tags", "license"), HUB),
        **dict.fromkeys(("pretrained_path", "pretrained_revision"), "says what training began with"),
        **dict.fromkeys(("gradient_checkpointing", "freeze_vision_encoder", "train_expert_only"), TRAINING),
        **dict.fromkeys(
            (f"time_sampling_{x}" for x in ("beta_alpha", "beta_beta", "scale", "offset")), TRAINING
        ),
        **dict.fromkeys((f"optimizer_{x}" for x in ("lr", "betas", "eps", "weight_decay")), TRAINING),
        **dict.fromkeys((f"scheduler_{x}" for x in ("warmup_steps", "decay_steps", "decay_lr")), TRAINING),
        "optimizer_grad_clip_norm": TRAINING,
        **dict.fromkeys(("relative_exclude_joints", "action_feature_names"), OFF),
        **dict.fromkeys(("memory_frames", "memory_stride", "memory_temporal_attention_every"), OFF),
    },
    PRE: {
        "name": "a label",
        **dict.fromkeys((f"relative_actions_processor.{x}" for x in ("exclude_joints", "action_names")), OFF),
        "device_processor.device": ELSEWHERE,
    },
    POST: {
        "name": "a label",
        "unnormalizer_processor.eps": "lerobot adds none to deviations on the way out; of quantiles it does",
        "device_processor.device": ELSEWHERE,
    },
}
# These values alone change no action.
HARMLESS_VALUES: list[tuple[str, str, Any, str]] = [
    (CONFIG, "dtype", "bfloat16", "the precision of training; policy.precision decides here"),
    (CONFIG, "rtc_config", {"enabled": False, "execution_horizon": 5}, OFF),
    (PRE, "tokenizer_processor.tokenizer_name", "google/paligemma-3b-pt-224", "whose copy is in tokenizer/"),
    (PRE, "device_processor.float_dtype", "float32", "in which it computes anyway"),
    (POST, "device_processor.float_dtype", "float32", "in which it computes anyway"),
]
# By how much parts of an outcome must differ to count as honoured: more than rounding does.
VISIBLE = {"state": 1e-4, "images": 1e-3, "normalised actions": 1e-3, "actions": 1e-4}


def flipped(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2 + 0.1
    if isinstance(value, list) and value:
        return [*value[:-1], flipped(value[-1])]
    return "flipped"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values that hold no others; an empty object is one."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path


def spell(content: Any, path: tuple[Any, ...]) -> str:
    """`config.json`'s path, or that of a step's config: `normalizer_processor.eps`."""
    if path[0] != "steps":
        return ".".join(path)
    step = content["steps"][path[1]]["registry_name"]
    return ".".join((step, *map(str, path[3:] if path[2] == "config" else path[2:])))


def look_up(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def cases() -> Iterator[tuple[str, str, tuple[Any, ...], Any]]:
    """A file, a key's name, its path and another value of it."""
    for file in FILES:
        content = json.loads((LEROBOT_SMALL / file).read_text())
        for path in leaves(content):
            name = spell(content, path)
            for value in (flipped(look_up(content, path)), *ALTERNATIVES.get((file, name), [])):
                yield file, name, path, value


def outcome(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All that a robot would notice, in the form that computes what lerobot computes."""
    preprocess = checkpoint.preprocess()
    inputs = preprocess([observe()], "full")
    assert inputs.image_mask_BN is not None
    assert preprocess.state is not None
    stages = {name: Counted(stage) for name, stage in checkpoint.stages.items()}
    normalised = act(checkpoint)
    return {
        "tokens": inputs.tokens_BT,
        "images": inputs.images_BNCHW,
        "image mask": inputs.image_mask_BN,
        "state": torch.from_numpy(preprocess.state.normalize(observe().state)),
        "normalised actions": normalised,
        "actions": torch.from_numpy(checkpoint.postprocess()(normalised.numpy())),
        "executed": torch.tensor(Pi05Policy.from_checkpoint(checkpoint, stages, name="x").replan_steps),
    }


@pytest.fixture(scope="module")
def before() -> dict[str, Tensor]:
    """The outcome of the folder as lerobot wrote it."""
    torch.set_num_threads(1)  # as in every test here: images depend on it
    null = dict.fromkeys(("norm_mode", "horizon", "replan_steps", "denoise_steps"))
    options: dict[str, Any] = {"name": "saved", "layout": "lerobot", "path": str(LEROBOT_SMALL), **null}
    return outcome(load_checkpoint(CheckpointConfig(**options, state_in_prompt=True)))


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[set[str], set[str]]:
    """Name what differs at all, and what differs visibly."""
    at_all = {name for name in before if not torch.equal(before[name], after[name])}

    def is_visible(name: str) -> bool:
        one, two = before[name], after[name]
        return one.shape != two.shape or bool(
            (one.double() - two.double()).abs().max() > VISIBLE.get(name, 0.0)
        )

    return at_all, {name for name in at_all if is_visible(name)}


def write_other_stats(saved: Folder) -> None:
    stats = load_file(saved.path / LEROBOT_STATS[0])
    doubled = {key: value * np.float32(2) if key.endswith(".std") else value for key, value in stats.items()}
    save_file(doubled, saved.path / OTHER_STATS)


@pytest.mark.parametrize(
    ("file", "name", "path", "value"),
    [pytest.param(*case, id=f"{case[0]}-{case[1]}-{json.dumps(case[3])[:30]}") for case in cases()],
)
def test_every_key_is_honoured_refused_by_name_or_in_the_list_of_harmless_ones(
    saved: Folder,
    load_saved: Callable[..., Checkpoint],
    before: dict[str, Tensor],
    file: str,
    name: str,
    path: tuple[Any, ...],
    value: Any,
) -> None:
    write_other_stats(saved)
    saved.edit_json(
        file, lambda content: look_up(content, path[:-1]).update({path[-1]: copy.deepcopy(value)})
    )
    is_harmless = name in HARMLESS[file] or (file, name, value) in [case[:3] for case in HARMLESS_VALUES]
    message, after = "", {}
    try:
        after = outcome(load_saved())
    except (ValueError, FileNotFoundError) as refusal:
        message = str(refusal)
    if message:
        key = next(word for word in reversed(path) if isinstance(word, str))
        assert re.search(rf"\b{re.escape(key)}\b", message), f"{key} is not named: {message}"
        assert file in message
        assert str(saved.path) in message
        assert not is_harmless
        assert (file, name) not in HONOURED or value in ("flipped", UNKNOWN)
        return
    at_all, visibly = changed(before, after)
    if is_harmless:
        assert at_all == set()
    else:
        assert visibly == HONOURED[file, name]


def test_the_lists_have_only_keys_of_lerobots_files_each_with_a_reason() -> None:
    known = {(file, name) for file, name, _, _ in cases()}
    harmless = {(file, name) for file, names in HARMLESS.items() for name in names}
    assert harmless | HONOURED.keys() | ALTERNATIVES.keys() | {case[:2] for case in HARMLESS_VALUES} <= known
    assert not harmless & HONOURED.keys()
    assert all(reason for names in HARMLESS.values() for reason in names.values())


QUANTILES = {"STATE": STATE_WORDS, "ACTION": {"actions"}}


@pytest.mark.parametrize("kind", QUANTILES)
def test_a_norm_mode_that_all_files_agree_on_is_honoured(
    saved: Folder, load_saved: Callable[..., Checkpoint], before: dict[str, Tensor], kind: str
) -> None:
    set_norm_map(saved, **{kind: "QUANTILES"})
    assert changed(before, outcome(load_saved()))[1] == QUANTILES[kind]


def test_a_tokenizer_length_that_both_files_agree_on_is_honoured(
    saved: Folder, load_saved: Callable[..., Checkpoint], before: dict[str, Tensor]
) -> None:
    saved.edit_config(tokenizer_max_length=100)
    saved.edit_step(PRE, "tokenizer_processor", max_length=100)
    after = outcome(load_saved())
    assert changed(before, after)[1] == {"tokens"}
    assert torch.equal(after["tokens"], before["tokens"][:, :100])


@pytest.mark.parametrize("file", FILES)
def test_a_key_that_nobody_knows_is_refused(
    saved: Folder, load_saved: Callable[..., Checkpoint], file: str
) -> None:
    saved.edit_json(file, lambda content: content.update(use_telepathy=True))
    with pytest.raises(
        ValueError, match=rf"{file} says use_telepathy=true, which this project does not know"
    ):
        load_saved()


STEPS = [
    (file, step["registry_name"])
    for file in FILES[1:]
    for step in json.loads((LEROBOT_SMALL / file).read_text())["steps"]
]


@pytest.mark.parametrize(("file", "step"), STEPS)
def test_a_key_of_a_step_that_nobody_knows_is_refused(
    saved: Folder, load_saved: Callable[..., Checkpoint], file: str, step: str
) -> None:
    saved.edit_step(file, step, use_telepathy=True)
    with pytest.raises(ValueError, match=rf"{file} says {step}.use_telepathy=true, which this project"):
        load_saved()


@pytest.mark.parametrize(("file", "step"), STEPS)
def test_a_step_less_changes_nothing_or_is_refused(
    saved: Folder,
    load_saved: Callable[..., Checkpoint],
    before: dict[str, Tensor],
    file: str,
    step: str,
) -> None:
    def remove(content: dict[str, Any]) -> None:
        content["steps"] = [entry for entry in content["steps"] if entry["registry_name"] != step]

    saved.edit_json(file, remove)
    if step in ("normalizer_processor", "unnormalizer_processor", "tokenizer_processor") or "prepare" in step:
        with pytest.raises(ValueError, match=rf"{file} lacks the step {step}; lerobot would act without it"):
            load_saved()
    else:
        assert changed(before, outcome(load_saved()))[0] == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda steps: steps.insert(1, {"registry_name": "delta_action_processor", "config": {}}),
            "registry_name of a step must be one of .*, got delta_action_processor in .*_preprocessor.json",
        ),
        (lambda steps: steps.append(steps[0]), "has the step rename_observations_processor twice"),
        (
            lambda steps: steps.reverse(),
            "the steps' order must be rename_observations_processor, .*, got device",
        ),
        (
            lambda steps: steps[0].update({"class": "evil.Step"}),
            "says rename_observations_processor class=evil.Step",
        ),
        (
            lambda steps: steps[5].update(artifacts={"tokenizer_name": "x"}),
            "tokenizer_processor artifacts must be",
        ),
    ],
)
def test_other_steps_are_refused(
    saved: Folder,
    load_saved: Callable[..., Checkpoint],
    change: Callable[[list[dict[str, Any]]], object],
    message: str,
) -> None:
    saved.edit_json("policy_preprocessor.json", lambda content: change(content["steps"]))
    with pytest.raises(ValueError, match=message):
        load_saved()
