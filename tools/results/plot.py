"""A plot for each bench: a bar for each policy and number of denoise steps, its stages from left to right.

Non-obvious behaviors:
    The picture stands alone, without a page's style sheet, and paints its own background: GitHub's theme need
    not be the system's, which is what `prefers-color-scheme` asks.
"""

from collections.abc import Mapping

from markupsafe import Markup

from eval.records.schema import AROUND, HOST_TO_HOST
from eval.report.plots import Axis, line, rect, text_at, ticks
from optim.bench.tables import Component
from policies.pi05.dims import STAGES
from policies.text import pluralize
from tools.results.bench import Bench

WIDTH, LEFT, RIGHT, MARGIN = 640, 150, 524, 16
BAR, ROW, HEADING = 16, 26, 30
# Okabe and Ito's colours, which the colour-blind can tell apart; neighbours differ in lightness too
STYLE = """
svg { --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --rest: #8c959f }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9da7b3; --line: #30363d; --rest: #6e7681 }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink) }
.title { font-size: 15px; font-weight: 600 } .heading { font-weight: 600 } .soft { fill: var(--soft) }
.label { paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
.paper { fill: var(--paper) } .grid { stroke: var(--line) }
.s0, .s1, .s2, .s3 { stroke: var(--paper); stroke-width: 1 }
.s0 { fill: #0072b2 } .s1 { fill: #e69f00 } .s2 { fill: #009e73 } .s3 { fill: var(--rest) }
"""


def latency_svg(bench: Bench) -> str:
    """Draw medians by stage as an SVG file."""
    base = next(iter(bench.times[next(iter(bench.times))]))
    longest = max(
        times[HOST_TO_HOST].stats.p50_ms for policies in bench.times.values() for times in policies.values()
    )
    x = Axis(0.0, longest, LEFT, RIGHT, log=False)
    parts = [
        text_at(MARGIN, 28, f"From observation to action on one {bench.device}, medians", "title"),
        text_at(MARGIN, 48, f"{bench.weights_label}, batch 1; x: speed-up over {base}", "soft"),
        *_legend(72),
    ]
    top, bars = 92, []
    for steps, policies in bench.times.items():
        bars.append(text_at(MARGIN, top + 18, pluralize(steps, "denoise step"), "heading"))
        top += HEADING
        for policy, times in policies.items():
            bars += _bar(policy, times, x, top)
            top += ROW
    parts += [line(x.at(v), 96, x.at(v), top + 4, "grid") for v in ticks(x)]
    parts += [text_at(x.at(v), top + 20, f"{v:g} ms", "soft", anchor="middle") for v in ticks(x)]
    height = top + 32
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
            'role="img" aria-label="{2}">\n<style>{3}</style>\n{4}\n</svg>\n'
        ).format(
            WIDTH,
            height,
            bench.description,
            Markup(STYLE),
            Markup("\n").join([rect(0, 0, WIDTH, height, "paper"), *parts, *bars]),
        )
    )


def _legend(y: float) -> list[Markup]:
    parts, x = [], float(MARGIN)
    for i, name in enumerate((*STAGES, AROUND)):
        parts += [rect(x, y - 11, 13, 13, f"s{i}"), text_at(x + 19, y, name, "soft")]
        x += 19 + 8 * len(name) + 16
    return parts


def _bar(policy: str, times: Mapping[str, Component], x: Axis, top: float) -> list[Markup]:
    """Draw a policy's row: the whole, and the stages over it, which leaves what is around them."""
    whole = times[HOST_TO_HOST]
    whole_ms = whole.stats.p50_ms
    faster = "" if whole.speedup == 1 else f", {whole.speedup:.2f}x"
    parts = [
        text_at(LEFT - 8, top + 13, policy, "label", anchor="end"),
        rect(x.at(0), top, x.at(whole_ms) - x.at(0), BAR, f"s{len(STAGES)}"),
        text_at(x.at(whole_ms) + 7, top + 13, f"{whole_ms:.1f} ms{faster}", "label"),
    ]
    begin_ms = 0.0
    for i, stage in enumerate(STAGES):
        end_ms = begin_ms + times[stage].stats.p50_ms
        parts.append(rect(x.at(begin_ms), top, x.at(end_ms) - x.at(begin_ms), BAR, f"s{i}"))
        begin_ms = end_ms
    return parts
