"""Inline SVG: success against latency, and the spread of latencies; no script, no font, no picture files.

Colours come from the page's style sheet by class (`c0` to `c5`), one per policy, and each colour has a marker
of its own shape; numbers are those of the rows of the page's table.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from eval.render.tables import percent_interval

WIDTH = 380  # units of a drawing; on a phone about one pixel each
NUM_STYLES = 6
LOG_FROM = 6.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Point:
    """A run in the plot: milliseconds, and success with its interval as fractions."""

    number: int
    label: str
    style: int
    ms: float
    rate: float
    low: float
    high: float
    on_front: bool


@dataclass(frozen=True)
class Box:
    """A run's latencies: percentiles in milliseconds."""

    number: int
    label: str
    style: int
    p5_ms: float
    p25_ms: float
    p50_ms: float
    p75_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Axis:
    """Values to positions; logarithmic where the values span much."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The position of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def latency_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis for milliseconds: from zero, or logarithmic where the values span `LOG_FROM`."""
    smallest, largest = min(values), max(values)
    if largest / smallest >= LOG_FROM:
        return Axis(smallest / 1.25, largest * 1.25, start, end, log=True)
    return Axis(0.0, largest * 1.12, start, end, log=False)


def ticks(axis: Axis, most: int = 6) -> list[float]:
    """Round values within an axis, at most about `most`."""
    if axis.log:
        decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = (factor * 10.0**decade for decade in decades for factor in factors)
            inside = [value for value in values if axis.low <= value <= axis.high]
            if len(inside) <= most:
                break
        return inside
    span = axis.high - axis.low
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(axis.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def pareto(points: Sequence[Point], device: str) -> Markup:
    """Draw success, with its 95 % interval, against latency; the front is dashed."""
    height, left, right, top, bottom = 300, 44, WIDTH - 10, 40, 258
    x = latency_axis([p.ms for p in points], left, right)
    lowest = min(p.low for p in points)
    y = Axis(math.floor(lowest * 20) / 20 if lowest > 0.05 else 0.0, 1.0, bottom, top, log=False)
    parts = [line(left, y.at(v), right, y.at(v), "grid") for v in ticks(y)]
    parts += [text_at(left - 6, y.at(v) + 4, f"{v * 100:.0f} %", "tick", anchor="end") for v in ticks(y)]
    parts += [line(x.at(v), top, x.at(v), bottom, "grid") for v in ticks(x)]
    parts += [text_at(x.at(v), bottom + 16, f"{v:g}", "tick", anchor="middle") for v in ticks(x)]
    scale = ", logarithmic" if x.log else ""
    parts.append(text_at((left + right) / 2, height - 6, f"p50, ms{scale}", "axis", anchor="middle"))
    front = sorted((p for p in points if p.on_front), key=lambda p: p.ms)
    if len(front) > 1:
        path = " ".join(f"{x.at(p.ms):.1f},{y.at(p.rate):.1f}" for p in front)
        parts.append(Markup('<polyline points="{}" class="front"/>').format(path))
    for p, level in zip(points, _levels([x.at(p.ms) for p in points]), strict=True):
        at = x.at(p.ms)
        name = f"{p.label}: {p.rate:.1%} ({percent_interval(p.low, p.high)}), {p.ms:.2f} ms"
        inside = [
            line(at, y.at(p.low), at, y.at(p.high), "whisker"),
            line(at - 4, y.at(p.low), at + 4, y.at(p.low), "whisker"),
            line(at - 4, y.at(p.high), at + 4, y.at(p.high), "whisker"),
            marker(at, y.at(p.rate), p.style),
        ]
        if p.on_front:
            inside.append(_circle(at, y.at(p.rate), 9.5, "ring"))
        inside.append(text_at(at, top - 13 - 12 * level, str(p.number), "number", anchor="middle"))
        parts.append(_group(p.style, name, inside))
    description = "; ".join(f"{p.label} {p.rate:.1%} at {p.ms:.2f} ms" for p in points)
    return _svg(height, f"Success against latency on {device}", description, parts)


def boxes(name: str, rows: Sequence[Box]) -> Markup:
    """Draw one row a run: a line from p5 to p95, a box from p25 to p75, the median as a stroke."""
    step, top, left, right = 40, 8, 8, WIDTH - 10
    bottom = top + step * len(rows)
    x = latency_axis([v for row in rows for v in (max(row.p5_ms, 1e-6), row.p95_ms)], left, right)
    parts = [line(x.at(v), top, x.at(v), bottom, "grid") for v in ticks(x)]
    parts += [text_at(x.at(v), bottom + 15, f"{v:g}", "tick", anchor="middle") for v in ticks(x)]
    scale = ", logarithmic" if x.log else ""
    parts.append(text_at((left + right) / 2, bottom + 32, f"ms{scale}", "axis", anchor="middle"))
    for i, row in enumerate(rows):
        y = top + step * i
        middle = y + 27
        values = f"{row.p50_ms:.2f} (p95 {row.p95_ms:.2f})"
        inside = [
            text_at(left, y + 13, f"{row.number}  {_short(row.label, 34)}", "label halo"),
            text_at(right, y + 13, values, "label halo", anchor="end"),
            line(x.at(row.p5_ms), middle, x.at(row.p95_ms), middle, "whisker"),
            rect(x.at(row.p25_ms), middle - 6, x.at(row.p75_ms) - x.at(row.p25_ms), 12, "box"),
            line(x.at(row.p50_ms), middle - 9, x.at(row.p50_ms), middle + 9, "median"),
        ]
        parts.append(_group(row.style, f"{row.label}: median {values} ms", inside))
    description = "; ".join(
        f"{row.label} median {row.p50_ms:.2f} ms, p95 {row.p95_ms:.2f} ms" for row in rows
    )
    return _svg(bottom + 38, f"Latency of {name}", description, parts)


def swatch(style: int) -> Markup:
    """The marker of a style by itself, for tables and legends; it says nothing to a screen reader."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true"><g class="c{}">{}</g></svg>'
    ).format(style % NUM_STYLES, marker(7, 7, style))


def marker(x: float, y: float, style: int) -> Markup:
    """The shape of a style, about 10 units wide."""
    shapes: tuple[Sequence[tuple[float, float]], ...] = (
        (),
        ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
        ((0, -6), (6, 0), (0, 6), (-6, 0)),
        ((0, 5.5), (5.5, -4.5), (-5.5, -4.5)),
        ((-3, -5.5), (3, -5.5), (6, 0), (3, 5.5), (-3, 5.5), (-6, 0)),
    )  # fmt: skip
    corners = shapes[style % NUM_STYLES]
    if not corners:
        return _circle(x, y, 5, "mark")
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return Markup('<polygon points="{}" class="mark"/>').format(path)


def _levels(positions: Sequence[float]) -> list[int]:
    """Give numbers at these positions a level each, so that neighbours do not overlap."""
    levels = [0] * len(positions)
    last: dict[int, float] = {}
    for i in sorted(range(len(positions)), key=lambda i: positions[i]):
        free = (level for level in range(2) if positions[i] - last.get(level, -math.inf) >= 14)
        levels[i] = next(free, min(last, key=lambda level: last[level]) if last else 0)
        last[levels[i]] = positions[i]
    return levels


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(height: float, title: str, description: str, parts: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, height, f"{title}. {description}", Markup("").join(parts))  # fmt: skip


def _group(style: int, name: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<g class="c{}"><title>{}</title>{}</g>').format(
        style % NUM_STYLES, name, Markup("").join(parts)
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A line of a CSS class."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, style
    )


def rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    """A rectangle of a CSS class; one too narrow to be seen is drawn half a unit wide."""
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>').format(
        x, y, max(width, 0.5), height, style
    )


def _circle(x: float, y: float, r: float, style: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}"/>').format(x, y, r, style)


def text_at(x: float, y: float, text: str, style: str, anchor: str = "start") -> Markup:
    """A line of text of a CSS class, escaped."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, style, anchor, escape(text)
    )
