"""What of a lerobot policy's files and settings this harness can evaluate, and its refusals.

J 7 robot action dims. The interface is that of lerobot 0.4.4, 0.5.1 and 0.6.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from policies.base import ACTION_DIM
from policies.files import read_json_object
from policies.pi05.weight_files import WEIGHTS
from policies.text import brief, shorten

CAMERAS = {  # lerobot.envs.libero, camera_name_mapping
    "observation.images.image": "agentview_image",
    "observation.images.image2": "robot0_eye_in_hand_image",
}
STATE, IMAGES, ACTION = "observation.state", "observation.images", "action"  # lerobot.utils.constants
STATE_DIM = 8
IMAGE_SHAPE = (3, 256, 256)
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
RESIZES = ("image_resolution", "resize_imgs_with_padding", "resize_shape", "image_resize_shape")
# options that fetch weights from elsewhere, for a network whose own are loaded right after
OTHER_WEIGHTS = {"pretrained_backbone_weights": None, "load_vlm_weights": False}
IMPORTS = ("class", "_target_", "auto_map")  # keys whose value is imported
# fields whose repository is loaded by transformers with `trust_remote_code`, which runs its Python files
RUNS_CODE = (
    *("action_tokenizer_name", "action_tokenizer_path", "text_tokenizer_name"),
    *("base_model_path", "model_name", "vision_encoder_name", "tokenizer_assets_repo"),
)
REMEMBERS = {  # types of policy, and what they keep from one call to the next
    "tdmpc": "the plan of its last call",
    "lingbot_va": "a cache over the episode",
}
RUN_FOLDERS = ("pretrained_model", "last/pretrained_model", "checkpoints/last/pretrained_model")


def find_folder(path: str, revision: str | None) -> Path:
    """Find the policy's folder; a hub id is downloaded, or taken from the cache where there is no network."""
    folder = Path(path).expanduser()
    if folder.exists() and revision is not None:
        raise ValueError(f"policy.args.revision={revision} is the hub's, but {folder} is on this machine")
    if not folder.exists():
        try:
            folder = Path(
                snapshot_download(path, revision=revision, allow_patterns=["*.json", "*.safetensors"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"policy.args.path: no folder {path!r}, and the hub did not give it: {error}"
            ) from error
    needed = ("config.json", *PROCESSORS, WEIGHTS)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        below = [folder / name for name in RUN_FOLDERS if (folder / name / WEIGHTS).is_file()]
        way_out = "save the policy with lerobot 0.4 or newer"
        if below:
            way_out = f"it is the folder of a training run: set policy.args.path={below[0]}"
        elif (folder / "adapter_config.json").is_file():
            way_out = (
                "it is a LoRA adapter: merge it into its base with peft's merge_and_unload, and save that"
            )
        elif missing == list(PROCESSORS):
            way_out = (
                "it is older than lerobot 0.4: migrate it with lerobot.processor.migrate_policy_normalization"
            )
        raise FileNotFoundError(f"policy.args.path={path} lacks {', '.join(missing)}; {way_out}")
    return folder


def check_no_code(folder: Path) -> None:
    """Raise ValueError where config.json or a processor names code to import: a policy's folder is data.

    lerobot imports the `class` of a step that has no `registry_name` (lerobot.processor.pipeline).
    """
    for name in ("config.json", *PROCESSORS):
        content = read_json_object(folder / name)
        if named := next(_names_of_code(content, ""), None):
            raise ValueError(
                f"{folder / name}: {named} names code to import, and a policy's folder is data; take one "
                "whose steps lerobot knows by their registry_name, or write a policy of your own"
            )
        steps = content.get("steps") if name in PROCESSORS else []
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise ValueError(f"{folder / name} must have a list of steps; save the policy with lerobot again")
        for i, step in enumerate(steps):
            if not isinstance(step.get("registry_name"), str):
                raise ValueError(
                    f"{folder / name}: steps[{i}] must have a registry_name, which lerobot knows; got "
                    f"{brief(step.get('registry_name'))}"
                )


def _names_of_code(value: Any, where: str) -> Iterator[str]:
    """Yield the keys, at any depth, by which lerobot, transformers and Hydra import a class."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in IMPORTS:
                yield f"{where}{key}={brief(item)}"
            yield from _names_of_code(item, f"{where}{key}.")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _names_of_code(item, f"{where.removesuffix('.')}[{i}].")


def check_repositories(config: Any, folder: Path, changes: Mapping[str, Any]) -> None:
    """Raise ValueError for a repository whose code lerobot would run, unless lerobot or the user names it."""
    own = {item.name: item.default for item in fields(config)}
    named = {name: getattr(config, name) for name in RUNS_CODE if name in own}
    for name, value in named.items():
        if value not in (None, own[name]) and name not in changes:
            raise ValueError(
                f"{folder / 'config.json'}: {name}={brief(value)} names a repository whose code lerobot "
                f"would run; if you trust it, name it yourself: +policy.args.config.{name}={value}"
            )
    for file in PROCESSORS:
        for i, step in enumerate(read_json_object(folder / file)["steps"]):
            for name in RUNS_CODE:
                value = (step.get("config") or {}).get(name)
                if value is not None and value not in named.values():
                    raise ValueError(
                        f"{folder / file}: steps[{i}] {name}={brief(value)} names a repository whose code "
                        "lerobot would run, and config.json does not; correct it, if you trust it"
                    )


def adapt(config: Any, device: str, changes: Mapping[str, Any]) -> Any:
    """Set the device and `changes` in lerobot's configuration; ValueError for what cannot run here."""
    if config.type in REMEMBERS:
        raise ValueError(
            f"policies of type {config.type} keep {REMEMBERS[config.type]}, and this adapter is for policies "
            "without memory; write a policy of your own for it (docs/own_policy.md)"
        )
    known = {item.name for item in fields(config)} - {"device"}
    if unknown := sorted(set(changes) - known):
        raise ValueError(
            f"policy.args.config.{unknown[0]} is no field of {type(config).__name__}; "
            f"it has {', '.join(sorted(known))}"
        )
    own_weights = {name: value for name, value in OTHER_WEIGHTS.items() if name in known}
    config = replace(config, **{**own_weights, **changes, "device": device})
    if config.device != device:
        raise ValueError(f"policy.args.device={device}: lerobot took {config.device} instead")
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise ValueError(
            f"temporal_ensemble_coeff={config.temporal_ensemble_coeff} averages the chunks of all steps, and "
            "the harness does not; evaluate it without: +policy.args.config.temporal_ensemble_coeff=null "
            "+policy.args.config.n_action_steps=K, K actions of each chunk"
        )
    if getattr(getattr(config, "rtc_config", None), "enabled", False):
        raise ValueError(
            "rtc_config is enabled, but the harness waits for each chunk, so there is nothing to blend; "
            "evaluate without it: +policy.args.config.rtc_config=null"
        )
    if getattr(config, "use_relative_actions", False):
        raise ValueError(
            "use_relative_actions is set, but LIBERO's controller takes motions, not positions; take a "
            "policy that was trained on LIBERO's actions"
        )
    action = (config.output_features or {}).get(ACTION)
    if action is None or tuple(action.shape) != (ACTION_DIM,):
        raise ValueError(
            f"output_features must have {ACTION} of shape ({ACTION_DIM},), as LIBERO's controller takes, got "
            f"{'none' if action is None else tuple(action.shape)}; take a policy that was trained on LIBERO"
        )
    return config


def find_replan_steps(config: Any, given: int | None, default: int | None = None) -> int:
    """The given number of actions, or lerobot's own, or `default` where lerobot has none."""
    own = getattr(config, "n_action_steps", None) or getattr(config, "action_chunk_size", None) or default
    steps = own if given is None else given
    if type(steps) is not int or steps < 1:
        raise ValueError(
            f"policy.args.replan_steps must be an integer >= 1, got {steps!r}"
            + ("; config.json has neither n_action_steps nor action_chunk_size" if given is None else "")
        )
    return steps


def find_views(config: Any, steps: Sequence[Any], cameras: Mapping[str, str]) -> dict[str, str]:
    """Find the camera of each image that goes into the preprocessor; ValueError for what LIBERO lacks.

    Args:
        steps: of the preprocessor; one that renames observations runs before the policy sees them.
    """
    original = {new: old for step in steps for old, new in getattr(step, "rename_map", {}).items()}
    known = {**CAMERAS, **cameras}
    empty = {f"{IMAGES}.empty_camera_{i}" for i in range(getattr(config, "empty_cameras", 0))}
    resizes = any(getattr(config, name, None) for name in RESIZES)
    views: dict[str, str] = {}
    problems = []
    for name, feature in (config.input_features or {}).items():
        key, shape = original.get(name, name), tuple(feature.shape)
        if feature.type == "VISUAL" and name not in empty:  # lerobot fills those itself
            camera = known.get(key)
            if camera not in CAMERAS.values():
                problems.append(
                    f"{key}: no camera; set '+policy.args.cameras={{{key}: NAME}}', NAME being one of "
                    f"{', '.join(CAMERAS.values())}" + (f", got {camera}" if camera else "")
                )
            elif shape != IMAGE_SHAPE and not (resizes and shape[:1] == IMAGE_SHAPE[:1]):
                problems.append(f"{name} of shape {shape}: images are {IMAGE_SHAPE}, and it does not resize")
            else:
                views[key] = str(camera)
        elif name == STATE and shape != (STATE_DIM,):
            problems.append(f"{STATE} of shape {shape}: LIBERO's is ({STATE_DIM},)")
        elif feature.type != "VISUAL" and name != STATE:
            problems.append(f"{name} ({feature.type.value}): LIBERO gives images and {STATE} only")
    problems += [f"policy.args.cameras: no image feature {key}" for key in cameras if key not in views]
    if problems:
        raise ValueError(f"input_features of the policy do not fit: {'; '.join(problems)}")
    return views


def check_statistics(preprocess: Sequence[Any], postprocess: Sequence[Any]) -> None:
    """Raise ValueError where lerobot would leave numbers as they are for want of their statistics."""
    for steps, is_action in ((preprocess, False), (postprocess, True)):
        for step in steps:
            modes = getattr(step, "norm_map", {})
            for name, feature in getattr(step, "features", {}).items():
                mode = modes.get(feature.type, "IDENTITY")
                if (feature.type == "ACTION") == is_action and mode != "IDENTITY" and name not in step.stats:
                    raise ValueError(
                        f"{PROCESSORS[is_action]} normalises {name} by {mode.value} without its statistics; "
                        "save the policy with its dataset's statistics"
                    )


def check_weights(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise ValueError where the network holds a tensor that is not the file's.

    A tensor that has no name in the file, being tied or renamed, must equal another one of the file.
    """
    wrong = []
    with safe_open(path, framework="pt") as stored:
        shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
        for name, tensor in state.items():
            named = [key for key in (name, name.removeprefix("model.")) if key in shapes]
            keys = named or [key for key, shape in shapes.items() if shape == tuple(tensor.shape)]
            if not any(torch.equal(stored.get_tensor(key).to(tensor), tensor) for key in keys):
                wrong.append(name)
    if wrong:
        raise ValueError(
            f"lerobot did not load {len(wrong)} of the network's {len(state)} tensors from {path}: "
            f"{shorten(wrong)}; its log says why; config.json and the weights must be of one save"
        )
