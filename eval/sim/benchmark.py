"""Which benchmark is simulated: LIBERO's files, as the installed package brings them, and their hashes.

Non-obvious behaviors:
    * LIBERO reads its paths from a YAML file of the user's, which another LIBERO may have left: other initial
      states would be evaluated under the same name. Paths outside of the package are refused.
    * The assets have 650 MB. Their hash is kept in the user's cache folder under the names, sizes and times
      of the files; a second is spent again where one of them changes, or the folder cannot be written.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from eval.sim.registry import registered, words_files
from eval.sim.stack import SimulatorError, prepare, quiet
from eval.sim.suites import SuiteName
from policies.files import read_json_object, write_atomic

PARTS = {"bddl_files": "task definitions", "init_states": "initial states", "assets": "assets"}
HASHES = ("bddl_sha256", "init_states_sha256", "assets_sha256")  # in run.json, below `simulator`
CACHE_FILE = "libero-vla-eval/assets.json"


def prepare_suite(suite: str, gpu_index: int = 0) -> dict[str, str]:
    """Make the simulator ready, as `prepare` does; return with its facts the hashes of the suite's files."""
    return prepare(gpu_index) | identity(suite)


def libero_paths() -> Mapping[str, Path]:
    """Where the package has the folders of `PARTS`.

    Raises SimulatorError where the user's path file leads elsewhere or cannot be read, or LIBERO cannot be
    imported for want of a home folder.
    """
    with quiet():
        try:
            from libero.libero import get_default_path_dict, get_libero_path, libero_config_path
        except RuntimeError as error:
            raise SimulatorError(f"LIBERO looks for its path file: {error}; set HOME to a folder") from error
    named = os.environ.get("LIBERO_CONFIG_PATH")
    file = Path(named or libero_config_path).expanduser() / "config.yaml"
    way_out = "unset LIBERO_CONFIG_PATH" if named else f"remove {file}"
    own = {part: Path(path).resolve() for part, path in get_default_path_dict().items() if part in PARTS}
    try:
        used = {part: Path(get_libero_path(part)).resolve() for part in PARTS}
    except Exception as error:
        if isinstance(error, PermissionError) and not named:  # another user's home, as sudo -u leaves it
            way_out = "set HOME to a folder of this user's"
        raise SimulatorError(f"{file}, LIBERO's path file, cannot be read: {error}; {way_out}") from error
    for part, name in PARTS.items():
        if used[part] != own[part]:
            raise SimulatorError(
                f"{file} sends LIBERO to other {name} than those of the installed package "
                f"({part}: {used[part]}), so another benchmark would be evaluated; {way_out}"
            )
    return own


def identity(suite: str) -> dict[str, str]:
    """Hash what a suite is made of, under the names of `HASHES`: all of its tasks, and LIBERO's assets."""
    paths, name = libero_paths(), SuiteName.parse(suite)
    tasks = registered(name.files, paths)
    bddl = [task.bddl for task in tasks]
    if name.is_plus and name.has_own_words:
        bddl += words_files(suite, paths)
    states = [task.states for task in tasks]
    hashes = _hash(bddl), _hash(states), assets_hash(paths["assets"], cache_folder())
    return dict(zip(HASHES, hashes, strict=True))


def cache_folder() -> Path | None:
    """The user's cache folder, `$XDG_CACHE_HOME` or ~/.cache; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named and Path(named).is_absolute():
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def assets_hash(folder: Path, cache: Path | None) -> str:
    """Hash the names and contents of all files below `folder`; read it from `cache` while they stay alike."""
    files = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    stamp = hashlib.sha256(str(folder).encode())
    for path in files:
        status = path.stat()
        stamp.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    key = stamp.hexdigest()
    file = cache / CACHE_FILE if cache else None
    if file is not None:
        with contextlib.suppress(OSError, ValueError):  # none yet, or damaged: hashed again
            kept = read_json_object(file).get(key)
            if isinstance(kept, str) and len(kept) == len(key):
                return kept
    sha256 = _hash(files, folder)
    if file is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, f'{{"{key}": "{sha256}"}}\n')
    return sha256


def _hash(files: Iterable[Path], folder: Path | None = None) -> str:
    """Hash files with their names, relative to `folder` where there is one."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder) if folder else path.name
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
