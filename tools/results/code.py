"""The commit whose source folders a record has, by the ids of their trees."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.records.trees import SOURCES, run_tool

NO_TREES = "not recorded"
NOTE = (
    f"Code: the commit of this repository that has the very files which ran, by the ids of their trees; "
    f"{NO_TREES}: the record is older than these ids, and what it says of its commit is unproven."
)


class Commits:
    """The commits of a repository, up to HEAD."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def code(self, folder: Path, provenance: Mapping[str, Any]) -> str:
        """Name the code of one record: a commit in 12 digits, or `NO_TREES`.

        Raises:
            ValueError: no commit has its trees, or git cannot say.
        """
        trees = provenance.get("trees")
        if trees is None:
            return NO_TREES
        ids = tuple(trees.get(name) for name in SOURCES)
        try:
            commit = self._by_trees.get(ids)
        except OSError as error:
            raise ValueError(f"{folder}: git cannot look for the commit of its trees: {error}") from error
        if commit is None:
            raise ValueError(
                f"{folder}: no commit of this repository has its trees "
                f"({', '.join(f'{name} {str(one)[:12]}' for name, one in trees.items())}); "
                "run it again from a commit, or fetch the history that has it (git fetch --unshallow)"
            )
        return commit[:12]

    @cached_property
    def _by_trees(self) -> dict[tuple[str | None, ...], str]:
        """Trees to the first commit that had them."""
        commits = self._git("rev-list", "--topo-order", "HEAD").split()
        lines = (f"{commit}:{name}" for commit in commits for name in SOURCES)
        answers = iter(self._git("cat-file", "--batch-check", given="\n".join(lines)).splitlines())
        return {tuple(_tree(next(answers)) for _ in SOURCES): commit for commit in commits}

    def _git(self, *arguments: str, given: str = "") -> str:
        return run_tool("git", "-C", str(self._root), *arguments, given=given.encode()).decode()


def origins(run: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Find the provenance of every process that worked on a run, also of parts that were joined."""
    for part in (run, *(run.get("parts") or ())):
        yield part.get("provenance") or {}
        for again in part.get("resumed") or ():
            yield again.get("provenance") or {}


def _tree(answer: str) -> str | None:
    name, kind, *_ = answer.rsplit(" ", 2) if not answer.endswith(" missing") else ("", "")
    return name if kind == "tree" else None
