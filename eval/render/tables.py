"""Tables and the sentences around them: described once as blocks, written for a console or as Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from policies.text import crop, visible

NONE = "-"  # a cell without a value
LEAST_LONG = 12  # characters of a `Long`

Cell = str | Text
"""What a cell holds; the style of a `Text` is seen on a console alone."""


class Long(str):
    """A text that loses its middle on a console where its column is too narrow for it."""

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(LEAST_LONG, len(self)), len(self))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(crop(visible(self), options.max_width), no_wrap=True)


Row = Sequence[Cell]

LINE: Row = ()
"""Among the rows of a table: a line across it on a console, nothing in Markdown."""


class Written(str):
    """Markdown of this project's own, in which nothing is escaped."""


class Block(Protocol):
    """A part of a text. Texts from records are never read as markup, of a console or of Markdown."""

    def console(self) -> Iterable[RenderableType]:
        """What is printed, one thing below the other."""

    def markdown(self) -> list[str]:
        """The lines in Markdown; none where there is nothing to say."""


@dataclass(frozen=True)
class Heading:
    """A heading; on a console a line like any other."""

    text: str
    level: int = 1

    def console(self) -> Iterable[RenderableType]:
        yield Text(visible(self.text))

    def markdown(self) -> list[str]:
        return [f"{'#' * self.level} {_escaped(self.text)}"]


@dataclass(frozen=True)
class Sentence:
    """A paragraph of its own.

    Attributes:
        style: rich's, for the console alone.
        strong: whether it is bold in both.
    """

    text: str
    style: str = ""
    strong: bool = False

    def console(self) -> Iterable[RenderableType]:
        yield Text(visible(self.text), style=_console_style(self.style, self.strong))

    def markdown(self) -> list[str]:
        return [_emphasised(self.text, self.strong)]


def banner(label: str) -> Sentence:
    """What must be seen before any number: that weights are random."""
    return Sentence(f"*** {label} ***", "white on red", strong=True)


@dataclass(frozen=True)
class Items:
    """Lines on a console, a list in Markdown; `style` and `strong` as for `Sentence`."""

    texts: Sequence[str]
    style: str = ""
    strong: bool = False

    def console(self) -> Iterable[RenderableType]:
        for text in self.texts:
            yield Text(visible(text), style=_console_style(self.style, self.strong))

    def markdown(self) -> list[str]:
        return [f"- {_emphasised(text, self.strong)}" for text in self.texts]


@dataclass(frozen=True)
class Table:
    """A table whose first columns are texts, on the left, and whose others are numbers, on the right.

    Attributes:
        rows: cells under `columns`, and `LINE` between them.
        caption: stands above; empty for none.
        texts: how many columns are texts.
        last_is_text: whether the last column is one too.
        blank_repeats: whether a console leaves out a first cell that is that of the row above.
        dense: whether a console puts the columns close together.
    """

    columns: Sequence[str]
    rows: Iterable[Row]
    caption: str = ""
    texts: int = 1
    last_is_text: bool = False
    blank_repeats: bool = False
    dense: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))  # so that both forms can be written of one table

    def console(self) -> Iterable[RenderableType]:
        table = RichTable(
            title=Text(visible(self.caption)) if self.caption else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0) if self.dense else (0, 1),
            pad_edge=False,
        )
        for name, is_text in zip(self.columns, self._are_texts(), strict=True):
            table.add_column(
                name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
            )
        before = None
        for row in self.rows:
            if not row:
                table.add_section()
                continue
            first, *others = row
            begin = "" if self.blank_repeats and first == before else first
            table.add_row(*(_seen(cell) for cell in (begin, *others)))
            before = first
        yield table

    def markdown(self) -> list[str]:
        rules = ["---" if is_text else "---:" for is_text in self._are_texts()]
        lines = [self.columns, rules, *(row for row in self.rows if row)]
        table = ["| " + " | ".join(map(_escaped_cell, line)) + " |" for line in lines]
        return [f"{_escaped(self.caption)}:", "", *table] if self.caption else table

    def _are_texts(self) -> list[bool]:
        last = len(self.columns) - 1
        return [i < self.texts or (self.last_is_text and i == last) for i in range(len(self.columns))]


def to_console(blocks: Iterable[Block]) -> RenderableType:
    """What a rich console prints."""
    return Group(*(part for block in blocks for part in block.console()))


def to_markdown(blocks: Iterable[Block]) -> str:
    """A document, with a blank line between the blocks."""
    written = ("\n".join(block.markdown()) for block in blocks)
    return "\n\n".join(text for text in written if text) + "\n"


def part_groups(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with a `LINE` wherever the first cell changes."""
    before = None
    for row in rows:
        if before not in (None, row[0]):
            yield LINE
        yield row
        before = row[0]


def percent_interval(low: float | None, high: float | None) -> str:
    """Write `97.2 to 99.9 %` of two fractions; `NONE` without them."""
    return NONE if low is None or high is None else f"{low * 100:.1f} to {high * 100:.1f} %"


def _console_style(style: str, strong: bool) -> str:
    return f"bold {style}".strip() if strong else style


def _emphasised(text: str, strong: bool) -> str:
    return f"**{_escaped(text)}**" if strong else _escaped(text)


def _seen(cell: Cell) -> RenderableType:
    """A cell for a console."""
    if isinstance(cell, Long):
        return cell
    return Text(visible(cell.plain), cell.style) if isinstance(cell, Text) else Text(visible(cell))


def _escaped_cell(cell: Cell) -> str:
    return _escaped(cell.plain if isinstance(cell, Text) else cell).replace("|", r"\|")


def _escaped(text: str) -> str:
    """In Markdown: no HTML, and no image that a viewer would fetch."""
    if isinstance(text, Written):
        return text
    return visible(text).replace("<", "&lt;").replace("![", r"!\[")
