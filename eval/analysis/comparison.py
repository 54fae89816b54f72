"""What the records of two runs say of their difference, as a pure function that ignores their order.

BASE and NEW are the two runs; a difference is NEW - BASE, and a speed-up is BASE's time over NEW's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.analysis.comparable import (
    BASE_AND_NEW,
    Names,
    NotComparable,
    Pair,
    cluster_of,
    differing,
    pair_key,
    refuse,
)
from eval.analysis.latency import ENOUGH_EPISODES
from eval.analysis.sequential import Sequential, read_runs
from eval.analysis.statistics import (
    Interval,
    PairedCounts,
    Ratio,
    Verdict,
    by_cluster,
    episodes_needed,
    mcnemar_exact,
    median_ratio,
    newcombe,
    smallest_difference,
    smallest_margin,
    verdict,
)
from eval.analysis.summary import (
    StageEngagement,
    SuccessRate,
    Summary,
    disagreements,
    success_rate,
    summarise,
)
from eval.records.reader import Run
from eval.records.schema import HOST_TO_HOST, EpisodeRecord, InferenceRecord
from eval.sim.plus import level_of
from policies.base import EpisodeKey
from policies.text import pluralize

MARGIN = 2.0  # percentage points; 189 episodes can show it

Milliseconds = dict[str, dict[EpisodeKey, list[float]]]
"""Stage, or `HOST_TO_HOST`, to the latencies of each episode."""


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        success: over the pairs; errors: episodes of the run that raised, in no pair.
        setting: device, precision, form, denoise and replan steps.
        args: of a policy class of the user's.
        problems: why its backends cannot be said to have served every call; empty is good.
    """

    policy: str
    checkpoint: str | None
    setting: str | None
    args: Mapping[str, Any]
    commit: str | None
    commit_dirty: bool | None
    sources: str | None
    episodes: int
    errors: int
    success: SuccessRate
    engagement: tuple[StageEngagement, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class TaskPairs:
    """The pairs of one task."""

    suite: str
    task_id: int
    instruction: str
    counts: PairedCounts


@dataclass(frozen=True)
class LeftOut:
    """Episodes that are in no pair: recorded by one run alone, or raised in one of them."""

    base_alone: int
    new_alone: int
    raised: int


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared.

    Attributes:
        margin: the loss of success that is accepted, in percentage points.
        tasks: by task; LIBERO-Plus's by base task, whose pairs share a scene and an initial state.
        levels: by LIBERO-Plus's label of difficulty; empty for other suites.
        lost, won: episodes in which BASE alone, or NEW alone, succeeded.
        mcnemar_p: exact, two-sided.
        newcombe: of the difference, episodes drawn from these tasks; by_task: tasks drawn again, None with
            one task or where no episode differs.
        if_errors_count: Newcombe's, had NEW failed and BASE succeeded wherever one of them raised; None
            without such episodes.
        verdict: at the margin, from all the limits above, for a number of pairs that was fixed beforehand.
        sequential: the test that may be read at any time; None where nobody asked and NEW ran to its end.
        smallest_difference: the smallest that McNemar's test could show with so many pairs, a fraction; None
            if none.
        smallest_margin: what so many pairs could show non-inferiority above, if all agreed, a fraction.
        episodes_needed: pairs that could show the margin, if all succeeded.
        more_steps: control steps that NEW took more than BASE, the mean of the episodes that both solved, and
            more_steps_by_task its interval, tasks drawn again; None where there are none. It may show harm
            that success does not.
        latency: speed-up of each stage and host to host, where both runs have it; warm-up, and inferences
            that others ran beside, left out.
    """

    base: Side
    new: Side
    margin: float
    left_out: LeftOut
    counts: PairedCounts
    tasks: tuple[TaskPairs, ...]
    levels: Mapping[int, PairedCounts]
    lost: tuple[str, ...]
    won: tuple[str, ...]
    difference: float
    newcombe: Interval
    by_task: Interval | None
    if_errors_count: Interval | None
    mcnemar_p: float
    verdict: Verdict
    sequential: Sequential | None
    smallest_difference: float | None
    smallest_margin: float
    episodes_needed: int
    more_steps: float | None
    more_steps_by_task: Interval | None
    latency: Mapping[str, Ratio]
    warnings: tuple[str, ...]

    @property
    def sides(self) -> Mapping[str, Side]:
        """Both, by the names of a printed comparison."""
        return dict(zip(BASE_AND_NEW, (self.base, self.new), strict=True))

    @property
    def engaged(self) -> bool:
        """Whether every backend of both runs served all of its calls."""
        return not (self.base.problems or self.new.problems)

    @property
    def decision(self) -> str:
        """The verdict, or that of the sequential test where NEW was stopped by its outcome."""
        if self.sequential is not None and self.sequential.stopped:
            return self.sequential.decision
        return self.verdict

    @property
    def passed(self) -> bool:
        """Whether NEW may take BASE's place: not inferior, and engaged."""
        return self.decision == "non-inferior" and self.engaged

    @property
    def ratios_hold(self) -> bool:
        """Whether the ratios of latencies are of enough quiet episodes to be shown."""
        return all(ratio.episodes >= ENOUGH_EPISODES for ratio in self.latency.values())

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars, ready for JSON."""
        levels = {str(level): asdict(counts) for level, counts in self.levels.items()}
        return asdict(self) | {"levels": levels, "engaged": self.engaged, "passed": self.passed}


def compare(
    base: Run, new: Run, margin: float, names: Names = BASE_AND_NEW, *, sequential: bool = False
) -> Comparison:
    """Compare two runs at a margin in percentage points.

    Args:
        names: of the two runs, in warnings and errors.
        sequential: read the sequential test too; a run that it ended is always read so.

    Raises:
        NotComparable: records are missing or mixed, weights are random or differ, or suite, seeding or time
            limit do; or no episode was finished by both.
    """
    summaries = _summary(names[0], base), _summary(names[1], new)
    refuse(base, new, *summaries, names)
    others = {pair_key(episode.key): episode for episode in new.episodes}
    common = sorted(
        (
            (episode, others[pair_key(episode.key)])
            for episode in base.episodes
            if pair_key(episode.key) in others
        ),
        key=lambda pair: pair[0].key,
    )
    pairs = [pair for pair in common if all(episode.success is not None for episode in pair)]
    if not pairs:
        raise NotComparable(_nothing_shared(base, new, len(common)))
    counts = _count(pairs)
    interval, tasks = newcombe(counts), _tasks(pairs)
    clustered = by_cluster({(task.suite, task.task_id): _differences(task.counts) for task in tasks})
    if_errors_count = newcombe(_count(common)) if len(common) > len(pairs) else None
    sides = [
        _side(run, summary, [pair[i] for pair in pairs])
        for i, (run, summary) in enumerate(zip((base, new), summaries, strict=True))
    ]
    keys = {pair_key(pair[0].key) for pair in pairs}
    more_steps = _more_steps(pairs)
    steps = [difference for differences in more_steps.values() for difference in differences]
    base_ms, new_ms = (_milliseconds(run.inferences, keys) for run in (base, new))
    latency = _latency(base_ms, new_ms)
    return Comparison(
        base=sides[0],
        new=sides[1],
        margin=margin,
        left_out=LeftOut(
            len(base.episodes) - len(common), len(new.episodes) - len(common), len(common) - len(pairs)
        ),
        counts=counts,
        tasks=tasks,
        levels=_levels(pairs),
        lost=tuple(str(n.key) for b, n in pairs if b.success and not n.success),
        won=tuple(str(n.key) for b, n in pairs if n.success and not b.success),
        difference=counts.difference,
        newcombe=interval,
        by_task=clustered,
        if_errors_count=if_errors_count,
        mcnemar_p=mcnemar_exact(counts),
        sequential=read_runs(base, new, margin, asked=sequential),
        verdict=verdict(interval.hull(clustered).hull(if_errors_count), margin),
        smallest_difference=smallest_difference(counts.n),
        smallest_margin=smallest_margin(counts.n, counts.both + counts.lost),
        episodes_needed=episodes_needed(margin),
        more_steps=sum(steps) / len(steps) if steps else None,
        more_steps_by_task=by_cluster(more_steps),
        latency=latency,
        warnings=(
            *_own_warnings(sides, summaries, names),
            *differing(base, new, pairs, names),
            *_few_episodes(latency, [len(times.get(HOST_TO_HOST, ())) for times in (base_ms, new_ms)], names),
        ),
    )


def engagement_problems(run: Run, engagement: Sequence[StageEngagement]) -> tuple[str, ...]:
    """Say why a run's backends cannot be said to have served every call; empty for one without stages."""
    problems = disagreements(engagement, run.inferences)
    if not run.run:
        problems.append("run.json is missing, which says whether backends engaged")
    return tuple(problems)


def _summary(name: str, run: Run) -> Summary:
    try:
        return summarise(run)
    except ValueError as error:
        raise NotComparable(f"{name}: {error}") from error


def _nothing_shared(base: Run, new: Run, common: int) -> str:
    if common:
        return f"no episode was finished by both runs: of {common} in both, each raised in one of them"
    in_base, in_new = (f"{len(run.episodes)} from {min(e.key for e in run.episodes)}" for run in (base, new))
    return f"no episode is in both runs ({in_base}; {in_new}); give both the same seed, tasks and episodes"


def _count(pairs: Iterable[Pair]) -> PairedCounts:
    """Count pairs by outcome; one that raised counts against NEW."""
    outcomes = [(base.success is not False, new.success is True) for base, new in pairs]
    return PairedCounts(
        both=outcomes.count((True, True)),
        lost=outcomes.count((True, False)),
        won=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )


def _differences(counts: PairedCounts) -> list[int]:
    return [-1] * counts.lost + [1] * counts.won + [0] * (counts.both + counts.neither)


def _tasks(pairs: Iterable[Pair]) -> tuple[TaskPairs, ...]:
    by_task: defaultdict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_task[cluster_of(pair[0])].append(pair)
    return tuple(
        TaskPairs(suite, task_id, of_task[0][0].instruction, _count(of_task))
        for (suite, task_id), of_task in sorted(by_task.items())
    )


def _more_steps(pairs: Iterable[Pair]) -> dict[tuple[str, int], list[int]]:
    """By task, how many more steps NEW took in each episode that both solved."""
    differences: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for base, new in pairs:
        if base.success and new.success:
            differences[cluster_of(base)].append(new.steps - base.steps)
    return dict(differences)


def _levels(pairs: Iterable[Pair]) -> dict[int, PairedCounts]:
    by_level: defaultdict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if (level := level_of(pair[0].suite, pair[0].task_id)) is not None:
            by_level[level].append(pair)
    return {level: _count(by_level[level]) for level in sorted(by_level)}


def _side(run: Run, summary: Summary, episodes: Iterable[EpisodeRecord]) -> Side:
    return Side(
        policy=summary.policy,
        checkpoint=summary.checkpoint,
        setting=summary.setting,
        args=_args(run),
        commit=summary.commit,
        commit_dirty=summary.commit_dirty,
        sources=summary.sources,
        episodes=summary.episodes,
        errors=summary.total.errors,
        success=success_rate(episodes),
        engagement=summary.engagement,
        problems=engagement_problems(run, summary.engagement),
    )


def _args(run: Run) -> Mapping[str, Any]:
    args = (run.run.get("policy") or {}).get("args")
    return args if isinstance(args, Mapping) else {}


def _latency(base: Milliseconds, new: Milliseconds) -> dict[str, Ratio]:
    """Compare what both runs have."""
    ratios = {name: median_ratio(base[name], new[name]) for name in base if name in new}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _few_episodes(latency: Mapping[str, Ratio], episodes: Sequence[int], names: Names) -> list[str]:
    """Say that the ratios are of too few episodes for intervals over them.

    Args:
        episodes: of the pairs, how many each of the two runs has latencies of.
    """
    whole = latency.get(HOST_TO_HOST)
    if whole is None or whole.episodes >= ENOUGH_EPISODES:
        return []
    trust = (
        "which gives no interval" if whole.interval is None else "too few for their intervals to be believed"
    )
    return [
        f"latency ratios are of {pluralize(whole.episodes, 'episode')} ({names[0]} has latencies of "
        f"{episodes[0]}, {names[1]} of {episodes[1]}), {trust}; record {ENOUGH_EPISODES} or more in both: "
        "runner.quiet_episodes=N with runner=ray, or more episodes"
    ]


def _milliseconds(inferences: Iterable[InferenceRecord], keys: set[EpisodeKey]) -> Milliseconds:
    """What a robot would feel in these episodes; their other inferences are left out."""
    times: defaultdict[str, defaultdict[EpisodeKey, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in inferences:
        if record.condition == "alone" and (key := pair_key(record.key)) in keys:
            for name, milliseconds in record.times_ms.items():
                times[name][key].append(milliseconds)
    return {name: dict(by_episode) for name, by_episode in times.items()}


def _own_warnings(sides: Iterable[Side], summaries: Iterable[Summary], names: Names) -> list[str]:
    """Name the run in what its own summary warns of; its engagement problems are `Side.problems`."""
    return [
        f"{name}: {warning}"
        for name, side, summary in zip(names, sides, summaries, strict=True)
        for warning in summary.warnings
        if warning not in side.problems
    ]
