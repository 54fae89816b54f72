"""A comparison of two runs for readers: tables and a picture on the console, and the same as Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.analysis.comparison import Comparison, Side
from eval.analysis.statistics import Interval
from eval.analysis.summary import SuccessRate
from eval.render.markdown import markdown_table
from policies.text import pluralize, shorten

PLOT_WIDTH = 61
NONE = "-"

SUCCESS = ("", "policy", "success / pairs", "rate", "95 % Wilson", "errors")
LIMITS = ("difference, NEW - BASE, in points", "low", "high")
TASKS = ("task", "both", "lost", "won", "neither")
LATENCY_TITLE = "Latency, without warm-up and what ran beside other episodes; intervals over episodes"
LATENCY = ("", "BASE n", "BASE p50 ms", "NEW n", "NEW p50 ms", "speed-up", "95 %")
ENGAGEMENT = ("", "stage", "backend", "calls", "misses", "refused")

Rows = list[tuple[str, ...]]


def render(result: Comparison) -> RenderableType:
    """Return a comparison for a rich console; texts from records are never read as markup."""
    parts: list[RenderableType] = [
        Text(line) for line in (*_settings(result), f"pairs: {result.counts.n}{_left_out(result)}")
    ]
    parts.append(table("Success of the pairs", SUCCESS, success_rows(result), texts=2))
    parts.append(table("95 % intervals", LIMITS, limit_rows(result)))
    parts.append(Text("\n".join(picture(result)), no_wrap=True, overflow="crop"))
    parts.append(Text("\n" + "\n".join(_sentences(result))))
    for name, episodes in (("lost", result.lost), ("won", result.won)):
        if episodes:
            parts.append(Text(f"{name}: {shorten(episodes)}"))
    if result.lost or result.won:
        parts.append(table("Pairs by task", TASKS, task_rows(result)))
    if result.latency:
        parts.append(table(LATENCY_TITLE, LATENCY, latency_rows(result)))
    else:
        parts.append(Text("Latency: the runs have none in common"))
    if rows := engagement_rows(result):
        parts.append(table("Engagement", ENGAGEMENT, rows, texts=3))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    parts += [Text(f"error: {problem}", style="bold red") for problem in _problems(result)]
    style = "bold green" if result.passed else "bold red"
    parts += [Text(line, style=style) for line in conclusion(result)]
    return Group(*parts)


def markdown(result: Comparison) -> str:
    """Return a comparison as Markdown."""
    lines = [
        f"# {result.new.policy} against {result.base.policy}",
        "",
        f"**{'. '.join(conclusion(result))}.**",
        "",
        *(f"- {line}" for line in _settings(result)),
        f"- pairs: {result.counts.n}{_left_out(result)}",
        *(f"- {line}" for line in _sentences(result)),
        "",
        *markdown_table(SUCCESS, success_rows(result), texts=2),
        "",
        *markdown_table(LIMITS, limit_rows(result)),
        "",
        "```",
        *picture(result),
        "```",
        "",
        *(
            f"- {name}: {', '.join(of) or 'none'}"
            for name, of in (("lost", result.lost), ("won", result.won))
        ),
        "",
        *markdown_table(TASKS, task_rows(result)),
    ]
    if result.latency:
        lines += ["", f"{LATENCY_TITLE}:", ""]
        lines += markdown_table(LATENCY, latency_rows(result))
    if rows := engagement_rows(result):
        lines += ["", *markdown_table(ENGAGEMENT, rows, texts=3)]
    notes = [
        *(f"**{problem}**" for problem in _problems(result)),
        *(f"warning: {w}" for w in result.warnings),
    ]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def conclusion(result: Comparison) -> list[str]:
    """Return the verdict in a sentence or two."""
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
                f"{pluralize(result.counts.n, 'pair')} could show {result.smallest_margin * 100:.1f} points "
                "at best; "
                f"{margin} points need at least {result.episodes_needed}, all of them successes"
            )
    if not result.engaged:
        lines.append("NOT ENGAGED: a backend did not serve all of its calls, so these are not its numbers")
    return lines


def success_rows(result: Comparison) -> Rows:
    """Return the cells under `SUCCESS`."""
    return [
        (name, side.policy, *_rate(side.success), str(side.errors))
        for name, side in (("BASE", result.base), ("NEW", result.new))
    ]


def limit_rows(result: Comparison) -> Rows:
    """Return the cells under `LIMITS`."""
    return [(name, *_limits(interval)) for name, interval in _intervals(result)]


def task_rows(result: Comparison) -> Rows:
    """Return the cells under `TASKS`."""
    return [
        (
            f"{of.suite} {of.task_id}  {of.instruction}",
            *(str(n) for n in (of.counts.both, of.counts.lost, of.counts.won, of.counts.neither)),
        )
        for of in result.tasks
    ]


def latency_rows(result: Comparison) -> Rows:
    """Return the cells under `LATENCY`."""
    return [
        (
            name,
            str(of.base_n),
            f"{of.base_p50:.2f}",
            str(of.new_n),
            f"{of.new_p50:.2f}",
            f"{of.ratio:.2f}x",
            NONE if of.interval is None else f"{of.interval.low:.2f} to {of.interval.high:.2f}",
        )
        for name, of in result.latency.items()
    ]


def engagement_rows(result: Comparison) -> Rows:
    """Return the cells under `ENGAGEMENT`."""
    return [
        (name, of.stage, of.backend, str(of.calls), str(of.misses), str(of.refused))
        for name, side in (("BASE", result.base), ("NEW", result.new))
        for of in side.engagement
    ]


def picture(result: Comparison) -> list[str]:
    """Return the intervals as lines of text: `[---o---]`, with `:` at the margin and `|` at no difference.

    Where an interval is so wide that the labels of both would touch, the margin has its label.
    """
    intervals = list(_intervals(result))
    margin = result.margin / 100
    low = min(-2 * margin, *(interval.low for _, interval in intervals)) - margin / 4
    high = max(margin, *(interval.high for _, interval in intervals)) + margin / 4

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (PLOT_WIDTH - 1))

    label_width = max(len(name) for name, _ in intervals) + 1
    axis = [" "] * PLOT_WIDTH
    for value, text in ((-margin, _points(-result.margin)), (0.0, "0")):
        start = max(0, min(column(value) - len(text) // 2, PLOT_WIDTH - len(text)))
        if not "".join(axis[max(0, start - 1) : start]).strip() and axis[start] == " ":
            axis[start : start + len(text)] = text
    lines = ["points".ljust(label_width) + "".join(axis).rstrip()]
    for name, interval in intervals:
        row = [" "] * PLOT_WIDTH
        first, last = column(interval.low), column(interval.high)
        if first < last:
            row[first : last + 1] = ["[", *"-" * (last - first - 1), "]"]
        for value, mark in ((-margin, ":"), (0.0, "|")):
            if row[column(value)] in " -":
                row[column(value)] = mark
        row[column(result.difference)] = "o"
        lines.append(name.ljust(label_width) + "".join(row).rstrip())
    return lines


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Table:
    """Return a table whose first columns are texts and whose others are numbers."""
    table = Table(title=Text(caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        is_text = i < texts
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _intervals(result: Comparison) -> Iterator[tuple[str, Interval]]:
    yield "paired, Newcombe", result.newcombe
    if result.by_task is not None:
        yield "clustered by task", result.by_task
    if result.if_errors_count is not None:
        yield "errors against NEW", result.if_errors_count


def _settings(result: Comparison) -> Iterator[str]:
    for name, side in (("BASE", result.base), ("NEW", result.new)):
        items = (side.policy, side.checkpoint or "no checkpoint", side.setting, _commit(side))
        yield f"{name}: " + " | ".join(item for item in items if item)


def _commit(side: Side) -> str:
    if side.commit is None:
        return "commit unknown"
    return f"commit {side.commit[:12]}" + (" with uncommitted changes" if side.commit_dirty else "")


def _left_out(result: Comparison) -> str:
    out = result.left_out
    found = (
        f"{pluralize(out.base_alone, 'episode')} of BASE alone" if out.base_alone else None,
        f"{out.new_alone} of NEW alone" if out.new_alone else None,
        f"{out.raised} that raised" if out.raised else None,
    )
    parts = [part for part in found if part]
    return f"; left out: {', '.join(parts)}" if parts else ""


def _sentences(result: Comparison) -> Iterator[str]:
    n, smallest = result.counts.n, result.smallest_difference
    could = "no difference" if smallest is None else f"no difference below {smallest * 100:.1f} points"
    yield (
        f"NEW lost {result.counts.lost} and won {result.counts.won} of {n} episodes: exact McNemar "
        f"P = {result.mcnemar_p:.3g} ({pluralize(n, 'pair')} could show {could})"
    )
    if result.more_steps is not None:
        interval = result.more_steps_by_task
        span = "" if interval is None else f" (95 % by task {interval.low:+.2f} to {interval.high:+.2f})"
        yield f"control steps of the episodes that both solved: NEW {result.more_steps:+.2f} on average{span}"


def _problems(result: Comparison) -> list[str]:
    return [
        f"{name}: {problem}"
        for name, side in (("BASE", result.base), ("NEW", result.new))
        for problem in side.problems
    ]


def _rate(success: SuccessRate) -> tuple[str, str, str]:
    assert success.rate is not None  # a pair is finished
    assert success.low is not None
    assert success.high is not None
    return (
        f"{success.successes} / {success.finished}",
        f"{success.rate:.1%}",
        f"{success.low:.1%} to {success.high:.1%}",
    )


def _limits(interval: Interval) -> tuple[str, str]:
    return f"{interval.low * 100:+.2f}", f"{interval.high * 100:+.2f}"


def _span(interval: Interval) -> str:
    return "{} to {}".format(*_limits(interval))


def _points(value: float) -> str:
    return f"{value:g}"
