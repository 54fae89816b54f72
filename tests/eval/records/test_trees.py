"""Trees: the ids that git gives the source folders, with git and without, and what makes them differ."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.records.trees import (
    IGNORED,
    SOURCES,
    code_state,
    joint_id,
    project_code,
    run_tool,
    spell_code,
)
from policies.files import ROOT

CONTENT = {
    "conf/config.yaml": "a: 1\n",
    "conf/a.b/inner.yaml": "",  # git orders `a.b`, `a/`, `a0` otherwise than their names
    "conf/a/inner.yaml": "x\n",
    "conf/a0": "y\n",
    "eval/with space.py": "1\n",
    "eval/ünïcode.py": "2\n",
    'eval/quo"te\\.py': "3\n",
    "eval/new\nline.py": "4\n",
    "eval/deep/er/file": "5\n",
    "optim/program": "#!/bin/sh\n",
    "policies/data.bin": "\0\1\2\r\n",
    "README.md": "# Title\n",
}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false")
    return run_tool("git", "-C", str(folder), *identity, *arguments).decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clean clone with odd names, a program, and links to a file, a folder and nothing."""
    root = tmp_path / "repository"
    for name, text in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    (root / os.fsdecode(b"eval/bytes\xff.py")).touch()
    (root / "optim/program").chmod(0o755)
    (root / "conf/link.yaml").symlink_to("config.yaml")
    (root / "policies/link").symlink_to("../eval")
    (root / "policies/dangling").symlink_to("nothing here")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def committed(root: Path) -> dict[str, str | None]:
    return {name: git(root, "rev-parse", f"HEAD:{name}") for name in SOURCES}


def copy(root: Path) -> Path:
    """The files alone, beside the repository."""
    to = root.with_name("copy")
    shutil.copytree(root, to, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return to


def test_a_clean_clone_has_the_trees_of_its_commit(repository: Path) -> None:
    state = code_state(repository)
    assert state["trees"] == committed(repository)
    assert state["git"] == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "dirty": False,
        "untracked": [],
        "error": None,
    }


def test_a_copy_without_its_history_proves_the_commit(repository: Path) -> None:
    state = code_state(copy(repository))
    assert state["trees"] == committed(repository)
    assert (state["git"]["commit"], state["git"]["dirty"]) == (None, None)
    assert "not a git repository" in state["git"]["error"]


def test_what_is_compiled_or_made_in_a_copy_changes_no_tree(repository: Path) -> None:
    root = copy(repository)
    for name in ("eval/__pycache__/a.cpython-311.pyc", "optim/kernel.so", "optim/x.egg-info/PKG-INFO"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "conf/empty").mkdir()
    os.mkfifo(root / "eval/pipe")
    assert code_state(root)["trees"] == committed(repository)


def test_a_copy_inside_another_repository_has_not_that_ones_commit(repository: Path) -> None:
    root = repository / "outputs" / "copy"
    shutil.copytree(copy(repository), root, symlinks=True)
    state = code_state(root)
    assert state["git"]["commit"] is None
    assert "does not track conf, eval, optim, policies" in state["git"]["error"]
    assert state["trees"] == committed(repository)


def test_a_machine_without_git_has_the_trees_and_the_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = committed(repository)
    shutil.rmtree(repository / ".git")
    monkeypatch.setenv("PATH", "")
    state = code_state(repository)
    assert state["trees"] == trees
    assert "git" in state["git"]["error"]


@pytest.mark.parametrize(
    ("change", "folder"),
    [
        (lambda root: (root / "eval/with space.py").write_text("other"), "eval"),
        (lambda root: (root / "conf/config.yaml").unlink(), "conf"),
        (lambda root: (root / "optim/program").chmod(0o644), "optim"),
        (lambda root: (root / "conf/a0").rename(root / "conf/a1"), "conf"),
        (
            lambda root: ((root / "policies/link").unlink(), (root / "policies/link").write_text("../eval")),
            "policies",
        ),
    ],
    ids=["written", "removed", "mode", "renamed", "no link any more"],
)
def test_a_tracked_source_that_differs_is_dirty_and_changes_its_tree_alone(
    repository: Path, change: Callable[[Path], None], folder: str
) -> None:
    change(repository)
    state, before = code_state(repository), committed(repository)
    assert state["git"]["dirty"] is True
    assert [name for name in SOURCES if state["trees"][name] != before[name]] == [folder]


def test_what_is_no_tracked_source_is_not_dirty_but_named(repository: Path) -> None:
    (repository / "README.md").write_text("other")
    (repository / "notes.txt").touch()
    (repository / "eval/mine.py").touch()
    state = code_state(repository)
    assert (state["git"]["dirty"], state["git"]["untracked"]) == (False, ["eval/mine.py"])
    assert state["trees"] == committed(repository)


def test_a_staged_change_is_dirty(repository: Path) -> None:
    (repository / "eval/mine.py").touch()
    git(repository, "add", "eval/mine.py")
    assert code_state(repository)["git"]["dirty"] is True


def test_the_joint_id_is_that_of_a_tree_with_the_four(repository: Path) -> None:
    trees = committed(repository)
    lines = "".join(f"040000 tree {trees[name]}\t{name}\n" for name in SOURCES)
    made = subprocess.run(
        ["git", "-C", str(repository), "mktree"], input=lines, capture_output=True, text=True, check=True
    )
    assert joint_id(trees) == made.stdout.strip()
    assert joint_id({**trees, "optim": None}) is None
    assert joint_id(None) is None


def test_the_code_is_named_by_commit_else_by_sources() -> None:
    assert spell_code("0123456789abcdef", dirty=False, sources="f" * 40) == "commit 0123456789ab"
    assert spell_code("0123", dirty=True, sources=None) == "commit 0123 with uncommitted changes"
    assert spell_code(None, dirty=None, sources="f" * 40) == f"commit unknown, sources {'f' * 12}"
    assert spell_code(None, dirty=None, sources=None) == "commit unknown"


def test_nothing_that_this_project_tracks_is_ignored_in_a_copy() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a copy without its history")
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line}
    assert ignored <= {*IGNORED}
    parts = {part for name in git(ROOT, "ls-files", "--", *SOURCES).splitlines() for part in Path(name).parts}
    assert not [part for part in parts if any(Path(part).match(pattern) for pattern in IGNORED)]


def test_this_projects_code_is_read_once_and_costs_little() -> None:
    first, begin_s = project_code(), time.process_time()
    assert project_code() == first
    assert time.process_time() - begin_s < 0.01
    begin_s = time.process_time()
    code_state(ROOT)
    assert time.process_time() - begin_s < 0.2  # of this process; git's own is apart
