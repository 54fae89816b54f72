"""Words for messages: counts, and the first few names of many."""

from collections.abc import Iterable

SHOWN = 10


def pluralize(number: int | str, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def shorten(names: Iterable[object], separator: str = ", ") -> str:
    """`a, b, c`, or the first `SHOWN` of them `and N more`."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return separator.join(every[:SHOWN]) + rest


def listing(title: str, names: Iterable[str]) -> str:
    """Word one list of an error: a count and a title, then a line for each of the first names in order."""
    names = sorted(names)
    indent = "\n    "
    return f"\n  {len(names)} {title}:{indent}{shorten(names, indent)}"
