"""A report as one HTML file that needs no network: the template `page.html.j2` filled with an overview."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.analysis.clocks import Cell, cells
from eval.analysis.comparison import MARGIN
from eval.analysis.overview import Entry, Overview
from eval.records.schema import HOST_TO_HOST
from eval.render import arms
from eval.render.overview import LEGEND, headline, latency_cells, random_weights, success_cells
from eval.report.clock_plots import CONTROL_HZ, by_delay, by_latency, legend
from eval.report.frames import frames_of
from eval.report.plots import Box, Point, boxes, pareto, swatch
from eval.report.sections import FindFrames, commands, episode_lists, facts, task_rows
from policies.text import pluralize, visible

TEMPLATE = "page.html.j2"


def report_command(
    folders: Iterable[str], title: str | None = None, margin: float = MARGIN, base: Path | None = None
) -> str:
    """The command that makes a page again, with what is not a default of what the page says."""
    chosen = [f"--title={title}"] if title else []
    chosen += [f"--margin={margin}"] if margin != MARGIN else []
    chosen += [f"--base={base}"] if base else []
    return shlex.join(["python", "-m", "eval.report", *folders, *chosen])


def page(overview: Overview, title: str, command: str, find: FindFrames = frames_of) -> str:
    """Fill the template.

    Args:
        command: what makes this report again.
        find: returns the pictures of an episode of a run's folder.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value, lines=True) if type(value) is str else value,
    )
    environment.filters["pluralize"] = pluralize
    styles, clocked = _styles(overview.entries), cells(overview)
    return environment.get_template(TEMPLATE).render(
        title=title,
        overview=overview,
        entries=overview.entries,
        headline=headline(overview),
        legend=LEGEND,
        random_weights=random_weights(overview),
        swatches=[swatch(style) for style in styles],
        success=[success_cells(entry) for entry in overview.entries],
        latency=[latency_cells(entry) for entry in overview.entries],
        pareto=_pareto(overview, styles),
        clock_plots=_clock_plots(clocked),
        clock_legend=legend(clocked),
        unplotted=[entry for entry in overview.entries if not _has_point(entry)],
        spreads=[(name, _boxes(overview, name, styles)) for name in overview.components],
        under_load=[entry for entry in overview.entries if entry.under_load],
        tasks=task_rows(overview),
        arms=list(arms.rows(overview)),
        arm_columns=arms.COLUMNS,
        arm_texts=arms.TEXTS,
        arm_legend=arms.LEGEND,
        episodes=episode_lists(overview, find),
        facts=facts(overview),
        commands=[commands(entry) for entry in overview.entries],
        command=command,
        host_to_host=HOST_TO_HOST,
    )


def _styles(entries: Sequence[Entry]) -> list[int]:
    """Each run's colour and marker: those of its policy, or its own where all have one policy."""
    policies = list(dict.fromkeys(entry.summary.policy for entry in entries))
    if len(policies) == 1:
        return list(range(len(entries)))
    return [policies.index(entry.summary.policy) for entry in entries]


def _has_point(entry: Entry) -> bool:
    return entry.latency is not None and entry.summary.total.rate is not None


def _pareto(overview: Overview, styles: Sequence[int]) -> Markup | None:
    points = []
    for entry, style in zip(overview.entries, styles, strict=True):
        total, stats = entry.summary.total, entry.latency
        if stats is None or total.rate is None or total.low is None or total.high is None:
            continue
        points.append(
            Point(
                entry.number,
                entry.label,
                style,
                stats.p50_ms,
                total.rate,
                total.low,
                total.high,
                entry.on_front,
            )
        )
    devices = {
        str((entry.run.run.get("policy") or {}).get("device", "the host")) for entry in overview.entries
    }
    return pareto(points, " and ".join(sorted(devices))) if points else None


def _clock_plots(clocked: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Name and draw success against delay, and at each speed against latency; none without a clock."""
    if not clocked:
        return []
    plots = [("Against delay", by_delay(clocked))]
    for speed in sorted({cell.speed for cell in clocked}):
        if (plot := by_latency(clocked, speed)) is not None:
            plots.append((f"At {CONTROL_HZ * speed:g} Hz, against latency", plot))
    return plots


def _boxes(overview: Overview, name: str, styles: Sequence[int]) -> Markup:
    rows = []
    for entry, style in zip(overview.entries, styles, strict=True):
        if (spread := entry.spreads.get(name)) is None:
            continue
        label = f"UNDER LOAD {entry.label}" if entry.under_load else entry.label
        percentiles = (spread.p5_ms, spread.p25_ms, spread.p50_ms, spread.p75_ms, spread.p95_ms)
        rows.append(Box(entry.number, label, style, *percentiles))
    return boxes(name, rows)
