"""The README's table: what the fast policies win over the baseline, and whether they lose success by it."""

from eval.analysis.comparison import ENOUGH_EPISODES, MARGIN
from eval.analysis.overview import Entry, Source, overview
from eval.records.schema import HOST_TO_HOST
from eval.render.tables import NONE, Block, Sentence, Table, Written
from tools.results.runs import DATA, REPORTS, Runs
from tools.results.success import SUCCESS, rate

NAME = "2026-11-27_libero_spatial_500_h100"  # of the data and their report
COLUMNS = ("policy", SUCCESS, "host to host, p50 ms", "speed-up (95 % bootstrap)")
CAPTION = """\
The {episodes} official episodes of libero_spatial, {steps} denoise steps, {device}, {dtype}
([report]({report}.md), [records]({records}/runs)).
The weights are the small reference network that shipped until 2026-11-28, trained on a scripted expert for
libero_spatial; no published checkpoint was evaluated."""
NOTES = f"""\
Latency is from observation to action, of the episodes that ran alone on the machine, without warm-up; fewer
than {ENOUGH_EPISODES} of them give none here. `native_fp8` ran on a second machine of the same kind, whose
processor is faster. `baseline` waits for the processor, so measured there its speed-up would be smaller.
[All results]({REPORTS}/README.md), larger networks among them."""


def headline(runs: Runs) -> list[Block]:
    """Build the table of the runs of `NAME`.

    Raises:
        ValueError: the weights are not those that the caption names.
    """
    entries = overview([Source(folder, run) for folder, run in runs.items()], MARGIN).entries
    if any(entry.summary.checkpoint != "reference" for entry in entries):
        raise ValueError(f"the README's table is of the reference weights, got others in {NAME}")
    about = entries[0].run.run["policy"]
    caption = CAPTION.format(
        episodes=entries[0].summary.planned_episodes,
        steps=about["denoise_steps"],
        device=about["device"],
        dtype=about["dtype"],
        report=REPORTS / NAME,
        records=DATA / NAME,
    )
    return [
        Sentence(Written(caption)),
        Table(COLUMNS, [_row(entry) for entry in entries]),
        Sentence(Written(NOTES)),
    ]


def _row(entry: Entry) -> tuple[str, ...]:
    total, infer = entry.summary.total, entry.summary.infer
    assert infer is not None
    enough = entry.summary.quiet_episodes >= ENOUGH_EPISODES
    latency = f"{infer.p50_ms:.1f} (n = {infer.n})" if enough else NONE
    return (
        entry.summary.policy,
        rate(total.successes, total.finished, total.errors),
        latency,
        _speed_up(entry),
    )


def _speed_up(entry: Entry) -> str:
    """The ratio and its interval; none of fewer than `ENOUGH_EPISODES` quiet episodes."""
    if entry.comparison is None:
        return "1.0x"
    paired = entry.comparison.latency[HOST_TO_HOST]
    if entry.speed_up is None or paired.interval is None or paired.episodes < ENOUGH_EPISODES:
        return NONE
    return f"{entry.speed_up:.1f}x ({paired.interval.low:.1f} to {paired.interval.high:.1f})"
