"""Compiled code on disk: what Inductor and Triton made for these sizes, with this code, on this machine.

A folder holds the code of one key and is used by one process at a time: the next waits, and finds it made.
`manifest.json` has the SHA-256 of every file. A folder that differs from it is not used: it is made anew, and
a warning names the file.

Non-obvious behaviors:
    Inductor and Triton ask environment variables where their caches lie. They are set while engines are
    built and put back after. Where the user has set one, both stay as they are and nothing is checked.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from policies.files import OUTPUTS, hold_lock, read_json_object, write_atomic
from policies.pi05.weight_files import file_sha256

FOLDER = OUTPUTS / "compiled"
MANIFEST = "manifest.json"
VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
SOURCES = ("optim", "policies")
COLD, WARM = "cold", "warm"

log = logging.getLogger(__name__)


@contextmanager
def compiled_code(device: torch.device, sizes: Mapping[str, Any]) -> Iterator[str]:
    """Let what is compiled inside come from disk and stay there.

    Args:
        device: for which code is compiled.
        sizes: plain JSON values that decide what is compiled, beside versions, sources and machine.

    Yields where the code came from: cold, warm, or the user's variables.
    """
    if chosen := _users_variables():
        yield ", ".join(f"{name}={value}" for name, value in chosen.items())
        return
    folder = FOLDER.absolute() / _key({**environment_of(device), "sizes": dict(sizes)})
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder, wait=False) as is_free:
        if not is_free:
            log.warning("waiting for another process, which compiles to %s", folder)
    with hold_lock(folder) as is_held:
        if not is_held:
            raise OSError(
                f"{folder} cannot be locked, so two processes could write it at once; set "
                "TORCHINDUCTOR_CACHE_DIR to a folder on a local disk"
            )
        state = _verified(folder)
        with _environment({name: str(folder / part) for name, part in VARIABLES.items()}):
            try:
                yield state
            except Exception:
                _write_manifest(folder)
                raise
            _write_manifest(folder)


def environment_of(device: torch.device) -> dict[str, Any]:
    """Read the versions, the sources and the machine that compiled code depends on."""
    if device.type == "cuda":
        machine = [torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(device)]
    else:
        machine = [platform.machine(), _cpu()]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "sources": _sources_sha256(),
        "machine": machine,
    }


def _users_variables() -> dict[str, str]:
    """Collect the variables that are set; not those that torch sets by itself once it has compiled."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    values = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {name: value for name, value in values.items() if not value.startswith(default_cache_dir())}


def _key(ingredients: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


def _verified(folder: Path) -> str:
    """Compare a folder with its manifest; empty it, with a warning, where they differ."""
    problem = _problem(folder)
    if problem is not None:
        log.warning("compiled code is made anew: %s", problem)
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return WARM if (folder / MANIFEST).exists() else COLD


def _problem(folder: Path) -> str | None:
    here = _files(folder)
    manifest = folder / MANIFEST
    if not manifest.exists():
        return f"{folder} was not finished" if here else None
    try:
        listed = read_json_object(manifest)
    except (OSError, ValueError) as error:
        return str(error)
    for name in sorted(listed.keys() | here.keys()):
        if name not in here:
            return f"{folder / name} is missing"
        if name not in listed:
            return f"{folder / name} is not in {MANIFEST}, as where a process was killed"
        if file_sha256(here[name]) != listed[name]:
            return f"{folder / name} is damaged: its SHA-256 is not {listed[name]!r}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Find the files below a folder, by their paths in it, without the manifest."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {str(path.relative_to(folder)): path for path in paths if path != folder / MANIFEST}


def _write_manifest(folder: Path) -> None:
    hashes = {name: file_sha256(path) for name, path in sorted(_files(folder).items())}
    write_atomic(folder / MANIFEST, json.dumps(hashes, indent=1), durable=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _sources_sha256() -> str:
    root = Path(__file__).parents[2]
    files = sorted(file for package in SOURCES for file in (root / package).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _cpu() -> str:
    """Name the processor with its instructions, for which Inductor compiles."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))]
    return " ".join(named[:2]) or platform.processor()
