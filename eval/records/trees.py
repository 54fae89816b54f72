"""Git's ids of the source folders, computed from their files: they name the code without its history.

Non-obvious behaviors:
    * Where git tracks the folders, the files that count are those that it tracks, as they lie on the disk.
      Where it does not, as in a copy without its history, all count but `IGNORED` and whatever is neither a
      file nor a link. Both give the id of the commit's tree if its files were not changed.
    * An id is that of a repository with SHA-1, without filters such as line ends that git converts.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any

from policies.files import IS_CHECKOUT, ROOT

SOURCES = ("conf", "eval", "optim", "policies")
IGNORED = (
    *(".git", "__pycache__", "*.egg-info", ".venv", "outputs", "wandb", "build", ".hypothesis"),
    *(".pytest_cache", ".mypy_cache", ".ruff_cache", "MUJOCO_LOG.TXT", "*.py[co]", "*.so"),
)
"""Names of files and folders that are made, not written: those of .gitignore, and what is compiled."""
_IGNORED = re.compile("|".join(map(translate, IGNORED)), re.DOTALL)
MOST_UNTRACKED = 50  # names that a record holds
COMMAND_TIMEOUT_S = 20
INSTALLED = "installed as a package, no checkout"
FILE, PROGRAM, LINK, FOLDER = b"100644", b"100755", b"120000", b"40000"

Trees = dict[str, str | None]
"""Source folder to the id of its tree; None for one without files."""
_Node = dict[bytes, "tuple[bytes, bytes] | _Node"]


def project_code() -> dict[str, Any]:
    """`code_state` of this project, read once a process; a wheel holds other files and has no trees."""
    if not IS_CHECKOUT:
        return {"git": {"commit": None, "dirty": None, "error": INSTALLED}, "trees": None}
    return _cached_state(ROOT)


def code_state(root: Path) -> dict[str, Any]:
    """Name the code at `root`, in JSON's own types.

    Returns:
        `trees`: `Trees`. `git`: `commit`; `dirty`, whether a tracked file of `SOURCES` is not as in it;
        `untracked`, files there that git neither tracks nor ignores; `error`, why there is none of them.
    """
    try:
        commit = run_tool("git", "-C", str(root), "rev-parse", "HEAD").decode().strip()
        committed = _committed(root)
        tracked, untracked = _listed(root)
        if not tracked and not committed:
            raise OSError(f"the repository around {root} does not track {', '.join(SOURCES)}")
    except OSError as error:
        return {
            "git": {"commit": None, "dirty": None, "error": str(error)},
            "trees": trees(root, _every_file(root)),
        }
    current = trees(root, tracked)
    names = [name.decode(errors="backslashreplace") for name in untracked[:MOST_UNTRACKED]]
    git = {"commit": commit, "dirty": current != committed, "untracked": names, "error": None}
    return {"git": git, "trees": current}


_cached_state = cache(code_state)


def trees(root: Path, names: Iterable[bytes]) -> Trees:
    """Compute the trees of `SOURCES` from the files of these names, which are relative to `root`."""
    top: _Node = {}
    for name in names:
        if (blob := _blob(os.path.join(os.fsencode(root), name))) is not None:
            *folders, last = name.split(b"/")
            node = top
            for folder in folders:
                inner = node.setdefault(folder, {})
                assert isinstance(inner, dict)
                node = inner
            node[last] = blob
    return {name: _tree(top.get(name.encode())) for name in SOURCES}


def is_tree_id(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", text) is not None


def joint_id(ids: Mapping[str, str | None] | None) -> str | None:
    """One id for all source folders: that of a tree which holds them; None where they are not known."""
    if not ids or not all(ids.get(name) for name in SOURCES):
        return None
    entries = (b"%s %s\0%s" % (FOLDER, name.encode(), bytes.fromhex(str(ids[name]))) for name in SOURCES)
    return _object_id(b"tree", b"".join(entries)).hex()


def spell_code(commit: str | None, *, dirty: bool | None, sources: str | None) -> str:
    """Name a run's code for people: its commit, or the `joint_id` of its files where no git was."""
    if commit is None:
        return "commit unknown" if sources is None else f"commit unknown, sources {sources[:12]}"
    return f"commit {commit[:12]}" + (" with uncommitted changes" if dirty else "")


def run_tool(*command: str, given: bytes = b"") -> bytes:
    """Run a program, which reads `given`, and return what it prints; OSError says why there is nothing."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise OSError(reason or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def _listed(root: Path) -> tuple[list[bytes], list[bytes]]:
    """List files that git tracks, then those that it neither tracks nor ignores."""
    command = ("ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard")
    lines = run_tool("git", "-C", str(root), *command, "--", *SOURCES).split(b"\0")[:-1]
    tracked: list[bytes] = []
    untracked: list[bytes] = []
    for line in lines:  # the tag of an untracked file is a question mark
        (untracked if line.startswith(b"? ") else tracked).append(line[2:])
    return tracked, untracked


def _committed(root: Path) -> Trees:
    """The trees of HEAD; empty where it has none of the folders."""
    entries = run_tool("git", "-C", str(root), "ls-tree", "-z", "HEAD", "--", *SOURCES).split(b"\0")[:-1]
    ids = {}
    for entry in entries:
        about, _, name = entry.partition(b"\t")
        ids[name.decode()] = about.split()[2].decode()
    return {name: ids.get(name) for name in SOURCES} if ids else {}


def _every_file(root: Path) -> Iterator[bytes]:
    for source in SOURCES:
        yield from _below(os.path.join(os.fsencode(root), source.encode()), source.encode())


def _below(folder: bytes, name: bytes) -> Iterator[bytes]:
    if not os.path.isdir(folder) or os.path.islink(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _IGNORED.fullmatch(os.fsdecode(entry.name)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, name + b"/" + entry.name)
            else:
                yield name + b"/" + entry.name


def _blob(path: bytes) -> tuple[bytes, bytes] | None:
    """A file's mode and id; None for what git does not keep, and for a tracked file that is gone."""
    try:
        if os.path.islink(path):
            return LINK, _object_id(b"blob", os.readlink(path))
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            program = os.fstat(file.fileno()).st_mode & 0o100
            return PROGRAM if program else FILE, _object_id(b"blob", file.read())
    except FileNotFoundError:
        return None


def _tree(node: "tuple[bytes, bytes] | _Node | None") -> str | None:
    return _tree_id(node).hex() if isinstance(node, dict) else None


def _tree_id(node: _Node) -> bytes:
    entries = []
    for name, child in node.items():
        mode, digest = (FOLDER, _tree_id(child)) if isinstance(child, dict) else child
        # git orders a folder as if its name ended with a slash
        entries.append((name + b"/" if mode == FOLDER else name, b"%s %s\0%s" % (mode, name, digest)))
    return _object_id(b"tree", b"".join(entry for _, entry in sorted(entries)))


def _object_id(kind: bytes, content: bytes) -> bytes:
    """Hash as git does: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content, usedforsecurity=False).digest()
