"""A comparison of two runs for readers, on the console and as Markdown."""

from collections.abc import Iterator

from rich.console import RenderableType

from eval.analysis.comparison import Comparison, Side
from eval.analysis.sequential import Sequential
from eval.analysis.statistics import Interval
from eval.analysis.summary import SuccessRate
from eval.records.trees import spell_code
from eval.render.tables import (
    NONE,
    Block,
    Heading,
    Items,
    Sentence,
    Table,
    percent_interval,
    to_console,
    to_markdown,
)
from policies.text import brief, pluralize, shorten

SUCCESS = ("", "policy", "success / pairs", "rate", "95 % Wilson", "errors")
LIMITS = ("difference, NEW - BASE, in points", "low", "high")
TASKS = ("task", "both", "lost", "won", "neither")
LEVELS_COLUMNS = ("level", *TASKS[1:])
LATENCY_TITLE = "Latency, without warm-up and what ran beside other episodes; intervals over episodes"
LATENCY = ("", "BASE n", "BASE p50 ms", "NEW n", "NEW p50 ms", "speed-up", "95 %")
ENGAGEMENT = ("", "stage", "backend", "calls", "misses", "refused")

Rows = Iterator[tuple[str, ...]]


def render(result: Comparison) -> RenderableType:
    """For a console: long lists are cut short, and the verdict is the last line."""
    style = "green" if result.passed else "red"
    return to_console([*_blocks(result, whole=False), Items(conclusion(result), style, strong=True)])


def markdown(result: Comparison) -> str:
    """Whole, and with the verdict first."""
    title = Heading(f"{result.new.policy} against {result.base.policy}")
    verdict = Sentence(f"{'. '.join(conclusion(result))}.", strong=True)
    return to_markdown([title, verdict, *_blocks(result, whole=True)])


def _blocks(result: Comparison, *, whole: bool) -> Iterator[Block]:
    """What both forms hold.

    Args:
        whole: whether to name all episodes that differ, and to count the pairs by task where none does.
    """
    yield Items([*_settings(result), f"pairs: {result.counts.n}{_left_out(result)}"])
    yield Table(SUCCESS, success_rows(result), "Success of the pairs", texts=2)
    yield Table(LIMITS, limit_rows(result), "95 % intervals")
    yield Items([*_tests(result), *_differing_episodes(result, whole=whole)])
    if whole or result.lost or result.won:
        yield Table(TASKS, task_rows(result), "Pairs by task")
    if result.levels:
        yield Table(LEVELS_COLUMNS, level_rows(result), "Pairs by LIBERO-Plus's level of difficulty")
    if result.latency:
        yield Table(LATENCY, latency_rows(result), LATENCY_TITLE)
    else:
        yield Sentence("Latency: the runs have none in common")
    if any(side.engagement for side in result.sides.values()):
        yield Table(ENGAGEMENT, engagement_rows(result), "Engagement", texts=3)
    yield Items([f"warning: {warning}" for warning in result.warnings], "yellow")
    yield Items(
        [f"error: {name}: {problem}" for name, side in result.sides.items() for problem in side.problems],
        "red",
        strong=True,
    )


def conclusion(result: Comparison) -> list[str]:
    """The verdicts in a sentence or two each, the one that counts first."""
    lines = _fixed(result)
    if (test := result.sequential) is not None:
        own = _sequential(test)
        lines = (
            [own, f"not to be read, since NEW was to stop by its outcome: {lines[0]}"]
            if test.stopped
            else [*lines, own]
        )
    if not result.engaged:
        lines.append("NOT ENGAGED: a backend did not serve all of its calls, so these are not its numbers")
    return lines


def _sequential(test: Sequential) -> str:
    """What the sequential test says, and when it may be read."""
    evidence = f"E = {test.non_inferior:.3g} for and {test.inferior:.3g} against, 20 decides"
    read = f"{test.pairs} of {pluralize(test.planned, 'pair')}"
    margin = _points(test.margin)
    if test.decision == "undecided":
        end = f"; {test.missing} is missing" if test.missing else ""
        return (
            f"SEQUENTIAL: UNDECIDED at {margin} points after {read}{end} ({evidence}); it may go on from here"
        )
    loss = "less" if test.decision == "non-inferior" else "more"
    return (
        f"SEQUENTIAL: {test.decision.upper()}: NEW loses {loss} than {margin} points of success, decided "
        f"after {read} ({evidence}); this holds whenever it is read"
    )


