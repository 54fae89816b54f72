"""Committed successes: counted from records of runs, or read off reports where records were not kept."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.analysis.summary import summarise
from eval.records.engagement import join
from eval.records.folders import EPISODES_FILE, RUN_FILE
from eval.records.reader import Run
from eval.records.resume import FREE, WHICH_EPISODES, refuse_changed
from eval.records.schema import EpisodeRecord
from tools.results.data import DATA, data_folders, naming, read_json, report_of, run_folders


@dataclass(frozen=True)
class Outcome:
    """Success of one policy in one setting.

    Attributes:
        denoise_steps: None for a policy without a network.
        report, records: paths from the repository's root; records is None where they were not kept.
        errors: episodes that raised, in neither `successes` nor `finished`.
        max_batch: requests that may have been served together; above 1 the actions have other bits.
        infer_p50_ms, infer_n: host to host in the same run; None where the run was not alone on its machine.
    """

    policy: str
    denoise_steps: int | None
    weights: str
    suite: str
    protocol: str
    machine: str
    successes: int
    finished: int
    report: str
    records: str | None = None
    errors: int = 0
    max_batch: int = 1
    infer_p50_ms: float | None = None
    infer_n: int | None = None

    def __post_init__(self) -> None:
        for name in ("successes", "finished"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if not 0 <= self.successes <= self.finished or self.finished == 0:
            raise ValueError(
                f"successes must be 0 to finished, and finished at least 1, "
                f"got {self.successes} of {self.finished}"
            )


def read_outcomes(root: Path) -> list[Outcome]:
    """Return every committed success: more episodes first, then by policy, then more denoise steps first.

    Raises:
        ValueError: naming file and key, where something is missing, malformed, or means nothing.
    """
    found = [_recorded(root, run) for folder in data_folders(root) for run in run_folders(folder)]
    for path in sorted((root / DATA).glob("*/reported.json")):
        found += _reported(root, path)
    return sorted(
        found,
        key=lambda of: (
            -of.finished,
            of.policy,
            of.weights,
            of.suite,
            of.protocol,
            of.machine,
            of.max_batch,
            -(of.denoise_steps or 0),
        ),
    )


def read_parts(folder: Path) -> Run:
    """Return a run of which `run.json` and `episodes.jsonl` are kept, in a folder or in parts below it.

    What `eval.merge` demands of parts is demanded here, but for two things that the first runs do not have:
    they need not say which episodes were planned, nor hold their inferences. So there are no latencies.

    Raises:
        ValueError: a file is missing or malformed, or the parts are not of one run.
    """
    parts = [path.parent for path in sorted(folder.rglob(RUN_FILE))]
    if not parts:
        raise ValueError(f"{folder} holds no run: no {RUN_FILE} in it or below it")
    runs: list[dict[str, Any]] = [read_json(part / RUN_FILE) for part in parts]
    for part, run in zip(parts, runs, strict=True):
        with naming(part / RUN_FILE):
            refuse_changed(part.name, runs[0], run, (*FREE, *WHICH_EPISODES))
    episodes = [episode for part in parts for episode in _episodes(part / EPISODES_FILE)]
    for key, count in Counter(episode.key for episode in episodes).items():
        if count > 1:
            raise ValueError(f"{folder}: {key} is recorded {count} times; keep one record of an episode")
    with naming(folder / f"*/{RUN_FILE}"):
        whole = {
            **runs[0],
            "planned_episodes": sum(run["planned_episodes"] for run in runs),
            "engagement": join(run["engagement"] for run in runs),
        }
        if len(parts) > 1:
            whole["parts"] = [
                {"folder": part.name, "overrides": run["overrides"], "runner": run.get("runner")}
                for part, run in zip(parts, runs, strict=True)
            ]
    return Run(whole, tuple(episodes), ())


def _recorded(root: Path, folder: Path) -> Outcome:
    run = read_parts(folder)
    with naming(folder):
        summary = summarise(run)
        if summary.random_weights:
            raise ValueError(
                f"{summary.weights_label}: success means nothing; commit runs of trained weights"
            )
        if summary.warnings:
            raise ValueError("; ".join(summary.warnings))
        about = run.run["policy"]
        if summary.setting is None:  # no network
            steps, machine = None, run.run["provenance"]["cpu"]["model"]
        else:
            steps, machine = about["denoise_steps"], f"{about['device']}, {about['dtype']}"
        return Outcome(
            policy=summary.policy,
            denoise_steps=steps,
            weights=summary.checkpoint or "none",
            suite=", ".join(summary.suites),
            protocol=run.run["config"]["protocol"]["name"],
            machine=f"{machine}, {summary.gl_backend}",
            successes=summary.total.successes,
            finished=summary.total.finished,
            report=report_of(root, folder.parents[1]),
            records=folder.parent.relative_to(root).as_posix(),
            errors=summary.total.errors,
            max_batch=max(_max_batch(of.get("runner")) for of in (run.run, *run.run.get("parts", ()))),
        )


def _max_batch(runner: Mapping[str, Any] | None) -> int:
    """Return how many requests a runner serves together at most; one that says nothing of it serves 1."""
    runner = runner or {}
    return max(runner.get("batch_sizes") or [runner.get("max_batch", 1)])


def _reported(root: Path, path: Path) -> Iterator[Outcome]:
    for number, row in enumerate(read_json(path), 1):
        with naming(f"{path}, figure {number}"):
            quote = row["quote"]
            outcome = Outcome(**{key: value for key, value in row.items() if key != "quote"})
            if quote not in " ".join((root / outcome.report).read_text(encoding="utf-8").split()):
                raise ValueError(f"quote {quote!r} is not in {outcome.report}")
            for figure in (outcome.successes, outcome.finished, outcome.infer_p50_ms, outcome.infer_n):
                if figure is not None and f"{figure:g}" not in re.findall(r"\d+(?:\.\d+)?", quote):
                    raise ValueError(f"{figure:g} is not in the quote {quote!r}")
            yield outcome


def _episodes(path: Path) -> Iterator[EpisodeRecord]:
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        with naming(f"{path}:{number}"):
            yield EpisodeRecord(**json.loads(line))
