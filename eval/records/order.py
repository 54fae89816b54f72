"""A seeded order of episodes in which all tasks of a run come up evenly, from the first episode on."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from policies.base import EpisodeKey
from policies.seeding import stable_seed


def balanced_order(
    keys: Iterable[EpisodeKey], group_of: Callable[[EpisodeKey], Hashable]
) -> list[EpisodeKey]:
    """Shuffle keys so that each group comes up in proportion: with equal groups, in rounds of one of each.

    The order depends on the set of keys alone. An episode's place says nothing of its outcome, so a test that
    stops early reads a fair sample of the whole.
    """
    groups: defaultdict[Hashable, list[tuple[int, EpisodeKey]]] = defaultdict(list)
    for key in keys:
        draw = stable_seed("order", key.suite, key.task_id, key.episode, key.seed)
        groups[group_of(key)].append((draw, key))
    placed = [
        ((rank + 0.5) / len(group), draw, key)
        for group in groups.values()
        for rank, (draw, key) in enumerate(sorted(group))
    ]
    return [key for _, _, key in sorted(placed)]
