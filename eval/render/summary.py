"""A run's summary as tables for a console."""

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eval.analysis.latency import LatencyStats
from eval.analysis.summary import SuccessRate, Summary
from policies.text import pluralize


def render(summary: Summary) -> RenderableType:
    """Return a summary for a rich console; texts from records are never read as markup."""
    parts: list[RenderableType] = []
    if summary.random_weights:
        parts.append(Text(f"*** {summary.weights_label} ***", style="bold white on red"))
    parts += [_provenance(summary), _success(summary)]
    if summary.errors:
        parts.append(_errors(summary))
    parts.append(_latency(summary))
    if summary.infer_under_load is not None:
        parts.append(_latency_under_load(summary.infer_under_load, summary))
    if summary.engagement:
        parts.append(_engagement(summary))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in summary.warnings]
    return Group(*parts)


def _table(title: str, first: str, *rest: str) -> Table:
    """Return an empty table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _provenance(summary: Summary) -> Text:
    commit = "unknown" if summary.commit is None else summary.commit[:12]
    if summary.commit_dirty:
        commit += " with uncommitted changes"
    sha256 = f" (sha256 {summary.checkpoint_sha256[:12]})" if summary.checkpoint_sha256 else ""
    items = {
        "policy": summary.policy_label,
        "checkpoint": f"{summary.checkpoint or 'none'}{sha256}",
        "seeding": summary.seeding,
        "GL": summary.gl_backend or "unknown",
        "commit": commit,
    }
    if summary.setting:
        items["setting"] = summary.setting
    if summary.weights_label:
        items["weights"] = summary.weights_label
    return Text(" | ".join(f"{name}: {value}" for name, value in items.items()))


def _success(summary: Summary) -> Table:
    of_planned = "" if summary.planned_episodes is None else f" of {summary.planned_episodes} planned"
    table = _table(
        f"Success (n = {pluralize(summary.episodes, 'episode')}{of_planned})",
        "task",
        "success / n",
        "rate",
        "95 % Wilson",
        "errors",
    )
    for task in summary.tasks:
        name = Text(f"{task.suite} {task.task_id}  {task.instruction}")
        table.add_row(name, *_rate_cells(task.success))
    table.add_section()
    for suite, success in summary.suites.items():
        table.add_row(Text(suite, style="bold"), *_rate_cells(success))
    if len(summary.suites) > 1:
        table.add_row(Text("all suites, pooled", style="bold"), *_rate_cells(summary.total))
    return table


def _rate_cells(success: SuccessRate) -> tuple[str, str, str, Text]:
    errors = Text(str(success.errors), style="bold red" if success.errors else "")
    counts = f"{success.successes} / {success.finished}"
    if success.rate is None or success.low is None or success.high is None:
        return counts, "-", "-", errors
    return counts, f"{success.rate:.1%}", f"{success.low:.1%} to {success.high:.1%}", errors


def _errors(summary: Summary) -> Table:
    retried = sum(error.retried for error in summary.errors)
    table = Table(
        title=f"Errors (n = {len(summary.errors) - retried}, and {retried} replaced by a retry)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("episode", "type", "message"):
        table.add_column(name, overflow="fold")
    for error in summary.errors:
        episode = f"{error.episode} (retried)" if error.retried else error.episode
        table.add_row(Text(episode), Text(error.error_type), Text(error.error_message))
    return table


def _latency(summary: Summary) -> RenderableType:
    warmup = f"{pluralize(summary.warmup_inferences, 'warm-up inference')} left out"
    if summary.infer is None:
        return Text(f"Latency: n = 0 inferences, {warmup}")
    return _latency_table(f"Latency ({warmup})", summary.infer, summary.stages)


def _latency_under_load(infer: LatencyStats, summary: Summary) -> RenderableType:
    title = f"Latency under load, {summary.mean_batch:.1f} requests a batch: not what a robot would feel"
    return _latency_table(title, infer, summary.stages_under_load)


def _latency_table(title: str, infer: LatencyStats, stages: Mapping[str, LatencyStats]) -> Table:
    table = _table(title, "", "n", "p50 ms", "p95 ms", "p99 ms", "mean ms", "Hz (mean)")
    for stage, stats in stages.items():
        table.add_row(Text(stage), *_latency_cells(stats))
    table.add_section()
    table.add_row(Text("host to host", style="bold"), *_latency_cells(infer))
    return table


def _latency_cells(stats: LatencyStats) -> tuple[str, ...]:
    milliseconds = (stats.p50_ms, stats.p95_ms, stats.p99_ms, stats.mean_ms)
    return str(stats.n), *(f"{ms:.2f}" for ms in milliseconds), f"{stats.hz:.1f}"


def _engagement(summary: Summary) -> Table:
    table = _table("Engagement", "stage", "backend", "calls", "misses", "refused")
    for stage in summary.engagement:
        bad = stage.calls == 0 or stage.misses > 0 or stage.refused > 0
        counts = (str(count) for count in (stage.calls, stage.misses, stage.refused))
        cells = (stage.stage, stage.backend, *counts)
        table.add_row(*(Text(cell) for cell in cells), style="bold red" if bad else "")
    return table
