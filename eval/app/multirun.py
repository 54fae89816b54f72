"""After `python -m eval -m ...`: its runs side by side, the first the base, and what one runs next."""

import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from eval.analysis.comparison import MARGIN
from eval.analysis.overview import Source, overview
from eval.analysis.sources import without_run
from eval.records.folders import find_folders, is_run
from eval.records.reader import read_run
from eval.render.console import print_error, print_info, report_console
from eval.render.overview import render
from policies.text import shell_command


class ShowRuns(Callback):
    """Hydra calls it when the last job has ended, whatever launcher started them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            sources = read_jobs(folder)
            if sum(source.run is not None and bool(source.run.episodes) for source in sources) > 1:
                report_console().print(render(overview(sources, MARGIN)))
                print_info(f"a page of it: {shell_command('eval.report', shlex.quote(str(folder)))}")
        except (OSError, ValueError) as error:
            print_error(error)


def read_jobs(folder: Path) -> list[Source]:
    """Read the runs of a sweep of Hydra's, in the order of its jobs; what cannot be read has a reason."""
    try:
        folders = find_folders(folder, is_run)
    except FileNotFoundError:  # no job began; each has said why
        return []
    return [_source(path) for path in folders]


def _source(folder: Path) -> Source:
    try:
        return Source(folder, read_run(folder))
    except (OSError, ValueError) as error:
        return without_run(folder, error)
