"""Inline SVG of runs under a clock: success against delay, and at a robot's speed against latency."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from eval.analysis.clocks import Cell
from eval.render.tables import percent_interval
from eval.report.plots import WIDTH, Axis, latency_axis, line, marker, swatch, text_at, ticks

TOP, BOTTOM, LEFT, RIGHT = 40.0, 258.0, 44.0, WIDTH - 10.0
HEIGHT = 302
CONTROL_HZ = 20  # of LIBERO's controller, at speed 1
APART = 3.5  # units between markers of several series at one place


def series_of(cells: Sequence[Cell]) -> dict[str, int]:
    """Each series' style, in the order of the cells."""
    return {name: i for i, name in enumerate(dict.fromkeys(cell.series for cell in cells))}


def by_delay(cells: Sequence[Cell]) -> Markup:
    """Draw success against delay, a line for each mode; what cannot be served is a cross on the axis.

    Runs at a bench's latencies are left out where others have their delays in numbers.
    """
    numbers = [cell for cell in cells if cell.backend is None]
    shown = numbers if any(cell.delay for cell in numbers) else list(cells)
    x = Axis(-0.3, max(1.0, *(cell.delay for cell in shown)) + 0.3, LEFT, RIGHT, log=False)
    marks = [v for v in ticks(x) if v >= 0 and float(v).is_integer()]
    places = {id(cell): x.at(cell.delay) for cell in shown}
    return _draw(
        "Success against delay",
        "delay d, control steps",
        [(x.at(v), f"{v:g}") for v in marks],
        shown,
        places,
        series_of(cells),
        _lines(shown),
    )


def by_latency(cells: Sequence[Cell], speed: float) -> Markup | None:
    """Draw success at one speed of the robot against latency; None where nothing was charged there.

    A dashed line at the latency of each backend that a bench measured carries its name.
    """
    shown = [cell for cell in cells if cell.speed == speed and cell.latency_ms > 0]
    if not shown:
        return None
    x = latency_axis([cell.latency_ms for cell in shown], LEFT, RIGHT)
    places = {id(cell): x.at(cell.latency_ms) for cell in shown}
    backends: dict[str, float] = {}
    for cell in shown:
        if cell.backend is not None:
            backends.setdefault(cell.backend, x.at(cell.latency_ms))
    fixed = [cell for cell in shown if cell.backend is None]
    scale = ", logarithmic" if x.log else ""
    return _draw(
        f"Success at {CONTROL_HZ * speed:g} Hz against latency",
        f"latency of an inference, ms{scale}",
        [(x.at(v), f"{v:g}") for v in ticks(x)],
        shown,
        places,
        series_of(cells),
        _lines(fixed),
        backends,
    )


def legend(cells: Sequence[Cell]) -> list[tuple[Markup, str]]:
    """A marker and a name for each series."""
    return [(swatch(style), name) for name, style in series_of(cells).items()]


def _lines(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each series that a line joins, by their delay; a run at delay 0 begins all of them."""
    served = sorted((cell for cell in cells if cell.rate is not None), key=lambda cell: cell.delay)
    still = [cell for cell in served if cell.series == "free"]
    names = dict.fromkeys(cell.series for cell in served if cell.series != "free")
    return [[*still[:1], *(cell for cell in served if cell.series == name)] for name in names]


def _draw(
    title: str,
    axis: str,
    marks: Sequence[tuple[float, str]],
    cells: Sequence[Cell],
    places: Mapping[int, float],
    styles: Mapping[str, int],
    lines: Sequence[Sequence[Cell]],
    backends: Mapping[str, float] | None = None,
) -> Markup:
    lowest = min([cell.low for cell in cells if cell.low is not None], default=0.0)
    y = Axis(max(0.0, (lowest * 20 // 1) / 20), 1.0, BOTTOM, TOP, log=False)
    parts = [line(LEFT, y.at(v), RIGHT, y.at(v), "grid") for v in ticks(y)]
    parts += [text_at(LEFT - 6, y.at(v) + 4, f"{v * 100:.0f} %", "tick", anchor="end") for v in ticks(y)]
    for at, text in marks:
        parts += [line(at, TOP, at, BOTTOM, "grid"), text_at(at, BOTTOM + 16, text, "tick", anchor="middle")]
    parts.append(text_at((LEFT + RIGHT) / 2, BOTTOM + 36, axis, "axis", anchor="middle"))
    for i, (name, at) in enumerate(sorted((backends or {}).items(), key=lambda item: item[1])):
        parts.append(line(at, TOP, at, BOTTOM, "front"))
        parts.append(text_at(at, TOP - 6 - 12 * (i % 3), name, "label halo", anchor=_anchor(at)))
    for joined in lines:
        path = " ".join(
            f"{places[id(c)] + _shift(c, styles):.1f},{y.at(c.rate):.1f}"
            for c in joined
            if c.rate is not None
        )
        group = '<g class="c{}"><polyline points="{}" class="whisker" fill="none" stroke-opacity=".6"/></g>'
        parts.append(Markup(group).format(styles[joined[-1].series] % 6, path))
    parts += [_mark(cell, places[id(cell)] + _shift(cell, styles), y, styles) for cell in cells]
    said = "; ".join(map(_words, cells))
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}. {said}", Markup("").join(parts))  # fmt: skip


def _mark(cell: Cell, at: float, y: Axis, styles: Mapping[str, int]) -> Markup:
    if cell.rate is None or cell.low is None or cell.high is None:
        low, high = y.start - 5, y.start + 5
        inside = [line(at - 5, low, at + 5, high, "median"), line(at - 5, high, at + 5, low, "median")]
    else:
        inside = [
            line(at, y.at(cell.low), at, y.at(cell.high), "whisker"),
            marker(at, y.at(cell.rate), styles[cell.series]),
        ]
    return Markup('<g class="c{}"><title>{}</title>{}</g>').format(
        styles[cell.series] % 6, _words(cell), Markup("").join(inside)
    )


def _words(cell: Cell) -> str:
    where = f"{cell.series}, d = {cell.delay:.3g}, {cell.latency_ms:.3g} ms"
    name = where if cell.backend is None else f"{cell.backend}, {where}"
    if cell.rate is None or cell.low is None or cell.high is None:
        return f"{name}: cannot be served"
    return f"{name}: {cell.rate:.1%} ({percent_interval(cell.low, cell.high)})"


def _shift(cell: Cell, styles: Mapping[str, int]) -> float:
    return 0.0 if cell.series == "free" else APART * (styles[cell.series] - len(styles) / 2)


def _anchor(at: float) -> str:
    return "end" if at > RIGHT - 60 else "start" if at < LEFT + 30 else "middle"
