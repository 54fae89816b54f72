"""Files of a checkpoint: find folder, weights, statistics and tokenizer, or say what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from policies.pi05.checkpoint_config import PICKLES
from policies.pi05.norm_stats import NormStats, read_json_stats, read_lerobot_stats
from policies.text import shorten

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["config.json", "model.safetensors", "policy_preprocessor*", "tokenizer.model"]
HUB_TIMEOUT_S = 10.0  # for metadata; the download itself takes what it takes


def find_folder(path: str, layout: str, revision: str | None) -> Path:
    """Find the checkpoint's folder; a hub id (lerobot only) is taken from the cache, else downloaded.

    Raises FileNotFoundError where there is no such folder or hub id, ValueError where `path` is a file.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"checkpoint.path must be a folder, got the file {path!r}; name the folder that holds it"
        )
    if layout == "lerobot" and HUB_ID.fullmatch(path):
        return _hub_folder(path, revision)
    hub = "; a hub id must be <owner>/<name>" if layout == "lerobot" else f"; layout={layout} takes no hub id"
    raise FileNotFoundError(f"checkpoint.path: no folder {path!r} (looked at {folder.resolve()}){hub}")


def find_weights(folder: Path) -> Path:
    """Find model.safetensors; ValueError where the folder has only pickles, else FileNotFoundError."""
    weights = folder / "model.safetensors"
    if weights.is_file():
        return weights
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise ValueError(
            f"{folder} has no model.safetensors, only pickles: {shorten(pickles)}; "
            "unpickling runs code from the file, so convert them to safetensors where you trust them"
        )
    hint = "save it as one model.safetensors"
    if (folder / "params").is_dir():
        hint = "it looks like a JAX checkpoint: run openpi's examples/convert_jax_model_to_pytorch.py first"
    held = shorten(sorted(path.name for path in folder.iterdir())) or "nothing in it"
    raise FileNotFoundError(f"no {weights}; the folder has {held}; {hint}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; FileNotFoundError, or ValueError where it is not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which holds the network's sizes; copy it from where the weights came from"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(config).__name__}")
    return config


def find_norm_stats(layout: str, folder: Path, explicit: str | None) -> NormStats:
    """Read the statistics of `checkpoint.norm_stats`, or the only ones in the folder.

    Raises FileNotFoundError where there are none, ValueError where there are several.
    """
    pattern, read = _STATS[layout]
    if explicit is not None:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"checkpoint.norm_stats: no file {explicit!r} (looked at {path.resolve()})"
            )
        return read_lerobot_stats(path) if path.suffix == ".safetensors" else read_json_stats(path)
    matches = sorted(folder.glob(pattern))
    if len(matches) == 1:
        return read(matches[0])
    if not matches:
        raise FileNotFoundError(
            f"no norm stats: looked for {folder / pattern}; without them actions have the wrong scale; "
            "copy them from the training run or set checkpoint.norm_stats to the file"
        )
    raise ValueError(
        f"{len(matches)} norm stats match {folder / pattern}: {shorten(matches)}; "
        "set checkpoint.norm_stats to the one of the training data"
    )


def find_tokenizer(folder: Path, explicit: str | None) -> Path:
    """Find the SentencePiece model, `explicit` or tokenizer.model in the folder; else FileNotFoundError."""
    path = folder / "tokenizer.model" if explicit is None else Path(explicit).expanduser()
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"no tokenizer: looked at {path.resolve()}; put PaliGemma's SentencePiece model there or set "
        "checkpoint.tokenizer to it (tokenizer.model of google/paligemma-3b-pt-224, or openpi's "
        "~/.cache/openpi/big_vision/paligemma_tokenizer.model)"
    )


def _hub_folder(hub_id: str, revision: str | None) -> Path:
    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, local_files_only=True)
        )
        if (folder / "model.safetensors").is_file():
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache: download it
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_S)
        )
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"checkpoint.path: no folder {hub_id!r}, and the hub did not give it: {error}; "
            "check the id, or download it where there is a network (`hf download`) and set "
            "checkpoint.path to the folder"
        ) from error


_STATS: dict[str, tuple[str, Callable[[Path], NormStats]]] = {
    "native": ("norm_stats.json", read_json_stats),
    "openpi": ("assets/**/norm_stats.json", read_json_stats),
    "lerobot": ("policy_preprocessor_step_*_normalizer_processor.safetensors", read_lerobot_stats),
}
