"""Nothing in a lerobot folder is ignored: each key, flipped, changes the outcome, is refused or harmless."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from policies.pi05.checkpoint import Checkpoint
from tests.policies.pi05.conftest import LEROBOT_SMALL
from tests.policies.pi05.folder import Folder
from tests.policies.pi05.test_lerobot_settings import observe

FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
# Flipped, they change no action: by file, the dotted path; a step's path begins with its name.
HARMLESS = {
    "config.json": {
        # where and how fast lerobot ran
        *("device", "compile_model", "compile_mode"),
        # the hub
        *("push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"),
        # training
        *("gradient_checkpointing", "freeze_vision_encoder", "train_expert_only"),
        *(f"time_sampling_{name}" for name in ("beta_alpha", "beta_beta", "scale", "offset")),
        *(f"optimizer_{name}" for name in ("lr", "betas", "eps", "weight_decay", "grad_clip_norm")),
        *(f"scheduler_{name}" for name in ("warmup_steps", "decay_steps", "decay_lr")),
        # of relative actions and of memory, which are refused
        *("relative_exclude_joints", "action_feature_names"),
        *("memory_frames", "memory_stride", "memory_temporal_attention_every"),
    },
    "policy_preprocessor.json": {
        "name",
        "relative_actions_processor.exclude_joints",
        "relative_actions_processor.action_names",
        "device_processor.device",
    },
    "policy_postprocessor.json": {"name", "device_processor.device"},
}


def flipped(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2
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


def cases() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for file in FILES:
        content = json.loads((LEROBOT_SMALL / file).read_text())
        for path in leaves(content):
            yield file, spell(content, path), path


def outcome(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that decides actions, apart from weights and statistics, which flips leave alone."""
    inputs = checkpoint.preprocess()([observe()], "full")
    return {
        "dims": checkpoint.dims,
        "settings": {name: stated.value for name, stated in checkpoint.settings.stated.items()},
        "tokens": inputs.tokens_BT.tolist(),
        "images": inputs.images_BNCHW.shape,
        "norms": (checkpoint.settings.state_norm, checkpoint.settings.action_norm),
    }


@pytest.mark.parametrize(
    ("file", "name", "path"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in cases()]
)
def test_every_key_is_honoured_refused_by_name_or_in_the_list_of_harmless_ones(
    saved: Folder, load_saved: Callable[..., Checkpoint], file: str, name: str, path: tuple[Any, ...]
) -> None:
    before = outcome(load_saved())

    def flip(content: dict[str, Any]) -> None:
        parent: Any = content
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = flipped(copy.deepcopy(parent[path[-1]]))

    saved.edit_json(file, flip)
    verdict, message = "refused", ""
    try:
        verdict = "harmless" if outcome(load_saved()) == before else "honoured"
    except (ValueError, FileNotFoundError) as refusal:
        message = str(refusal)
    assert (verdict == "harmless") == (name in HARMLESS[file]), (verdict, name)
    if verdict == "refused":
        names = {key for key in path[-2:] if isinstance(key, str)} | {
            "flipped"
        }  # a step is named by what it was changed to
        names |= {"action_dim"} if name == "max_action_dim" else set()  # compared with the weights
        assert any(word in message for word in names), message
        assert str(saved.path) in message


def test_the_list_of_harmless_keys_has_only_keys_of_lerobots_files() -> None:
    names: dict[str, set[str]] = {file: set() for file in FILES}
    for file, name, _ in cases():
        names[file].add(name)
    assert {file: HARMLESS[file] - names[file] for file in FILES} == {file: set() for file in FILES}


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
    saved: Folder, load_saved: Callable[..., Checkpoint], file: str, step: str
) -> None:
    before = outcome(load_saved())

    def remove(content: dict[str, Any]) -> None:
        content["steps"] = [entry for entry in content["steps"] if entry["registry_name"] != step]

    saved.edit_json(file, remove)
    if step in ("normalizer_processor", "unnormalizer_processor", "tokenizer_processor") or "prepare" in step:
        with pytest.raises(ValueError, match=rf"{file} lacks the step {step}; lerobot would act without it"):
            load_saved()
    else:
        assert outcome(load_saved()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda steps: steps.insert(1, {"registry_name": "delta_action_processor", "config": {}}),
            "a step must be one of .*, got delta_action_processor in .*policy_preprocessor.json",
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
