"""Tables of a bench: `python -m optim.bench_table bench.json [--report FILE.md]` prints what its record says.

Every number here is a pure function of the record that `optim.bench` writes.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import RenderableType

from eval.analysis.latency import LatencyStats, latency_stats
from eval.analysis.summary import is_random
from eval.records.schema import AROUND, HOST_TO_HOST, around_ms
from eval.records.trees import joint_id, spell_code
from eval.render.console import print_error, report_console
from eval.render.tables import (
    NONE,
    Block,
    Heading,
    Items,
    Sentence,
    Table,
    part_groups,
    to_console,
    to_markdown,
)
from policies.files import path_argument
from policies.pi05.dims import STAGES

ALL_STAGES = "all stages"
TIMES = ("policy", "component", "n", "p50 ms", "p95 ms", "p99 ms", "speed-up", "of roofline")
GLANCE = ("setting", "policy", "all stages p50 ms", "host to host p50 ms", "speed-up, host to host", "cosine")
ENGAGEMENT = ("policy", "stage", "backend", "calls", "expected", "misses", "details")
PARITY = ("policy", "cosine (min)", "relative error", "max abs, normalised", "max abs, action", "n")
THROUGHPUT = ("policy", "batch", "n", "observations/s at p50", "observations/s over all rounds")
COST = ("policy", "build s", "peak memory GB")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """One part of an inference with one policy.

    Attributes:
        name: a stage, all stages together, what is around them, or host to host.
        stats: of its milliseconds.
        speedup: how many times faster than the first policy of the setting, by p50.
        share: the roofline's floor over p50; None where no ceiling is known.
    """

    name: str
    stats: LatencyStats
    speedup: float
    share: float | None


def components(policy: Record, first: Record) -> list[Component]:
    """Compute the components of one policy, compared with the first of its setting."""
    times, base_times, floors = _times(policy), _times(first), _floors(policy)
    result = []
    for name, samples in times.items():
        stats, base = latency_stats(samples), latency_stats(base_times[name])
        floor = floors.get(name)
        result.append(
            Component(
                name, stats, base.p50_ms / stats.p50_ms, None if floor is None else floor / stats.p50_ms
            )
        )
    return result


def problems(record: Record) -> list[str]:
    """Write a line for each stage that did not serve every call."""
    return [
        f"{policy['label']} ({title(setting)}): {stage} served {engaged['calls']} of {engaged['expected']} "
        f"calls and missed {engaged['misses']}; these times are not its engine's"
        for setting in record["settings"]
        for policy in setting["policies"]
        for stage, engaged in policy["engagement"].items()
        if engaged["misses"] or engaged["calls"] != engaged["expected"]
    ]


def title(setting: Record) -> str:
    """Word what the policies of a setting share, and each prompt's length where these differ."""
    facts = setting["policies"][0]["facts"]
    images = [sizes["images"] for policy in setting["policies"] for sizes in policy["inputs"]]
    prompts = {policy["label"]: _prompt_tokens(policy) for policy in setting["policies"]}
    if len(set(prompts.values())) == 1:
        tokens = next(iter(prompts.values()))
    else:
        tokens = " / ".join(f"{count} ({label})" for label, count in prompts.items())
    return ", ".join(
        (
            f"denoise steps {facts['denoise_steps']}",
            f"{facts['form']} form",
            f"images {_span(images)}",
            f"prompt tokens {tokens}",
            f"horizon {facts['horizon']}",
            *([f"batch {batch_of(setting)}"] if batch_of(setting) > 1 else []),
        )
    )


def batch_of(setting: Record) -> int:
    """How many observations an inference had; records of older benches have none, and had one."""
    batch: int = setting.get("batch", 1)
    return batch


def _prompt_tokens(policy: Record) -> str:
    return _span(sizes["prompt_tokens"] for sizes in policy["inputs"])


def time_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `TIMES`."""
    first = setting["policies"][0]
    for policy in setting["policies"]:
        for component in components(policy, first):
            stats = component.stats
            milliseconds = (f"{ms:.3f}" for ms in (stats.p50_ms, stats.p95_ms, stats.p99_ms))
            share = NONE if component.share is None else f"{component.share:.0%}"
            yield (
                policy["label"],
                component.name,
                str(stats.n),
                *milliseconds,
                f"{component.speedup:.2f}x",
                share,
            )


def glance_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `GLANCE`."""
    first = setting["policies"][0]
    for policy in setting["policies"]:
        parts = {component.name: component for component in components(policy, first)}
        stages, host = parts[ALL_STAGES], parts[HOST_TO_HOST]
        milliseconds = (f"{component.stats.p50_ms:.2f}" for component in (stages, host))
        cosine = f"{policy['parity']['cosine']:.6f}"
        yield title(setting), policy["label"], *milliseconds, f"{host.speedup:.2f}x", cosine


