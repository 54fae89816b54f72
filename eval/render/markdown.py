"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, *, last_is_text: bool = False
) -> list[str]:
    """Return the lines of a table whose first columns are texts and whose others are numbers."""
    last = len(columns) - 1
    rules = ["---" if i < texts or (last_is_text and i == last) else "---:" for i in range(len(columns))]
    lines = [columns, rules, *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
