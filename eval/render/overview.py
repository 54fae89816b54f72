"""Runs side by side for readers: one table on the console, and the same as Markdown."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from eval.analysis.overview import Entry, Overview, headline
from eval.render.comparison import table
from eval.render.markdown import markdown_table
from policies.text import pluralize

NONE = "-"
ON_FRONT = "*"
COLUMNS = ("#", "run", "success", "95 % Wilson", "p50 ms", "p95 ms", "Hz", "faster", "verdict")
TEXTS = 2
LEGEND = (
    "Latency is observation to action, batch 1; left out are warm-up inferences and those that other "
    f"episodes ran beside. Faster and verdict are against run 1, by the median. {ON_FRONT}: on the Pareto "
    "front, no run is at least as fast and as successful and better in one, by the numbers shown; their "
    "intervals may overlap."
)


def rows(shown: Overview) -> list[tuple[str, ...]]:
    """Return the cells under `COLUMNS`."""
    return [_row(entry) for entry in shown.entries]


def notes(shown: Overview) -> list[str]:
    """Return what the table does not say but must be known, run by run."""
    found = []
    for entry in shown.entries:
        found += [f"{entry.number} {entry.label}: {flag}" for flag in entry.flags]
        found += [f"{entry.number} {entry.label}: {problem}" for problem in entry.problems]
        if entry.not_comparable is not None:
            found.append(f"{entry.number} {entry.label}: not comparable: {entry.not_comparable}")
    return found + [f"{folder}: no numbers: {reason}" for folder, reason in shown.missing]


def render(shown: Overview) -> RenderableType:
    """Return the overview for a rich console; texts from records are never read as markup."""
    verdict = f"Runs side by side (verdict at a margin of {_margin(shown)})"
    return Group(
        *(
            Text(f"*** {label} ***", style="bold white on red")
            for label in sorted(
                {str(e.summary.weights_label) for e in shown.entries if e.summary.random_weights}
            )
        ),
        table(verdict, COLUMNS, rows(shown), texts=TEXTS),
        Text(LEGEND, style="dim"),
        *(Text(note, style="yellow") for note in notes(shown)),
        Text("\n" + "\n".join(headline(shown)), style="bold"),
    )


def markdown(shown: Overview, title: str) -> str:
    """Return the overview as Markdown."""
    lines = [f"# {title}", "", *(f"- {sentence}" for sentence in headline(shown)), ""]
    lines += markdown_table(COLUMNS, rows(shown), TEXTS)
    lines += ["", f"{LEGEND} The margin is {_margin(shown)}."]
    if found := notes(shown):
        lines += ["", *(f"- {note}" for note in found)]
    return "\n".join(lines) + "\n"


def _margin(shown: Overview) -> str:
    return f"{pluralize(f'{shown.margin:g}', 'point')} of success"


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
    """Return successes of finished episodes, and the interval of the rate."""
    total = entry.summary.total
    interval = NONE
    if total.low is not None and total.high is not None:
        interval = f"{total.low * 100:.1f} to {total.high * 100:.1f} %"
    return f"{total.successes} / {total.finished}", interval


def latency_cells(entry: Entry) -> Sequence[str]:
    """Return p50, p95 and rate; dashes where no inference was alone on the machine."""
    stats = entry.latency
    return [NONE] * 3 if stats is None else [f"{stats.p50_ms:.2f}", f"{stats.p95_ms:.2f}", f"{stats.hz:.1f}"]
