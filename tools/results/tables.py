"""The README's tables of results, as Markdown."""

from collections.abc import Iterable
from itertools import groupby

from eval.analysis.statistics import wilson
from eval.render.markdown import markdown_table
from optim.bench.tables import HOST_TO_HOST
from policies.pi05.dims import STAGES
from tools.results.bench import Bench
from tools.results.success import Outcome

NONE = "-"
OUTCOMES = (
    "policy",
    "denoise steps",
    "weights",
    "suite, protocol",
    "success (95 % Wilson)",
    "machine",
    "source",
)


def success_table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return a row for each success; neighbours that differ in their denoise steps alone share one."""
    rows = []
    for (policy, *cells), group in groupby(outcomes, _cells):
        steps = [str(of.denoise_steps or NONE) for of in group]
        if len(steps) > 1:
            cells[2] += ", each"
        rows.append((policy, ", ".join(steps), *cells))
    return markdown_table(OUTCOMES, rows, texts=len(OUTCOMES))


def infer_sentences(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the latencies that were taken in a run of trained weights."""
    return [
        f"Host to host, `{of.policy}` with the {of.weights} weights takes {of.infer_p50_ms:g} ms "
        f"on {of.machine} (median, n = {of.infer_n}, [source]({of.report}))."
        for of in outcomes
        if of.infer_p50_ms is not None
    ]


def latency_table(bench: Bench) -> list[str]:
    """Return a row for each policy: stages at the first number of denoise steps, host to host at each."""
    [(most, first), *_] = bench.timings.items()
    columns = (
        "policy",
        *(f"{stage}, {most} steps" for stage in STAGES),
        *(f"{HOST_TO_HOST}, {steps} steps" for steps in bench.timings),
        f"speed-up, {most} steps",
        f"least cosine with float32, {most} steps",
    )
    rows = []
    for i, timing in enumerate(first):
        engine = bench.engines.get(timing.policy)
        rows.append(
            (
                f"{timing.policy} ({engine})" if engine else timing.policy,
                *(f"{timing.p50_ms[stage]:.1f} ms" for stage in STAGES),
                *(f"{timings[i].p50_ms[HOST_TO_HOST]:.1f} ms" for timings in bench.timings.values()),
                f"{timing.speed_up:.2f}x",
                f"{timing.cosine:.6f}",
            )
        )
    return markdown_table(columns, rows)


def _cells(of: Outcome) -> tuple[str, ...]:
    """Return the cells of a row but for the denoise steps."""
    interval = wilson(of.successes, of.finished)
    errors = f", errors: {of.errors}" if of.errors else ""
    records = f", [records]({of.records})" if of.records else ""
    batches = f", batches of up to {of.max_batch}" if of.max_batch > 1 else ""
    return (
        f"{of.policy}{batches}",
        of.weights,
        f"{of.suite}, {of.protocol}",
        f"{of.successes} / {of.finished} ({interval.low * 100:.1f} to {interval.high * 100:.1f} %){errors}",
        of.machine,
        f"[report]({of.report}){records}",
    )
