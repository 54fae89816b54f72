"""A run's summary for a console: what it is and how fast, then success by task, and the verdict last."""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from eval.analysis.latency import ENOUGH_EPISODES, ENOUGH_FOR, LatencyStats
from eval.analysis.summary import ClockSummary, SuccessRate, Summary
from eval.records.schema import HOST_TO_HOST
from eval.records.trees import spell_code
from eval.render.tables import (
    LINE,
    NONE,
    Block,
    Items,
    Long,
    Row,
    Sentence,
    Table,
    banner,
    percent_interval,
    to_console,
)
from policies.text import distinct, pluralize, shorten

SUCCESS = ("task", "success", "rate", "95 % Wilson", "errors")
ERRORS = ("episode", "type", "message")
LATENCY = ("", "n", "p50 ms", "p95 ms", "p99 ms", "mean ms", "Hz (mean)")
ENGAGEMENT = ("stage", "backend", "calls", "misses", "refused")


def render(summary: Summary) -> RenderableType:
    """For a console; texts from records are never read as its markup."""
    return to_console(_blocks(summary))


def verdict(summary: Summary) -> str:
    """Say in a sentence what the run shows, or why it is no result."""
    total = summary.total
    if total.rate is None:
        return "No result: no episode finished"
    counted = (
        f"{total.successes} of {pluralize(total.finished, 'episode')} succeeded "
        f"({total.rate:.1%}; 95 % interval {percent_interval(total.low, total.high)})"
    )
    if summary.random_weights:
        return f"No result: {summary.weights_label}; {counted}"
    left = (summary.planned_episodes or 0) - summary.episodes
    if left > 0 and summary.decision is None:
        return f"Not finished, {pluralize(left, 'episode')} left: {counted}"
    idle = [stage.stage for stage in summary.engagement if not stage.engaged]
    if idle:
        return f"No result of these backends, of which {shorten(idle)} did not serve every call: {counted}"
    errors = f", {pluralize(total.errors, 'error')}" if total.errors else ""
    latency = ""
    if summary.infer is not None and summary.quiet_episodes >= ENOUGH_EPISODES:
        latency = (
            f"; {summary.infer.p50_ms:.1f} ms from observation to action (median, n = {summary.infer.n})"
        )
    decision = f"; ended by the test against its base: {summary.decision}" if summary.decision else ""
    return f"Result: {counted}{errors}{decision}{latency}"


def _blocks(summary: Summary) -> Iterator[Block]:
    if summary.random_weights:
        yield banner(str(summary.weights_label))
    yield Sentence(_provenance(summary))
    if summary.clock is not None:
        yield Sentence(_clock(summary.clock))
    yield _latency(summary)
    if summary.infer_under_load is not None:
        caption = (
            f"Latency under load, {summary.mean_batch:.1f} requests a batch: not what a robot would feel"
        )
        yield _latency_table(caption, summary.infer_under_load, summary.stages_under_load)
    if summary.engagement:
        yield Table(ENGAGEMENT, _engagement_rows(summary), "Engagement")
    if summary.errors:
        yield _errors(summary)
    yield Items([f"warning: {warning}" for warning in summary.warnings], "yellow")
    yield _success(summary)
    yield Sentence(verdict(summary), strong=True)


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
        "guided": clock.guidance,
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
    return Table(SUCCESS, _success_rows(summary), caption, dense=True)


def _success_rows(summary: Summary) -> Iterator[Row]:
    for suite, success in summary.suites.items():
        tasks = [task for task in summary.tasks if task.suite == suite]
        for task, name in zip(tasks, distinct([task.instruction for task in tasks]), strict=True):
            yield Long(f"{task.task_id:>2} {name}"), *_rate_cells(task.success)
        yield LINE
        yield Text(suite, style="bold"), *_rate_cells(success)
        yield LINE
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
    p95, p99 = (
        f"{ms:.2f}" if stats.n >= ENOUGH_FOR[name] else NONE
        for name, ms in (("p95", stats.p95_ms), ("p99", stats.p99_ms))
    )
    return str(stats.n), f"{stats.p50_ms:.2f}", p95, p99, f"{stats.mean_ms:.2f}", f"{stats.hz:.1f}"


def _engagement_rows(summary: Summary) -> Iterator[Row]:
    for stage in summary.engagement:
        cells = (stage.stage, stage.backend, *map(str, (stage.calls, stage.misses, stage.refused)))
        yield [Text(cell, style="" if stage.engaged else "bold red") for cell in cells]
