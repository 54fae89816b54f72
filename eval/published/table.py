"""Our success beside the published one, suite by suite, for a console, as Markdown and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.analysis.statistics import wilson
from eval.analysis.summary import Summary, summarise
from eval.published.targets import OFFICIAL_EPISODES, SUITES, Published, Target
from eval.records.folders import is_run
from eval.records.reader import read_run
from eval.records.sweep import JobRecord
from eval.render.tables import LINE, NONE, Block, Heading, Items, Row, Sentence, Table, percent_interval
from policies.text import pluralize

INTERVAL = "95 % Wilson"
ALL = "all four"


@dataclass(frozen=True)
class Outcome:
    """What came of one suite: a summary, or why there is none."""

    suite: str
    folder: Path
    overrides: tuple[str, ...]
    summary: Summary | None
    problem: str | None


def read_outcomes(folder: Path, records: Sequence[JobRecord]) -> list[Outcome]:
    """Read the runs of a folder, in the order of the published suites."""
    ordered = sorted(records, key=lambda record: SUITES.index(record.folder))
    return [_read_outcome(folder / record.folder, record) for record in ordered]


def to_blocks(target: Target, url: str, outcomes: Sequence[Outcome]) -> Iterator[Block]:
    """Describe the table and what must be known with it."""
    yield Heading(f"{target.name} from {url}")
    yield Table(_columns(target), list(_rows(target, outcomes)))
    yield Sentence(
        "Successes of finished episodes. "
        + "; ".join(f"{other.by}: {other.episodes} episodes a suite" for other in target.published)
        + f". The official protocol has {OFFICIAL_EPISODES}.",
        "dim",
    )
    yield Items(notes(target, outcomes), "yellow")
    yield Items(settings(outcomes))


def to_json_object(target: Target, url: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The same numbers in dicts, lists and scalars."""
    return {
        "target": target.name,
        "source": url,
        "suites": [_suite_object(target, outcome) for outcome in outcomes],
        "notes": notes(target, outcomes),
    }


def notes(target: Target, outcomes: Sequence[Outcome]) -> list[str]:
    """What the table does not say: runs that are missing or shorter, warnings, intervals that lie apart."""
    lines = []
    for outcome in outcomes:
        if outcome.problem is not None:
            lines.append(f"{outcome.suite}: {outcome.problem}")
        if outcome.summary is None:
            continue
        planned = outcome.summary.planned_episodes
        if planned != OFFICIAL_EPISODES:
            number = pluralize(planned or 0, "episode")
            lines.append(f"{outcome.suite}: {number}, not the official {OFFICIAL_EPISODES}: not comparable")
        if outcome.summary.total.errors:
            lines.append(f"{outcome.suite}: {pluralize(outcome.summary.total.errors, 'episode')} raised")
        lines += [f"{outcome.suite}: {warning}" for warning in outcome.summary.warnings]
        lines += [
            f"{outcome.suite}: our interval and that of {other.by} do not overlap"
            for other in target.published
            if planned == OFFICIAL_EPISODES and _lie_apart(outcome.summary, other, outcome.suite)
        ]
    return lines


def settings(outcomes: Sequence[Outcome]) -> list[str]:
    """Policy, device and weights of each run, once where they are equal."""
    lines: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.summary is not None:
            sha256 = outcome.summary.checkpoint_sha256
            parts = (outcome.summary.policy_label, outcome.summary.setting, f"weights SHA-256 {sha256}")
            lines.setdefault("; ".join(part for part in parts if part), []).append(outcome.suite)
    return [f"{', '.join(suites)}: {line}" for line, suites in lines.items()]


def _read_outcome(run: Path, record: JobRecord) -> Outcome:
    summary, problem = None, record.error
    if is_run(run):
        try:
            summary = summarise(read_run(run))
        except (OSError, ValueError) as error:
            problem = str(error)
    elif problem is None:
        problem = "not run yet"
    return Outcome(record.folder, run, record.overrides, summary, problem)


def _columns(target: Target) -> list[str]:
    return ["suite", "here", INTERVAL, *(text for other in target.published for text in (other.by, INTERVAL))]


def _rows(target: Target, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for outcome in outcomes:
        total = outcome.summary.total if outcome.summary else None
        counts = (total.successes, total.finished) if total else (0, 0)
        published = [(other.successes(outcome.suite), other.episodes) for other in target.published]
        yield _row(outcome.suite, counts, published)
    totals = [outcome.summary.total for outcome in outcomes if outcome.summary]
    if len(totals) == len(SUITES):
        yield LINE
        counts = (sum(total.successes for total in totals), sum(total.finished for total in totals))
        yield _row(
            ALL,
            counts,
            [
                (sum(other.successes(suite) for suite in SUITES), other.episodes * len(SUITES))
                for other in target.published
            ],
        )


def _row(name: str, counts: tuple[int, int], published: Sequence[tuple[int, int]]) -> Row:
    successes, finished = counts
    here = f"{successes} / {finished} = {100 * successes / finished:.1f} %" if finished else NONE
    cells = [name, here, _interval(*counts)]
    for number, episodes in published:
        cells += [f"{100 * number / episodes:.1f} %", _interval(number, episodes)]
    return cells


def _interval(successes: int, finished: int) -> str:
    if not finished:
        return NONE
    interval = wilson(successes, finished)
    return percent_interval(interval.low, interval.high)


def _lie_apart(summary: Summary, other: Published, suite: str) -> bool:
    low, high, interval = summary.total.low, summary.total.high, other.interval(suite)
    return low is not None and high is not None and (high < interval.low or interval.high < low)


def _suite_object(target: Target, outcome: Outcome) -> dict[str, Any]:
    published = []
    for other in target.published:
        interval = other.interval(outcome.suite)
        published.append(
            {
                "by": other.by,
                "episodes": other.episodes,
                "rate": other.percent[outcome.suite] / 100,
                "low": interval.low,
                "high": interval.high,
            }
        )
    summary = outcome.summary
    return {
        "suite": outcome.suite,
        "folder": str(outcome.folder),
        "overrides": list(outcome.overrides),
        "problem": outcome.problem,
        "planned_episodes": summary.planned_episodes if summary else None,
        "checkpoint_sha256": summary.checkpoint_sha256 if summary else None,
        "here": summary.to_dict()["total"] if summary else None,
        "published": published,
    }
