"""Runs side by side for readers: one table and what it says, on the console and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from eval.analysis.latency import ENOUGH_EPISODES, ENOUGH_FOR
from eval.analysis.overview import Entry, Overview
from eval.render import arms
from eval.render.tables import (
    NONE,
    Block,
    Heading,
    Items,
    Sentence,
    Table,
    banner,
    percent_interval,
    to_console,
    to_markdown,
)
from policies.text import pluralize

ON_FRONT = "*"
COLUMNS = ("#", "run", "success", "95 % Wilson", "n", "p50 ms", "p95 ms", "Hz", "faster", "verdict")
TEXTS = 2
LEGEND = (
    "Latency is observation to action, batch 1; left out are warm-up inferences and those that other "
    f"episodes ran beside. Faster and verdict are against run 1, by the median; faster takes "
    f"{ENOUGH_EPISODES} quiet episodes of each. {ON_FRONT}: on the Pareto "
    "front, no run is at least as fast and as successful and better in one, by the numbers shown; their "
    "intervals may overlap."
)


def render(overview: Overview) -> RenderableType:
    """For a console, with the headline last."""
    return to_console(
        [
            *map(banner, random_weights(overview)),
            *_blocks(overview),
            Sentence(""),
            Items(headline(overview), strong=True),
        ]
    )


def markdown(overview: Overview, title: str) -> str:
    """With the headline first."""
    return to_markdown([Heading(title), Items(headline(overview)), *_blocks(overview)])


def _blocks(overview: Overview) -> Iterator[Block]:
    caption = f"Runs side by side (verdict at a margin of {_margin(overview)} of success)"
    yield Table(COLUMNS, rows(overview), caption, TEXTS)
    yield Sentence(LEGEND, "dim")
    if overview.arms:
        yield Table(arms.COLUMNS, list(arms.rows(overview)), arms.CAPTION, arms.TEXTS)
        yield Sentence(arms.LEGEND, "dim")
    yield Items(notes(overview), "yellow")


def rows(overview: Overview) -> list[tuple[str, ...]]:
    """The cells under `COLUMNS`."""
    return [_row(entry) for entry in overview.entries]


def notes(overview: Overview) -> list[str]:
    """What the table does not say but must be known, run by run."""
    lines = []
    for entry in overview.entries:
        problems = [*entry.flags, *entry.problems]
        if entry.not_comparable is not None:
            problems.append(f"not comparable: {entry.not_comparable}")
        lines += [f"{entry.number} {entry.label}: {problem}" for problem in problems]
    return lines + [f"{folder}: no numbers: {reason}" for folder, reason in overview.missing]


def random_weights(overview: Overview) -> list[str]:
    """The labels of weights that nobody trained, each once."""
    summaries = [entry.summary for entry in overview.entries]
    return sorted({str(summary.weights_label) for summary in summaries if summary.random_weights})


def headline(overview: Overview) -> list[str]:
    """What the runs say in a few sentences."""
    base, *others = overview.entries
    lines = [_first_line(base)]
    if overview.first_is_missing:
        reason = overview.missing[0][1]
        lines.insert(0, f"The first run has no numbers ({reason}); run 1 is the next that has some")
    if not others:
        return lines
    lines.append(_best_line(overview, others))
    margin = _margin(overview)
    if inferior := [entry.label for entry in others if entry.verdict == "inferior"]:
        lines.append(f"Shown to lose more than {margin}: {', '.join(inferior)}")
    return lines


def _first_line(base: Entry) -> str:
    line = f"{base.label}: {_success(base)}"
    if base.latency is None or base.summary.quiet_episodes < ENOUGH_EPISODES:
        return line
    return (
        f"{line}; {base.latency.p50_ms:.1f} ms from observation to action "
        f"(median, n = {base.latency.n}; {base.latency.hz:.1f} Hz by the mean)"
    )


def _best_line(overview: Overview, others: Sequence[Entry]) -> str:
    """Say which of the others is the fastest that may take the first run's place, or why none may."""
    margin = _margin(overview)
    passed = [entry for entry in others if entry.comparison is not None and entry.comparison.passed]
    timed = [entry for entry in passed if entry.speed_up is not None and entry.latency is not None]
    if timed:
        best = max(timed, key=lambda entry: entry.speed_up or 0.0)
        assert best.latency is not None
        return (
            f"Fastest of those shown to lose less than {margin} of success: {best.label}, "
            f"{best.latency.p50_ms:.1f} ms (n = {best.latency.n}; {best.speed_up:.2f}x), {_success(best)}"
        )
    if passed:
        return f"Shown to lose less than {margin} of success: {', '.join(entry.label for entry in passed)}"
    line = f"No run is shown to lose less than {margin} of success against {overview.entries[0].label}"
    compared = [entry.comparison for entry in others if entry.comparison is not None]
    if compared and all(result.counts.n < result.episodes_needed for result in compared):
        most = max(compared, key=lambda result: result.counts.n)
        line += (
            f": {pluralize(most.counts.n, 'pair')} could show {most.smallest_margin * 100:.1f} points at "
            f"best, {margin} would take {most.episodes_needed}"
        )
    return line


def _success(entry: Entry) -> str:
    total = entry.summary.total
    if total.rate is None:
        return "no episode finished"
    text = (
        f"{total.successes} of {pluralize(total.finished, 'episode')} succeeded "
        f"(95 % interval {percent_interval(total.low, total.high)})"
    )
    return f"{text}, but with {entry.summary.weights_label}" if entry.summary.random_weights else text


def _margin(overview: Overview) -> str:
    return pluralize(f"{overview.margin:g}", "point")


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        f"{entry.number}{ON_FRONT}" if entry.on_front else str(entry.number),
        entry.label,
        *success_cells(entry),
        *latency_cells(entry),
        NONE if entry.speed_up is None else f"{entry.speed_up:.2f}x",
        NONE if entry.not_comparable else entry.verdict,
    )


def success_cells(entry: Entry) -> tuple[str, str]:
    """Successes of finished episodes, and the interval of the rate."""
    total = entry.summary.total
    return f"{total.successes} / {total.finished}", percent_interval(total.low, total.high)


def latency_cells(entry: Entry) -> Sequence[str]:
    """n, p50, p95 and rate; dashes where no inference was alone on the machine, or too few for a p95."""
    stats = entry.latency
    if stats is None:
        return [NONE] * 4
    p95 = f"{stats.p95_ms:.2f}" if stats.n >= ENOUGH_FOR["p95"] else NONE
    return [str(stats.n), f"{stats.p50_ms:.2f}", p95, f"{stats.hz:.1f}"]
