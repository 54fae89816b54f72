"""Our success beside the published one, suite by suite, for a console, as Markdown and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.analysis.statistics import wilson
from eval.analysis.summary import Summary, summarise
from eval.app.jobs.typed import Typed
from eval.published.runs import refuse_foreign
from eval.published.targets import OFFICIAL_EPISODES, OTHER_SIZES, SUITES, Published, Target
from eval.records.folders import RUN_FILE, is_run
from eval.records.reader import Run, read_run
from eval.records.resume import refuse_changed
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

    @property
    def gap(self) -> str | None:
        """What is missing of the official episodes, without which there is no comparison; None if nothing."""
        if self.summary is None:
            return self.problem
        planned, finished = self.summary.planned_episodes, self.summary.total.finished
        if planned != OFFICIAL_EPISODES:
            return f"{pluralize(planned or 0, 'episode')} planned, not the official {OFFICIAL_EPISODES}"
        if finished != OFFICIAL_EPISODES:
            return f"{finished} of the official {OFFICIAL_EPISODES} episodes finished"
        return None

    @property
    def setting(self) -> str:
        """Policy, device and weights, with which suites are summed."""
        if self.summary is None:
            return ""
        weights = f"weights SHA-256 {self.summary.checkpoint_sha256}"
        parts = (self.summary.policy_label, self.summary.setting, weights)
        return "; ".join(part for part in parts if part)


def read_outcomes(target: Target, folder: Path, records: Sequence[JobRecord], typed: Typed) -> list[Outcome]:
    """Read the runs of a folder, in the order of the published suites."""
    ordered = sorted(records, key=lambda record: SUITES.index(record.folder))
    return [_read_outcome(target, folder / record.folder, record, typed) for record in ordered]


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
    yield Items(notes(target, url, outcomes), "yellow")
    yield Items(settings(outcomes))


def to_json_object(target: Target, url: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The same numbers in dicts, lists and scalars."""
    return {
        "target": target.name,
        "source": url,
        "suites": [_suite_object(target, outcome) for outcome in outcomes],
        "notes": notes(target, url, outcomes),
    }


def notes(target: Target, url: str, outcomes: Sequence[Outcome]) -> list[str]:
    """What the table does not say: episodes that are missing, warnings, intervals that lie apart."""
    lines = []
    if url != target.url:
        lines.append(f"the weights are from {url}, a copy: nobody compared it with {target.url}")
    if any(OTHER_SIZES in outcome.overrides for outcome in outcomes):
        lines.append("the network has other sizes than the published one")
    for outcome in outcomes:
        if outcome.problem is not None:
            lines.append(f"{outcome.suite}: {outcome.problem}")
        if outcome.summary is None:
            continue
        if outcome.gap is not None:
            lines.append(f"{outcome.suite}: no comparison: {outcome.gap}")
        if outcome.summary.total.errors:
            lines.append(f"{outcome.suite}: {pluralize(outcome.summary.total.errors, 'episode')} raised")
        lines += [f"{outcome.suite}: {warning}" for warning in outcome.summary.warnings]
        lines += [
            f"{outcome.suite}: our interval and that of {other.by} do not overlap"
            for other in target.published
            if outcome.gap is None and _lie_apart(outcome.summary, other, outcome.suite)
        ]
    if (gap := _gap_of_sum(outcomes)) is not None:
        lines.append(f"{ALL}: no sum: {gap}")
    return lines


def settings(outcomes: Sequence[Outcome]) -> list[str]:
    """Policy, device and weights of each run, once where they are equal."""
    lines: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.summary is not None:
            lines.setdefault(outcome.setting, []).append(outcome.suite)
    return [f"{', '.join(suites)}: {line}" for line, suites in lines.items()]


def _gap_of_sum(outcomes: Sequence[Outcome]) -> str | None:
    """Why the suites are not summed; None where they are."""
    complete = {outcome.suite for outcome in outcomes if outcome.gap is None}
    if missing := [suite for suite in SUITES if suite not in complete]:
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or not complete"
    if len({outcome.setting for outcome in outcomes}) > 1:
        return "the suites ran with different policies, devices or weights"
    return None


def _read_outcome(target: Target, folder: Path, record: JobRecord, typed: Typed) -> Outcome:
    """Read a run; it has no summary where it is not what was asked for."""
    summary, problem = None, record.error
    if is_run(folder):
        try:
            run = read_run(folder)
            _refuse_other(target, folder, record, run, typed)
            summary = summarise(run)
        except (OSError, ValueError) as error:
            problem = str(error)
    elif problem is None:
        problem = "not run yet"
    return Outcome(record.folder, folder, record.overrides, summary, problem)


def _refuse_other(target: Target, folder: Path, record: JobRecord, run: Run, typed: Typed) -> None:
    """Raise ValueError for a run of another suite, checkpoint or protocol than was asked for."""
    refuse_foreign(target, record)
    if "config" not in run.run:
        raise ValueError(f"{folder} does not say what it evaluated: {RUN_FILE} has no configuration")
    config = typed.configure(record.overrides)
    refuse_changed(folder, run.run, {"config": asdict(config)})
    wanted = (record.folder, config.checkpoint.name)
    for episode in run.episodes:
        if (episode.suite, episode.checkpoint) != wanted:
            raise ValueError(
                f"{folder} holds {episode.key} of checkpoint {episode.checkpoint}; "
                f"{record.folder} of {config.checkpoint.name} was asked for"
            )


def _columns(target: Target) -> list[str]:
    return ["suite", "here", INTERVAL, *(text for other in target.published for text in (other.by, INTERVAL))]


def _rows(target: Target, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for outcome in outcomes:
        published = [(other.successes(outcome.suite), other.episodes) for other in target.published]
        yield _row(outcome.suite, _cells(outcome), published)
    if _gap_of_sum(outcomes) is None:
        totals = [outcome.summary.total for outcome in outcomes if outcome.summary]
        yield LINE
        yield _row(
            ALL,
            _rate(sum(total.successes for total in totals), sum(total.finished for total in totals)),
            [
                (sum(other.successes(suite) for suite in SUITES), other.episodes * len(SUITES))
                for other in target.published
            ],
        )


def _row(name: str, here: list[str], published: Sequence[tuple[int, int]]) -> Row:
    cells = [name, *here]
    for number, episodes in published:
        cells += [f"{100 * number / episodes:.1f} %", _interval(number, episodes)]
    return cells


def _cells(outcome: Outcome) -> list[str]:
    """Our success; a count alone where episodes are missing, which may be the hard ones."""
    if outcome.summary is None or not outcome.summary.total.finished:
        return [NONE, NONE]
    total = outcome.summary.total
    if outcome.gap is not None:
        return [f"{total.successes} / {total.finished}, not complete", NONE]
    return _rate(total.successes, total.finished)


def _rate(successes: int, finished: int) -> list[str]:
    return [
        f"{successes} / {finished} = {100 * successes / finished:.1f} %",
        _interval(successes, finished),
    ]


def _interval(successes: int, finished: int) -> str:
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
        "no_comparison": outcome.gap,
        "planned_episodes": summary.planned_episodes if summary else None,
        "checkpoint_sha256": summary.checkpoint_sha256 if summary else None,
        "here": summary.to_dict()["total"] if summary else None,
        "published": published,
    }
