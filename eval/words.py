"""How many of a thing, in words."""


def counted(number: int | str, noun: str) -> str:
    """Return `1 run`, `3 runs`."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"
