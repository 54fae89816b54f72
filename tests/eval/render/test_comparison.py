"""A comparison for readers: the console and the Markdown say the same numbers, each in its own order."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.analysis.comparison import Comparison, compare
from eval.records.reader import read_run
from eval.render.comparison import conclusion, markdown, render

WriteRun = Callable[..., Path]


def compared(base: Path, new: Path) -> Comparison:
    return compare(read_run(base), read_run(new), 2.0)


def printed(result: Comparison) -> list[str]:
    """Return the lines of a very wide console, spaces squeezed."""
    file = io.StringIO()
    Console(file=file, width=1000).print(render(result))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_the_markdown_and_the_text_say_the_same_numbers(write_run: WriteRun) -> None:
    result = compared(write_run("base", failures=[1, 2]), write_run("new", failures=[2, 3], infer_ms=5.0))
    lines, text = printed(result), markdown(result)
    squeezed = [re.sub(r"[ ]*\|[ ]*", " ", line).strip() for line in text.splitlines()]
    for row in (
        "NEW full_optimized 198 / 200 99.0% 96.4 to 99.7 % 0",
        "paired, Newcombe -2.50 +2.50",
        "host to host 200 20.60 200 5.15 4.00x 4.00 to 4.00",
        "NEW denoise cuda_graph 12 0 0",
    ):
        assert row in lines
        assert row in squeezed
    assert "lost: libero_spatial-task3-episode0-seed7" in lines
    assert "- lost: libero_spatial-task3-episode0-seed7" in squeezed
    assert "- won: libero_spatial-task1-episode0-seed7" in squeezed


def test_the_verdict_is_first_in_markdown_and_last_on_the_console(write_run: WriteRun) -> None:
    result = compared(write_run("base", count=100), write_run("new", count=100))
    verdict, needed = conclusion(result)
    assert verdict == (
        "NOT SHOWN: NEW may lose 2 points of success or more (95 % interval -3.70 to +3.70, n = 100)"
    )
    assert needed.endswith("2 points need at least 189, all of them successes")
    assert printed(result)[-2:] == [verdict, needed]
    title, _, first, *_ = markdown(result).splitlines()
    assert (title, first) == ("# full_optimized against full_optimized", f"**{verdict}. {needed}.**")


def test_a_damaged_policy_is_called_inferior_and_markdown_names_all_that_it_lost(
    write_run: WriteRun,
) -> None:
    result = compared(write_run("base"), write_run("new", failures=range(20, 60)))
    lines = printed(result)
    assert lines[-1].startswith("INFERIOR: NEW loses more than 2 points of success")
    [lost] = [line for line in lines if line.startswith("lost: ")]
    assert lost.endswith(" and 30 more")
    assert f"- lost: {', '.join(result.lost)}\n- won: none\n" in markdown(result)


def test_pairs_by_task_are_always_in_markdown_and_on_the_console_where_one_differs(
    write_run: WriteRun,
) -> None:
    same = compared(write_run("base"), write_run("same"))
    other = compared(write_run("base_2"), write_run("other", failures=[3]))
    assert ["Pairs by task" in printed(result) for result in (same, other)] == [False, True]
    assert ["\nPairs by task:\n" in markdown(result) for result in (same, other)] == [True, True]


def test_a_miss_is_an_error_in_both_and_takes_the_verdict_back(
    write_run: WriteRun, run_json: dict[str, Any]
) -> None:
    missed = {**run_json["engagement"], "denoise": {"backend": "cuda_graph", "calls": 199, "misses": 1}}
    result = compared(write_run("base"), write_run("new", run={"engagement": missed}))
    lines, text = printed(result), markdown(result)
    assert "error: NEW: denoise: 1 calls missed cuda_graph" in lines
    assert "- **error: NEW: denoise: 1 calls missed cuda_graph**" in text
    assert lines[-1].startswith("NOT ENGAGED: ")
    assert "NOT ENGAGED: " in text.splitlines()[2]


def test_episodes_in_no_pair_are_counted(write_run: WriteRun) -> None:
    result = compared(write_run("base", count=300), write_run("new", count=220, first=90))
    line = "pairs: 210; left out: 90 episodes of BASE alone, 10 of NEW alone"
    assert line in printed(result)
    assert f"- {line}\n" in markdown(result)


def test_a_ratio_without_an_interval_has_a_dash_and_warnings_are_in_both(write_run: WriteRun) -> None:
    result = compared(write_run("base", quiet=1), write_run("new", quiet=1, infer_ms=10.0))
    lines = printed(result)
    assert "host to host 1 20.00 1 10.00 - -" in lines
    for warning in result.warnings:
        assert f"warning: {warning}" in lines
        assert f"- warning: {warning}\n" in markdown(result)


def test_runs_without_latencies_in_common_say_so(write_run: WriteRun) -> None:
    result = compared(write_run("base", quiet=0), write_run("new", quiet=0))
    line = "Latency: the runs have none in common"
    assert line in printed(result)
    assert line in markdown(result).splitlines()
