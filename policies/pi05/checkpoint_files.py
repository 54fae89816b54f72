"""Files of a checkpoint: find folder, weights, statistics and tokenizer, or say what to do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from policies.files import expand_home, read_json_object, real_path
from policies.pi05.checkpoint_config import PICKLES
from policies.pi05.norm_stats import NormStats, read_json_stats, read_lerobot_stats
from policies.pi05.other_folders import ADAPTER_FILES, refuse_adapter, way_out, way_out_without_config
from policies.pi05.weight_files import INDEX, WEIGHTS, weight_paths
from policies.text import shorten

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # SentencePiece's, Hugging Face's
HUB_FILES = [  # all that is read here, or tells what the folder is; "*" goes into folders too
    "config.json",
    WEIGHTS,
    INDEX,
    "model-*.safetensors",
    *ADAPTER_FILES,
    "policy_preprocessor*",
    "policy_postprocessor*",
    "tokenizer*",
]
HUB_TIMEOUT_S = 10.0  # for metadata; the download itself takes what it takes


def find_folder(path: str, layout: str, revision: str | None) -> Path:
    """Find the checkpoint's folder; a hub id (lerobot only) is taken from the cache, else downloaded.

    Raises FileNotFoundError where there is no such folder or hub id, ValueError where `path` is a file.
    """
    folder = expand_home(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"checkpoint.path must be a folder, got the file {path!r}; name the folder that holds it"
        )
    if layout == "lerobot" and HUB_ID.fullmatch(path):
        return _hub_folder(path, revision)
    hub = "; a hub id must be <owner>/<name>" if layout == "lerobot" else f"; layout={layout} takes no hub id"
    raise FileNotFoundError(f"checkpoint.path: no folder {path!r} (looked at {real_path(folder)}){hub}")


def find_weights(folder: Path) -> Path:
    """Find model.safetensors, or the index of its shards.

    Raises ValueError for a folder with both, with only pickles, or with an adapter; else FileNotFoundError,
    which says whose folder it is and what to do.
    """
    refuse_adapter(folder)
    weights, index = folder / WEIGHTS, folder / INDEX
    if weights.is_file() and index.is_file():
        raise ValueError(f"{folder} has {WEIGHTS} and {INDEX}, of two saves; remove the one that is stale")
    for path in (weights, index):
        if path.is_file():
            return path
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise ValueError(
            f"{folder} has no model.safetensors, only pickles: {shorten(pickles)}; "
            "unpickling runs code from the file, so convert them to safetensors where you trust them"
        )
    held = shorten(sorted(path.name for path in folder.iterdir())) or "nothing in it"
    raise FileNotFoundError(f"no {weights}; the folder has {held}; {way_out(folder)}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; FileNotFoundError, or ValueError where it is not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which holds the network's sizes; {way_out_without_config(folder)}"
        )
    return read_json_object(path)


def find_norm_stats(layout: str, folder: Path, explicit: str | None) -> NormStats:
    """Read the statistics of `checkpoint.norm_stats`, or the only ones in the folder.

    Raises FileNotFoundError where there are none, ValueError where there are several.
    """
    pattern, read = _STATS[layout]
    if explicit is not None:
        path = expand_home(explicit)
        if not path.is_file():
            raise FileNotFoundError(
                f"checkpoint.norm_stats: no file {explicit!r} (looked at {real_path(path)})"
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
    """Find the tokenizer: `explicit`, else the one in the folder; SentencePiece's of two beside each other.

    Raises FileNotFoundError if there is none, ValueError if two folders have one.
    """
    if explicit is not None:
        path = expand_home(explicit)
        if path.is_file():
            return path
        if path.is_dir():
            raise ValueError(
                f"checkpoint.tokenizer must be a file, got the folder {explicit!r}; "
                f"name one of {', '.join(TOKENIZERS)} in it"
            )
        raise FileNotFoundError(f"no tokenizer: looked at {real_path(path)}; {_NO_TOKENIZER}")
    places = [folder, folder / "tokenizer"]  # the second is newer lerobot's
    held = [[path for name in TOKENIZERS if (path := place / name).is_file()] for place in places]
    first = [paths[0] for paths in held if paths]
    if len(first) > 1:
        raise ValueError(
            f"{folder} has two tokenizers: {shorten(first)}; set checkpoint.tokenizer to the one that the "
            "weights were trained with"
        )
    if not first:
        names = (str((place / name).relative_to(folder)) for place in places for name in TOKENIZERS)
        raise FileNotFoundError(f"no tokenizer: looked in {folder} for {shorten(names)}; {_NO_TOKENIZER}")
    return first[0]


def _hub_folder(hub_id: str, revision: str | None) -> Path:
    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, local_files_only=True)
        )
        if _is_whole(folder):
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


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache has what every checkpoint of lerobot has; some are downloaded in part."""
    if not all((folder / name).is_file() for name in ("config.json", *PROCESSORS)):
        return False
    if any((folder / name).is_file() for name in ADAPTER_FILES):
        return True  # all that it takes to refuse it
    if (folder / INDEX).is_file():
        try:
            weight_paths(folder / INDEX)
        except FileNotFoundError:
            return False
        return True
    return (folder / WEIGHTS).is_file()


_NO_TOKENIZER = (
    "put PaliGemma's there or set checkpoint.tokenizer to it (tokenizer.model or tokenizer.json of "
    "google/paligemma-3b-pt-224, or openpi's ~/.cache/openpi/big_vision/paligemma_tokenizer.model)"
)
_STATS: dict[str, tuple[str, Callable[[Path], NormStats]]] = {
    "native": ("norm_stats.json", read_json_stats),
    "openpi": ("assets/**/norm_stats.json", read_json_stats),
    "lerobot": ("policy_preprocessor_step_*_normalizer_processor.safetensors", read_lerobot_stats),
}
