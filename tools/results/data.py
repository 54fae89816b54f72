"""Where committed results lie, and errors that name their file and key.

A folder below `docs/results/data` has the name of its report, `docs/results/<name>.md`, and holds any of

    bench.json                       what `optim.bench` recorded
    runs/NAME/.../run.json           one run, or parts of one (other tasks or episodes), each in a folder of
    runs/NAME/.../episodes.jsonl     its own
    runs/NAME/inferences.jsonl       may be left out; a run of parts has none
    reported.json                    figures whose records were not kept, each with a quote of its report
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPORTS = Path("docs", "results")
DATA = REPORTS / "data"


def read_json(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        ValueError: it cannot be read.
    """
    with naming(path):
        return json.loads(path.read_bytes())


def report_of(root: Path, folder: Path) -> str:
    """Return the report of a folder of data, as a path from the root.

    Raises:
        ValueError: there is none.
    """
    report = REPORTS / f"{folder.name}.md"
    if not (root / report).is_file():
        raise ValueError(f"{folder} has no report; write {report}")
    return report.as_posix()


def data_folders(root: Path) -> list[Path]:
    """Return the folders of data, by name."""
    return [path for path in sorted((root / DATA).iterdir()) if path.is_dir()]


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of a data folder's runs, by name."""
    return [path for path in sorted(folder.glob("runs/*")) if path.is_dir()]


@contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Turn what is missing or malformed into a ValueError that names the file and the key."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{where}: the key {error} is missing") from error
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
