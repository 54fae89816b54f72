"""Weight files: one safetensors file, or shards with an index, opened as one; their types and their hash."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from policies.files import read_json
from policies.text import brief, listing, pluralize, shorten

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # as huggingface_hub and transformers name it
DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names


@dataclass(frozen=True)
class WeightFiles:
    """The open tensors of one file, or of all shards of an index."""

    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Any]  # by key, the open file that holds it

    def tensor(self, key: str) -> Tensor:
        """Read one tensor to the CPU, in the type in which it is stored."""
        return self.files[key].get_tensor(key)


@contextmanager
def open_weights(path: Path) -> Iterator[WeightFiles]:
    """Open a safetensors file, or all shards of the index `path`, without reading a tensor.

    Raises:
        FileNotFoundError: shards are not there.
        ValueError: a file is not safetensors, an index disagrees with its shards, or tensors are not of
            floating point with 16 bits or more.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    names: dict[str, list[str]] = {}  # by key, of the files that hold it
    with ExitStack() as stack:
        for shard in weight_paths(path):
            try:
                file = stack.enter_context(safe_open(shard, framework="pt"))
                for key in file.keys():  # noqa: SIM118
                    view = file.get_slice(key)
                    shapes[key], dtypes[key] = tuple(view.get_shape()), view.get_dtype()
                    files[key] = file
                    names.setdefault(key, []).append(shard.name)
            except SafetensorError as error:
                raise ValueError(
                    f"{shard} is not a readable safetensors file: {error}; download or convert it again"
                ) from error
        if path.name == INDEX:
            _check_index(path, names)
        _check_dtypes(path, dtypes)
        yield WeightFiles(shapes, files)


def weight_paths(path: Path) -> list[Path]:
    """List the files with the tensors of `path`: itself, or the shards that the index names, by name.

    Raises FileNotFoundError for shards that are not there, ValueError for another kind of index or a shard
    outside of its folder.
    """
    if path.name != INDEX:
        return [path]
    names = sorted(set(_weight_map(path).values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise ValueError(
            f"weight_map in {path} must name *.safetensors files beside it, got "
            f"{shorten(map(repr, outside))}; save the checkpoint again: other folders and kinds are not read"
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {pluralize(len(names), 'shard')}, {len(missing)} of them not there: "
            f"{shorten(missing)}; download or copy the rest of the checkpoint"
        )
    return [path.parent / name for name in names]


def hash_weights(path: Path) -> str:
    """Hash the weights: of one file its SHA-256.

    Of shards it is the SHA-256 of what `sha256sum` prints for the index and then its shards in the order of
    their names: `sha256sum model.safetensors.index.json model-*.safetensors | sha256sum` in their folder.
    """
    if path.name != INDEX:
        return file_sha256(path)
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in (path, *weight_paths(path))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise ValueError(
            f'{path} must be {{"weight_map": {{tensor: shard, ...}}}}, got {brief(index)}; download it again'
        )
    return weight_map


def _check_index(path: Path, names: Mapping[str, list[str]]) -> None:
    """Compare what the index says with the shards; one error lists all that differs."""
    weight_map = _weight_map(path)
    problems = {
        "in no shard": [f"{key}: {name}" for key, name in weight_map.items() if key not in names],
        "in more than one shard": [f"{key}: {', '.join(where)}" for key, where in names.items() if where[1:]],
        "in another shard than the index says": [
            f"{key}: {names[key][0]}, not {name}"
            for key, name in weight_map.items()
            if key in names and name not in names[key]
        ],
        "in a shard but not in the index": [key for key in names if key not in weight_map],
    }
    if any(problems.values()):
        lists = "".join(listing(title, keys) for title, keys in problems.items() if keys)
        raise ValueError(
            f"{path} does not describe its shards; tensors:{lists}\n"
            "the shards are of different saves: download or save the checkpoint again; nothing was loaded"
        )


def _check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    others = [f"{key}: {dtype}" for key, dtype in dtypes.items() if dtype not in DTYPES]
    if others:
        title = f"of a type that is not {', '.join(DTYPES)}"
        raise ValueError(
            f"{path} has tensors that are no weights:{listing(title, others)}\n"
            "quantised numbers mean nothing without their scales: save the weights in BF16 before they are "
            "quantised; nothing was loaded"
        )
