"""Names in a message: the first few, and how many more there are."""

from collections.abc import Iterable

SHOWN = 10


def listing(names: Iterable[object], separator: str = ", ") -> str:
    """Return `a, b, c`, or the first `SHOWN` of them `and N more`."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return separator.join(every[:SHOWN]) + rest
