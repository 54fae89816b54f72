"""Runs of `python -m eval.published` that are faked."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.published.cli import TABLE_FILES, main
from eval.published.targets import OFFICIAL_EPISODES
from tests.eval.published.conftest import Mirror
from tests.eval.sweep.sweeps import SMALL, parse, recorded_config, recorded_overrides
from tests.eval.written_runs import write_run

LEROBOT, OPENPI = "lerobot_pi05_libero_finetuned", "openpi_pi05_libero"


class Runs:
    """Runs no process: writes a run of the job's suite; some are `broken` or `interrupted`.

    Args:
        failures: of the episodes of each suite.
        differs: overrides of what is evaluated in truth.
    """

    def __init__(
        self,
        broken: str = "none",
        interrupted: str = "none",
        failures: int = 0,
        differs: Sequence[str] = (),
        episodes: int = OFFICIAL_EPISODES,
    ) -> None:
        self.seen: list[dict[str, str]] = []
        self._broken, self._interrupted, self._failures = broken, interrupted, failures
        self._differs, self._episodes = differs, episodes

    def __call__(self, arguments: list[str], log: Path) -> int:
        chosen = parse(arguments)
        self.seen.append(chosen)
        if "resume" in chosen:
            folder = Path(chosen["resume"])
            before = json.loads((folder / "run.json").read_text())
            shutil.rmtree(folder)
            self._write(folder, before["config"], before["overrides"])
            return 0
        suite, folder = chosen["suite"], Path(chosen["hydra.run.dir"])
        if suite == self._broken:
            with log.open("a") as file:
                file.write("error: no memory\n")
            return 1
        config, overrides = recorded_config([*arguments, *self._differs]), recorded_overrides(arguments)
        if suite == self._interrupted:
            run = {"finished": False, "planned_episodes": OFFICIAL_EPISODES, "config": config}
            run["overrides"] = overrides
            write_run(folder, count=20, suite=suite, run=run, checkpoint=config["checkpoint"]["name"])
            raise KeyboardInterrupt
        self._write(folder, config, overrides)
        return 0

    def _write(self, folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        write_run(
            folder,
            count=self._episodes,
            suite=config["suite"]["name"],
            failures=range(self._failures),
            run={"config": config, "overrides": overrides},
            checkpoint=config["checkpoint"]["name"],
        )

    @property
    def suites(self) -> list[str]:
        return [chosen["suite"] for chosen in self.seen]


def published(folder: Path, source: str | Path, *arguments: str, runs: Runs, target: str = LEROBOT) -> int:
    """Run the command on a machine that can run every job."""
    where = ["--folder", str(folder), "--source", str(source), "tracking=none", "runner=local"]
    return main([target, *where, *arguments], runs, lambda jobs, typed: [None] * len(jobs))


def copy(mirror: Mirror) -> str:
    """A copy of lerobot's folder in memory, with files that nobody wants."""
    files = {path.name: path.read_bytes() for path in SMALL.iterdir()}
    return mirror({**files, "README.md": b"#"})


def numbers(folder: Path) -> list[dict[str, object]]:
    suites: list[dict[str, object]] = json.loads((folder / TABLE_FILES[1]).read_text())["suites"]
    return suites