def engagement_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `ENGAGEMENT`."""
    for policy in setting["policies"]:
        for stage, engaged in policy["engagement"].items():
            counts = (str(engaged[name]) for name in ("calls", "expected", "misses"))
            yield policy["label"], stage, engaged["backend"], *counts, _details(engaged["details"])


def parity_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `PARITY`."""
    for policy in setting["policies"]:
        parity = policy["parity"]
        numbers = (f"{parity[name]:.3g}" for name in ("rel_error", "max_abs", "max_abs_action"))
        yield policy["label"], f"{parity['cosine']:.6f}", *numbers, str(parity["observations"])


def throughput_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `THROUGHPUT`: observations a second, host to host, of one inference after another."""
    batch = batch_of(setting)
    for policy in setting["policies"]:
        times = _times(policy)[HOST_TO_HOST]
        stats = latency_stats(times)
        rates = (batch * 1e3 / stats.p50_ms, batch * len(times) * 1e3 / sum(times))
        yield policy["label"], str(batch), str(stats.n), *(f"{rate:.1f}" for rate in rates)


def cost_rows(setting: Record) -> Iterator[tuple[str, ...]]:
    """Cells under `COST`."""
    for policy in setting["policies"]:
        peak = policy["peak_bytes"]
        yield policy["label"], f"{policy['build_s']:.1f}", NONE if peak is None else f"{peak / 1e9:.2f}"


def setting_tables(setting: Record) -> list[Table]:
    """Build the tables of one setting: times, engagement, parity, throughput and cost."""
    reference = setting["policies"][0]["parity"]["reference"]
    return [
        _by_policy(TIMES, time_rows(setting), title(setting)),
        _by_policy(ENGAGEMENT, engagement_rows(setting), "Engagement", texts=3, last_is_text=True),
        Table(PARITY, parity_rows(setting), f"Parity with {reference}, same noise"),
        Table(THROUGHPUT, throughput_rows(setting), "Throughput, host to host"),
        Table(COST, cost_rows(setting), "Cost"),
    ]


def _by_policy(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    *,
    texts: int = 2,
    last_is_text: bool = False,
) -> Table:
    """Build a table that names each policy once, with a line between policies."""
    return Table(columns, part_groups(rows), caption, texts, last_is_text, blank_repeats=True)


def render_setting(setting: Record) -> RenderableType:
    """Render the tables of one setting for a rich console, after a banner where weights are random."""
    labels = filter(is_random, weights_labels([setting]))
    banners = [Sentence(f"*** {label} ***", style="white on red", strong=True) for label in labels]
    return to_console([*banners, *setting_tables(setting)])


def weights_labels(settings: Iterable[Record]) -> list[str]:
    """List the labels of the weights, each once."""
    labels = (policy["facts"]["weights_label"] for setting in settings for policy in setting["policies"])
    return list(dict.fromkeys(labels))


def report(record: Record) -> str:
    """Render the record as a Markdown report with the items that docs/results/README.md asks for."""
    settings = record["settings"]
    names = ", ".join(
        dict.fromkeys(policy["label"] for setting in settings for policy in setting["policies"])
    )
    labels = filter(is_random, weights_labels(settings))
    blocks: list[Block] = [
        Heading(f"{names}: latency side by side"),
        Sentence(f"How long does an inference take with {names}, and how far is it from eager float32?"),
        *(Sentence(f"**{label}**: success means nothing here.") for label in labels),
        Items([f"{name}: {text}" for name, text in _facts(record).items()]),
        Sentence(
            f"Milliseconds of {record['rounds']} rounds after {record['warmup']} of warm-up that are left "
            f"out; {_batches(settings)}. In each round every policy infers once on the same observation, and "
            "the order rotates. Host to host is observation to action on the host, synchronised; stages are "
            "CUDA events within it (on a CPU the host's clock), and all stages are their sum. Speed-up is "
            "against the first policy, by p50. `of roofline` is the least time that the GPU's bandwidth and "
            "matmul rate allow, by `optim/bench/roofline.py`, over p50."
        ),
        Table(GLANCE, (row for setting in settings for row in glance_rows(setting)), texts=2),
    ]
    for setting in settings:
        times, engagement, parity, throughput, cost = setting_tables(setting)
        reference = setting["policies"][0]["parity"]["reference"]
        caption = f"Parity with {reference} of the same weights, on the same observations and noise"
        blocks += [
            Heading(title(setting), level=2),
            replace(times, caption=""),
            engagement,
            replace(parity, caption=caption),
            throughput,
            replace(cost, caption=""),
        ]
    if failures := problems(record):
        blocks.append(Sentence("\n".join(f"**{failure}**" for failure in failures)))
    return to_markdown(blocks)


def _batches(settings: Iterable[Record]) -> str:
    sizes = sorted({batch_of(setting) for setting in settings})
    return f"batch {' or '.join(map(str, sizes))}"


def _times(policy: Record) -> dict[str, list[float]]:
    """Milliseconds of every round, by component."""
    samples = policy["samples"]
    times = {stage: [sample["stage_ms"][stage] for sample in samples] for stage in STAGES}
    times[ALL_STAGES] = [sum(sample["stage_ms"].values()) for sample in samples]
    times[AROUND] = [around_ms(sample["infer_ms"], sample["stage_ms"]) for sample in samples]
    times[HOST_TO_HOST] = [sample["infer_ms"] for sample in samples]
    return times


def _floors(policy: Record) -> dict[str, float]:
    floors = policy["floor_ms"] or {}
    if set(floors) != set(STAGES):
        return floors
    total = sum(floors.values())
    return {**floors, ALL_STAGES: total, HOST_TO_HOST: total}


def _facts(record: Record) -> dict[str, str]:
    """Word the provenance, by the names that docs/results/README.md uses."""
    origin, stack, seen = record["provenance"], record["simulator"], record["observations"]
    gpu, cpu, git = origin["gpu"], origin["cpu"], origin["git"]
    machine = f"{gpu['name']} (driver {gpu['driver']})" if gpu else "no GPU"
    code = spell_code(git["commit"], dirty=git["dirty"], sources=joint_id(origin.get("trees")))
    why = f" ({git['error']})" if git["error"] else ""
    versions = {"Python": origin["python"], "CUDA": gpu["cuda"] if gpu else None, **origin["packages"]}
    if stack is not None:
        versions["GL"] = f"{stack['gl']} ({stack['gl_renderer']})"
    seen_tasks = (f"{suite} tasks {', '.join(map(str, ids))}" for suite, ids in seen["tasks"].items())
    policies = [policy["facts"] for setting in record["settings"] for policy in setting["policies"]]
    weights = dict.fromkeys(
        f"{_label(facts)}, SHA-256 {facts['weights_sha256']}; norm stats {facts['norm_stats_sha256']}"
        for facts in policies
    )
    precisions = dict.fromkeys(
        f"{facts['policy']} {facts['dtype']} on {facts['device']}" for facts in policies
    )
    return {
        "Command": f"`{origin['command']}`",
        "Commit": f"{code.removeprefix('commit ')}{why}; {origin['time']}",
        "Hardware": f"{machine}; {cpu['model']}, "
        f"{cpu['cores']} cores, {cpu['torch_threads']} torch threads; {origin['platform']}",
        "Versions": ", ".join(
            f"{name} {version}" for name, version in versions.items() if version is not None
        ),
        "Weights": "; ".join(weights),
        "Precision": "; ".join(precisions),
        "Observations": f"{seen['count']} of {'; '.join(seen_tasks)} ({seen['source']})",
    }


def _label(facts: Record) -> str:
    """Name the checkpoint and say if its weights are random; its folder's name means nothing elsewhere."""
    label = facts["weights_label"]
    return f"checkpoint {facts['checkpoint']}" + (f", {label}" if is_random(label) else "")


def _span(numbers: Iterable[int]) -> str:
    values = sorted(set(numbers))
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _details(details: Record) -> str:
    """Join facts in one cell: `precision fp8, parity rel_error 0.021`."""
    cells = []
    for name, value in details.items():
        if isinstance(value, Mapping):
            cells.append(f"{name} {_details(value)}")
        else:
            cells.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(cells) or NONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of a record; return 1 when a call missed its engine, or there is no record."""
    parser = argparse.ArgumentParser(prog="python -m optim.bench_table", description="Print a bench again.")
    parser.add_argument("record", type=path_argument, help="bench.json")
    parser.add_argument("--report", type=path_argument, help="write a Markdown report too")
    options = parser.parse_args(arguments)
    try:
        record = json.loads(options.record.read_text())
        if options.report is not None:
            with options.report.open("x") as file:
                file.write(report(record))
    except (OSError, ValueError) as error:
        print_error(error)
        return 1
    for setting in record["settings"]:
        report_console().print(render_setting(setting))
    failures = problems(record)
    for failure in failures:
        print_error(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