def _fixed(result: Comparison) -> list[str]:
    """The verdict for a number of pairs that was fixed beforehand."""
    margin = _points(result.margin)
    hull = result.newcombe.hull(result.by_task).hull(result.if_errors_count)
    span = f"95 % interval {_span(hull)}, n = {result.counts.n}"
    if result.verdict == "non-inferior":
        lines = [f"NON-INFERIOR: NEW loses less than {margin} points of success ({span})"]
    elif result.verdict == "inferior":
        lines = [f"INFERIOR: NEW loses more than {margin} points of success ({span})"]
    else:
        worse = ", and it does lose some" if hull.high < 0 else ""
        lines = [f"NOT SHOWN: NEW may lose {margin} points of success or more{worse} ({span})"]
        if result.counts.n < result.episodes_needed:
            lines.append(
                f"{pluralize(result.counts.n, 'pair')} could show a margin of "
                f"{result.smallest_margin * 100:.1f} points at best; "
                f"{margin} points need at least {result.episodes_needed}, all of them successes"
            )
    return lines


def success_rows(result: Comparison) -> Rows:
    """The cells under `SUCCESS`."""
    for name, side in result.sides.items():
        yield name, side.policy, *_rate(side.success), str(side.errors)


def limit_rows(result: Comparison) -> Rows:
    """The cells under `LIMITS`."""
    intervals = {
        "paired, Newcombe": result.newcombe,
        "clustered by task": result.by_task,
        "errors against NEW": result.if_errors_count,
    }
    for name, interval in intervals.items():
        if interval is not None:
            yield name, *_limits(interval)


def task_rows(result: Comparison) -> Rows:
    """The cells under `TASKS`."""
    for task in result.tasks:
        counts = task.counts
        numbers = (counts.both, counts.lost, counts.won, counts.neither)
        yield f"{task.suite} {task.task_id}  {task.instruction}", *map(str, numbers)


def level_rows(result: Comparison) -> Rows:
    """The cells under `LEVELS_COLUMNS`."""
    for level, counts in result.levels.items():
        yield str(level), *map(str, (counts.both, counts.lost, counts.won, counts.neither))


def latency_rows(result: Comparison) -> Rows:
    """The cells under `LATENCY`."""
    for name, ratio in result.latency.items():
        interval = ratio.interval
        yield (
            name,
            str(ratio.base_n),
            f"{ratio.base_p50:.2f}",
            str(ratio.new_n),
            f"{ratio.new_p50:.2f}",
            f"{ratio.ratio:.2f}x" if result.ratios_hold else NONE,
            f"{interval.low:.2f} to {interval.high:.2f}" if interval and result.ratios_hold else NONE,
        )


def engagement_rows(result: Comparison) -> Rows:
    """The cells under `ENGAGEMENT`."""
    for name, side in result.sides.items():
        for stage in side.engagement:
            numbers = (stage.calls, stage.misses, stage.refused)
            yield name, stage.stage, stage.backend, *map(str, numbers)


def _settings(result: Comparison) -> Iterator[str]:
    for name, side in result.sides.items():
        args = shorten(f"{name} {brief(value)}" for name, value in side.args.items())
        items = (side.policy, args, side.checkpoint or "no checkpoint", side.setting, _code(side))
        yield f"{name}: " + " | ".join(item for item in items if item)


def _code(side: Side) -> str:
    return spell_code(side.commit, dirty=side.commit_dirty, sources=side.sources)


def _left_out(result: Comparison) -> str:
    out = result.left_out
    parts = (
        f"{pluralize(out.base_alone, 'episode')} of BASE alone" if out.base_alone else None,
        f"{out.new_alone} of NEW alone" if out.new_alone else None,
        f"{out.raised} that raised" if out.raised else None,
    )
    text = ", ".join(part for part in parts if part)
    return f"; left out: {text}" if text else ""


def _tests(result: Comparison) -> Iterator[str]:
    n, smallest = result.counts.n, result.smallest_difference
    could = "no difference" if smallest is None else f"no difference below {smallest * 100:.1f} points"
    yield (
        f"NEW lost {result.counts.lost} and won {result.counts.won} of {n} episodes, "
        f"{result.difference * 100:+.2f} points: exact McNemar P = {result.mcnemar_p:.3g} "
        f"({pluralize(n, 'pair')} could show {could})"
    )
    if result.more_steps is not None:
        interval = result.more_steps_by_task
        span = "" if interval is None else f" (95 % by task {interval.low:+.2f} to {interval.high:+.2f})"
        yield f"control steps of the episodes that both solved: NEW {result.more_steps:+.2f} on average{span}"


def _differing_episodes(result: Comparison, *, whole: bool) -> Iterator[str]:
    for name, episodes in (("lost", result.lost), ("won", result.won)):
        if whole:
            yield f"{name}: {', '.join(episodes) or 'none'}"
        elif episodes:
            yield f"{name}: {shorten(episodes)}"


def _rate(success: SuccessRate) -> tuple[str, str, str]:
    assert success.rate is not None  # a pair is finished
    return (
        f"{success.successes} / {success.finished}",
        f"{success.rate:.1%}",
        percent_interval(success.low, success.high),
    )


def _limits(interval: Interval) -> tuple[str, str]:
    return f"{interval.low * 100:+.2f}", f"{interval.high * 100:+.2f}"


def _span(interval: Interval) -> str:
    return "{} to {}".format(*_limits(interval))


def _points(value: float) -> str:
    return f"{value:g}"
