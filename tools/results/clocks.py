"""A figure for each report whose runs are under a clock, `docs/results/data/NAME/cells/CLOCK`.

It stands alone, as the plots of benches do (`tools.results.plot`).
"""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from eval.analysis.clocks import Cell, collect
from eval.analysis.sources import read_sources
from eval.analysis.summary import summarise
from eval.records.sweep import SWEEP_FILE
from eval.report.clock_plots import CONTROL_HZ, HEIGHT, by_delay, by_latency, series_of
from eval.report.plots import WIDTH, marker, rect, text_at
from tools.results.runs import DATA, REPORTS

GAP, HEADING = 24, 64
STYLE = """
svg { --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4;
  --c0: #0072b2; --c1: #c04a00; --c2: #00795a; --c3: #a03a88; --c4: #946200; --c5: #4d4d4d }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9da7b3; --line: #30363d;
    --c0: #56b4e9; --c1: #f08a4b; --c2: #2fc79a; --c3: #e39ac9; --c4: #f0b93a; --c5: #c4c4c4 }
}
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink) }
.title { font-size: 15px; font-weight: 600 } .tick, .axis { fill: var(--soft); font-size: 11px }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
.paper { fill: var(--paper) } .grid { stroke: var(--line) } .whisker { stroke: var(--c); stroke-width: 1.5 }
.mark { fill: var(--c) } .median { stroke: var(--c); stroke-width: 3 }
.front { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4 }
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) }
.c3 { --c: var(--c3) } .c4 { --c: var(--c4) } .c5 { --c: var(--c5) }
"""


def clock_figures(root: Path) -> dict[Path, str]:
    """Draw the figure of each report with cells, by its file.

    A sweep.json beside the cells says which clocks could not be served.

    Raises:
        OSError, ValueError: a cell cannot be read.
    """
    given = {}
    for folder in sorted((root / DATA).glob("*/cells")):
        is_sweep = (folder / SWEEP_FILE).is_file()
        parts = [folder] if is_sweep else sorted(folder.iterdir())
        sources = [source for part in parts for source in read_sources(part)]
        runs = [(source.run, summarise(source.run)) for source in sources if source.run is not None]
        reasons = [source.reason for source in sources if source.run is None and source.reason is not None]
        given[root / REPORTS / f"{folder.parent.name}.svg"] = figure(in_order(collect(runs, reasons)))
    return given


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Sort by mode, free first, and delay."""
    return sorted(cells, key=lambda cell: (cell.series != "free", cell.series, cell.delay, cell.latency_ms))


def figure(cells: list[Cell]) -> str:
    """Draw success against delay, and against latency at each speed, side by side."""
    panels = [("Against the delay in control steps", by_delay(cells))]
    for speed in sorted({cell.speed for cell in cells}):
        if (plot := by_latency(cells, speed)) is not None:
            panels.append((f"At {CONTROL_HZ * speed:g} Hz, against latency", plot))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width = columns * (WIDTH + GAP) + GAP
    height = HEADING + rows * (HEIGHT + GAP)
    parts = [
        rect(0, 0, width, height, "paper"),
        text_at(GAP, 26, "Success when time does not stand still", "title"),
    ]
    x = float(GAP)
    for name, style in series_of(cells).items():
        parts += [Markup('<g class="c{}">{}</g>').format(style % 6, marker(x + 6, 46, style))]
        parts += [text_at(x + 18, 50, name, "legend")]
        x += 18 + 7.5 * len(name) + 20
    for i, (title, plot) in enumerate(panels):
        left, top = GAP + i % columns * (WIDTH + GAP), HEADING + i // columns * (HEIGHT + GAP)
        parts.append(text_at(left, top + 12, title, "legend"))
        parts.append(
            Markup('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>').format(
                left, top, WIDTH, HEIGHT, plot
            )
        )
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
            'role="img" aria-label="Success under a clock">\n<style>{2}</style>\n{3}\n</svg>\n'
        ).format(width, height, Markup(STYLE), Markup("\n").join(parts))
    )
