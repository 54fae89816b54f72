"""Batch requests for a policy: of one shape, in numbers that its engines were built for."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from policies.base import Request

T = TypeVar("T")


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4 ... up to `most`: few sizes, which add up to any number of requests."""
    return tuple(2**i for i in range(most.bit_length()))


@dataclass(frozen=True)
class Batching:
    """How requests may be served together; ValueError where `one_at_a_time` and `sizes` contradict."""

    sizes: tuple[int, ...] | None = None  # ascending, from 1; None allows every size
    # Requests that differ in it are not served together: padding one to the other's length would change its
    # numbers, and an engine has one length.
    shape: Callable[[Request], Hashable] = lambda request: None
    one_at_a_time: str | None = None  # why there are no batches although they were configured

    def __post_init__(self) -> None:
        if self.one_at_a_time is not None and self.sizes != (1,):
            raise ValueError(f"sizes must be (1,) where {self.one_at_a_time!r}, got {self.sizes}")

    def most(self, asked: int) -> int:
        """How many of `asked` requests are worth waiting for: one, where no more are served."""
        return 1 if self.sizes == (1,) else asked

    def split(self, items: Sequence[T], request: Callable[[T], Request]) -> Iterator[list[T]]:
        """Yield items in batches, in the order of their shapes' first items; `request` reads an item's."""
        shapes: defaultdict[Any, list[T]] = defaultdict(list)
        for item in items:
            shapes[self.shape(request(item))].append(item)
        for rest in shapes.values():
            while rest:
                size = len(rest) if self.sizes is None else max(s for s in self.sizes if s <= len(rest))
                yield rest[:size]
                rest = rest[size:]
