"""A run's summary for a console."""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from eval.analysis.latency import LatencyStats
from eval.analysis.summary import ClockSummary, SuccessRate, Summary
from eval.records.schema import HOST_TO_HOST
from eval.records.trees import spell_code
from eval.render.tables import (
    LINE,
    NONE,
    Block,
    Items,
    Row,
    Sentence,
    Table,
    banner,
    percent_interval,
    to_console,
)
from policies.text import pluralize

SUCCESS = ("task", "success / n", "rate", "95 % Wilson", "errors")
ERRORS = ("episode", "type", "message")
LATENCY = ("", "n", "p50 ms", "p95 ms", "p99 ms", "mean ms", "Hz (mean)")
ENGAGEMENT = ("stage", "backend", "calls", "misses", "refused")


def render(summary: Summary) -> RenderableType:
    """For a console; texts from records are never read as its markup."""
    return to_console(_blocks(summary))


def _blocks(summary: Summary) -> Iterator[Block]:
    if summary.random_weights:
        yield banner(str(summary.weights_label))
    yield Sentence(_provenance(summary))
    yield _success(summary)
    if summary.clock is not None:
        yield Sentence(_clock(summary.clock))
    if summary.errors:
        yield _errors(summary)
    yield _latency(summary)
    if summary.infer_under_load is not None:
        caption = (
            f"Latency under load, {summary.mean_batch:.1f} requests a batch: not what a robot would feel"
        )
        yield _latency_table(caption, summary.infer_under_load, summary.stages_under_load)
    if summary.engagement:
        yield Table(ENGAGEMENT, _engagement_rows(summary), "Engagement")
    yield Items([f"warning: {warning}" for warning in summary.warnings], "yellow")


def _provenance(summary: Summary) -> str:
    code = spell_code(summary.commit, dirty=summary.commit_dirty, sources=summary.sources)
    sha256 = f" (sha256 {summary.checkpoint_sha256[:12]})" if summary.checkpoint_sha256 else ""
    items = {
        "policy": summary.policy_label,
        "checkpoint": f"{summary.checkpoint or 'none'}{sha256}",
        "seeding": summary.seeding,
        "GL": summary.gl_backend or "unknown",
        "commit": code.removeprefix("commit "),
    }
    if summary.setting:
        items["setting"] = summary.setting
    if summary.weights_label:
        items["weights"] = summary.weights_label
    return " | ".join(f"{name}: {value}" for name, value in items.items())


def _clock(clock: ClockSummary) -> str:
    """Word what the clock did: `clock: async, 200 ms, d = 4.0 | robot time to success: 3.9 s | ...`."""
    speed = "" if clock.speed == 1.0 else f", speed {clock.speed:g}"
    delay = "" if clock.delay is None else f", d = {clock.delay:.1f}"
    items = {
        "clock": f"{clock.mode}, latency {clock.latency}{speed}{delay}",
        "robot time to success": None if clock.robot_s is None else f"{clock.robot_s:.1f} s (median)",
        "held": f"{clock.held_steps:.1f} steps an episode",
        "age of actions": None if clock.age is None else f"{clock.age:.1f} steps",
        "seam": None if clock.seam is None else f"{clock.seam:.2f}",
        "note": None if clock.reproducible else "measured latencies: not reproducible",
    }
    return " | ".join(f"{name}: {value}" for name, value in items.items() if value is not None)


def _success(summary: Summary) -> Table:
    of_planned = "" if summary.planned_episodes is None else f" of {summary.planned_episodes} planned"
    caption = f"Success (n = {pluralize(summary.episodes, 'episode')}{of_planned})"
    return Table(SUCCESS, _success_rows(summary), caption)


def _success_rows(summary: Summary) -> Iterator[Row]:
    for task in summary.tasks:
        yield f"{task.suite} {task.task_id}  {task.instruction}", *_rate_cells(task.success)
    yield LINE
    for suite, success in summary.suites.items():
        yield Text(suite, style="bold"), *_rate_cells(success)
    if len(summary.suites) > 1:
        yield Text("all suites, pooled", style="bold"), *_rate_cells(summary.total)


def _rate_cells(success: SuccessRate) -> Row:
    return (
        f"{success.successes} / {success.finished}",
        NONE if success.rate is None else f"{success.rate:.1%}",
        percent_interval(success.low, success.high),
        Text(str(success.errors), style="bold red" if success.errors else ""),
    )


def _errors(summary: Summary) -> Table:
    retried = sum(error.retried for error in summary.errors)
    rows = [
        (
            f"{error.episode} (retried)" if error.retried else error.episode,
            error.error_type,
            error.error_message,
        )
        for error in summary.errors
    ]
    caption = f"Errors (n = {len(summary.errors) - retried}, and {retried} replaced by a retry)"
    return Table(ERRORS, rows, caption, texts=len(ERRORS))


def _latency(summary: Summary) -> Block:
    warmup = f"{pluralize(summary.warmup_inferences, 'warm-up inference')} left out"
    if summary.infer is None:
        return Sentence(f"Latency: n = 0 inferences, {warmup}")
    return _latency_table(f"Latency ({warmup})", summary.infer, summary.stages)


def _latency_table(caption: str, infer: LatencyStats, stages: Mapping[str, LatencyStats]) -> Table:
    rows: list[Row] = [(stage, *_latency_cells(stats)) for stage, stats in stages.items()]
    return Table(LATENCY, [*rows, LINE, (Text(HOST_TO_HOST, style="bold"), *_latency_cells(infer))], caption)


def _latency_cells(stats: LatencyStats) -> tuple[str, ...]:
    milliseconds = (stats.p50_ms, stats.p95_ms, stats.p99_ms, stats.mean_ms)
    return str(stats.n), *(f"{ms:.2f}" for ms in milliseconds), f"{stats.hz:.1f}"


def _engagement_rows(summary: Summary) -> Iterator[Row]:
    for stage in summary.engagement:
        bad = stage.calls == 0 or stage.misses > 0 or stage.refused > 0
        cells = (stage.stage, stage.backend, *map(str, (stage.calls, stage.misses, stage.refused)))
        yield [Text(cell, style="bold red" if bad else "") for cell in cells]
