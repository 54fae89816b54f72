"""A table in Markdown, for those who write no blocks."""

from collections.abc import Iterable, Sequence

from eval.render.tables import Table


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, *, last_is_text: bool = False
) -> list[str]:
    return Table(columns, rows, texts=texts, last_is_text=last_is_text).markdown()
