"""Lines about clients: so many in a minute about one address, and about all; who writes more is told once."""

import time
from collections import Counter
from collections.abc import Callable

from policies.remote.link import one_line

WINDOW_S = 60.0
MAX_OF_ADDRESS = 40  # in a window
MAX_OF_ALL = 200


class Lines:
    """Prints lines within these limits.

    Args:
        say: prints one.
        now_s: a clock.
    """

    def __init__(self, say: Callable[[str], None], now_s: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._now_s = now_s
        self._since_s = now_s()
        self._counts: Counter[str] = Counter()  # by address, in this window
        self._hidden = 0

    def tell(self, address: str, words: str) -> str | None:
        """Print what happened with an address, as one short line; return it, or None where it is too many."""
        if self._now_s() - self._since_s >= WINDOW_S:
            self._begin_window()
        if self._counts.get(address, 0) >= MAX_OF_ADDRESS or self._counts.total() >= MAX_OF_ALL:
            self._hidden += 1
            return None
        self._counts[address] += 1
        line = one_line(words)
        self._say(line)
        if self._counts.total() == MAX_OF_ALL:
            self._say(f"all clients have had {MAX_OF_ALL} lines in this minute; the next ones are not shown")
        elif self._counts[address] == MAX_OF_ADDRESS:
            self._say(f"{address} has had {MAX_OF_ADDRESS} lines in this minute; the next ones are not shown")
        return line

    def _begin_window(self) -> None:
        if self._hidden:
            self._say(f"lines about clients that were not shown: {self._hidden}")
        self._since_s = self._now_s()
        self._counts.clear()
        self._hidden = 0
