"""Success of all policies: counted from the records of runs, or read off reports where none were kept."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from eval.analysis.statistics import wilson
from eval.analysis.summary import summarise
from eval.records.reader import Run
from eval.render.tables import NONE, Block, Sentence, Table, percent_interval
from tools.results.code import NO_TREES, NOTE, Commits, origins
from tools.results.runs import DATA, REPORTS, Runs

SUCCESS = "success (95 % Wilson)"
COLUMNS = ("policy", "denoise steps", "weights", "suite, protocol", SUCCESS, "machine", "code", "source")


@dataclass(frozen=True)
class Row:
    """Success of one policy in one setting.

    Attributes:
        denoise_steps: None for a policy without a network.
        report, records: from the repository's root; records is None where they were not kept.
        code: the commit that has the run's source folders; several where processes differ.
        errors: episodes that raised, in neither `successes` nor `finished`.
        max_batch: requests that may have been served together; above 1 the actions have other bits.
    """

    policy: str
    denoise_steps: int | None
    weights: str
    protocol: str
    machine: str
    successes: int
    finished: int
    report: str
    records: str | None = None
    code: str = NO_TREES
    errors: int = 0
    max_batch: int = 1

    def cells(self) -> tuple[str, ...]:
        """Cells under `COLUMNS`, but for the denoise steps."""
        links = {"report": self.report, "records": self.records}
        return (
            self.policy + (f", batches of up to {self.max_batch}" if self.max_batch > 1 else ""),
            self.weights,
            self.protocol,
            rate(self.successes, self.finished, self.errors),
            self.machine,
            self.code,
            ", ".join(f"[{name}]({os.path.relpath(to, REPORTS)})" for name, to in links.items() if to),
        )

    def place(self) -> tuple[Any, ...]:
        """Sort key: more episodes first, then by policy, then more denoise steps first."""
        names = (self.policy, self.weights, self.protocol, self.machine)
        return (-self.finished, *names, self.max_batch, -(self.denoise_steps or 0))


def rate(successes: int, finished: int, errors: int) -> str:
    """A cell under `SUCCESS`."""
    interval = wilson(successes, finished)
    text = f"{successes} / {finished} ({percent_interval(interval.low, interval.high)})"
    return f"{text}, errors: {errors}" if errors else text


def success(root: Path, runs: Mapping[str, Runs], commits: Commits) -> list[Block]:
    """Tabulate every committed success; neighbours that differ in their denoise steps alone share a row.

    Raises:
        ValueError: a run's success means nothing, no commit has its code, or a quote is not in its report.
    """
    rows = [
        _recorded(root, folder, run, commits)
        for report_runs in runs.values()
        for folder, run in report_runs.items()
    ]
    for path in sorted((root / DATA).glob("*/reported.json")):
        rows += _reported(root, path)
    table = []
    for (policy, *cells), group in groupby(sorted(rows, key=Row.place), Row.cells):
        steps = [str(row.denoise_steps or NONE) for row in group]
        cells[2] += ", each" if len(steps) > 1 else ""
        table.append((policy, ", ".join(steps), *cells))
    caption = Sentence(f"Success with trained weights. A row without records was read off its report. {NOTE}")
    return [caption, Table(COLUMNS, table, texts=len(COLUMNS))]


def _recorded(root: Path, folder: Path, run: Run, commits: Commits) -> Row:
    summary, about = summarise(run), run.run["policy"]
    if summary.random_weights:
        raise ValueError(f"{folder}: {summary.weights_label}: success means nothing; commit trained weights")
    if problems := [warning for warning in summary.warnings if warning not in run.warnings]:
        raise ValueError(f"{folder}: {'; '.join(problems)}")
    if summary.setting is None:  # no network
        device = run.run["provenance"]["cpu"]["model"]
    else:
        device = f"{about['device']}, {about['dtype']}"
    return Row(
        policy=summary.policy,
        denoise_steps=about.get("denoise_steps"),
        weights=summary.checkpoint or "none",
        protocol=f"{', '.join(summary.suites)}, {run.run['config']['protocol']['name']}",
        machine=f"{device}, {summary.gl_backend}",
        successes=summary.total.successes,
        finished=summary.total.finished,
        report=f"{REPORTS / folder.parents[1].name}.md",
        records=str(folder.parent.relative_to(root)),
        code=", ".join(dict.fromkeys(commits.code(folder, origin) for origin in origins(run.run))),
        errors=summary.total.errors,
        max_batch=max(_max_batch(part.get("runner") or {}) for part in (run.run, *run.run.get("parts", ()))),
    )


def _max_batch(runner: Mapping[str, Any]) -> int:
    """How many requests a runner serves together at most; one that says nothing of it serves 1."""
    return max(runner.get("batch_sizes") or [runner.get("max_batch", 1)])


def _reported(root: Path, path: Path) -> Iterator[Row]:
    for figure in json.loads(path.read_bytes()):
        quote, report = figure.pop("quote"), root / figure["report"]
        if quote not in " ".join(report.read_text(encoding="utf-8").split()):
            raise ValueError(f"{path}: quote {quote!r} is not in {figure['report']}")
        yield Row(**figure)
