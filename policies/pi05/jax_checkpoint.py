"""Arrays of an orbax checkpoint in a local folder, read with tensorstore alone: no JAX, no orbax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.files import read_json_object, real_path
from policies.pi05.weight_files import file_sha256
from policies.text import shorten

MANIFEST = "manifest.ocdbt"  # of a store that keeps all arrays in one tree of keys (OCDBT)
METADATA = "_METADATA"  # orbax's own description of the tree
DRIVERS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}  # file that describes an array -> its format
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # what openpi's trainer writes
ROOT_KEY = "params."  # openpi saves {"params": tree}
NNX_LEAF = "/value"  # the trainer saves flax's nnx state, where each array lies under `value`
NEEDED = 'reading a JAX checkpoint needs tensorstore: pip install -c constraints.txt -e ".[jax]"'


@dataclass(frozen=True)
class JaxArray:
    """One stored array. `read` takes it from the disk whole, in its stored precision."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def params_folder(folder: Path) -> Path | None:
    """Find the store of a step folder (`params` in it) or of a `params` folder; None for other folders."""
    for candidate in (folder / "params", folder):
        if (candidate / MANIFEST).is_file() or (candidate / METADATA).is_file():
            return candidate
    return None


def find_params(source: Path) -> Path:
    """Find the store as `params_folder` does.

    Raises FileNotFoundError for anything else, with the newest step where `source` holds steps.
    """
    if not source.is_dir():
        raise FileNotFoundError(
            f"SRC: no folder {str(source)!r} (looked at {real_path(source)}); it must be on this machine: "
            "fetch a gs:// checkpoint first"
        )
    if params := params_folder(source):
        return params
    steps = [path for path in source.iterdir() if path.name.isdecimal() and params_folder(path)]
    if steps:
        newest = max(steps, key=lambda path: int(path.name))
        raise FileNotFoundError(f"SRC must be one step's folder, {source} holds {len(steps)}; give {newest}")
    held = shorten(sorted(path.name for path in source.iterdir())) or "nothing in it"
    raise FileNotFoundError(
        f"SRC must be a step's folder with params/, or params/ itself (with {MANIFEST} or {METADATA}); "
        f"{source} has {held}"
    )


def source_hashes(params: Path) -> dict[str, str]:
    """SHA-256 of the store's own small files; a manifest names all data that belongs to it."""
    files = [params / name for name in (MANIFEST, METADATA) if (params / name).is_file()]
    return {path.name: file_sha256(path) for path in files}


def open_arrays(params: Path) -> dict[str, JaxArray]:
    """List all arrays by their path in openpi's tree (`PaliGemma/img/head/kernel`); no data is read yet.

    Non-obvious behaviors:
        Where orbax wrote every chunk, a chunk that is absent is an error. An older orbax left out chunks of
        zeros; from an OCDBT store, which is committed as a whole, they are read as zeros, as orbax does.

    Raises:
        ModuleNotFoundError: the extra `jax` is not installed.
        ValueError: the store is damaged, or holds something that is no array of openpi's parameters.
    """
    try:
        import tensorstore
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(NEEDED) from missing

    folder = {"driver": "file", "path": f"{params.resolve()}/"}
    metadata = _metadata(params)
    is_ocdbt = (params / MANIFEST).is_file()
    if metadata.get("use_ocdbt") and not is_ocdbt:
        raise ValueError(
            f"{params} has lost its {MANIFEST}, which {METADATA} says it has; copy the checkpoint again"
        )
    store = {"driver": "ocdbt", "base": folder, "path": ""} if is_ocdbt else folder
    zeros_left_out = is_ocdbt and metadata.get("store_array_data_equal_to_fill_value") is not True
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})

    def list_keys() -> list[bytes]:
        return tensorstore.KvStore.open(store, context=context).result().list().result()

    def open_array(name: str, driver: str) -> Any:
        spec = {
            "driver": driver,
            "kvstore": {**store, "path": f"{store['path']}{name}/"},
            "fill_missing_data_reads": zeros_left_out,
        }
        return tensorstore.open(spec, open=True, context=context).result()

    arrays = {}
    for key in sorted(key.decode() for key in _ask(params, "its list of arrays", list_keys)):
        for described_by, driver in DRIVERS.items():
            if key.endswith(described_by):
                name = key.removesuffix(described_by)
                array = _ask(params, name, partial(open_array, name, driver))
                arrays[name] = _jax_array(params, name, array)
    return _by_path(arrays, params)


def _metadata(params: Path) -> dict[str, Any]:
    """Read orbax's description of the tree; there may be none."""
    path = params / METADATA
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; {METADATA} is orbax's description of a tree: copy it again") from error


def _jax_array(params: Path, name: str, array: Any) -> JaxArray:
    dtype = DTYPES.get(array.dtype.name)
    if dtype is None:
        raise ValueError(
            f"{name} must be one of {', '.join(DTYPES)}, got {array.dtype.name} in {params}; "
            "only weights as openpi saves them can be converted"
        )

    def read() -> Tensor:
        numbers = _ask(params, name, lambda: array.read().result())
        if dtype == torch.bfloat16:  # NumPy's bfloat16 is ml_dtypes', which torch does not know
            return torch.from_numpy(numbers.view("uint16")).view(torch.bfloat16)
        return torch.from_numpy(numbers)

    return JaxArray(tuple(array.shape), dtype, read)


def _by_path(arrays: Mapping[str, JaxArray], params: Path) -> dict[str, JaxArray]:
    """Name arrays by their path below `params`, without the `value` that nnx adds to every one."""
    if strangers := [name for name in arrays if not name.startswith(ROOT_KEY)]:
        raise ValueError(
            f"{params} holds arrays outside of `params`: {shorten(strangers)}; "
            "give the folder with a policy's parameters, not its optimizer's state"
        )
    paths = {name.removeprefix(ROOT_KEY).replace(".", "/"): array for name, array in arrays.items()}
    if all(path.endswith(NNX_LEAF) for path in paths):
        return {path.removesuffix(NNX_LEAF): array for path, array in paths.items()}
    return paths


def _ask(params: Path, name: str, question: Callable[[], Any]) -> Any:
    """Ask tensorstore; its errors name the array and the way out."""
    try:
        return question()
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{params}: cannot read {name}: {error}; copy the checkpoint again") from error
