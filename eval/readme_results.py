"""Results of the README: `python -m eval.readme_results [--check]` writes them from `docs/results/data`.

It writes the part of README.md between two markers, the plot, and the comparison beside its runs. With
`--check` nothing is written, and the exit status is 1 when one of them is not what the data give.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.command import complain
from eval.compare import MARGIN
from eval.compare_table import markdown
from eval.comparison import compare
from eval.readme_results_bench import Bench, read_bench
from eval.readme_results_data import DATA, REPORTS
from eval.readme_results_plot import description, latency_svg
from eval.readme_results_success import Outcome, read_outcomes, read_parts
from eval.readme_results_tables import infer_sentences, latency_table, success_table
from eval.summary import say
from policies.listing import listing

README = Path("README.md")
BEGIN = "<!-- results: begin, written by make results -->"
END = "<!-- results: end -->"
PLOT = REPORTS / "latency_by_stage.svg"
COMPARED = DATA / "2026-11-23_optimised_stages_h200"
BASE, NEW, COMPARISON = "runs/baseline_10", "runs/native_fp8_10", "compare_native_fp8.md"


def files(root: Path) -> dict[Path, str]:
    """Return what the data give, by file.

    Raises:
        OSError, ValueError: the data are not as they must be, or the README has no place for them.
    """
    outcomes, bench = read_outcomes(root), read_bench(root)
    folder = root / COMPARED
    return {
        root / README: replace_part(root / README, part(outcomes, bench)),
        root / PLOT: latency_svg(bench),
        folder / COMPARISON: markdown(compare(read_parts(folder / BASE), read_parts(folder / NEW), MARGIN)),
    }


def part(outcomes: Sequence[Outcome], bench: Bench) -> str:
    """Return the README's part: success with trained weights, and apart from it latency at full size."""
    lines = [
        "Success with trained weights. A row without records was read off its report.",
        "",
        *success_table(outcomes),
        "",
        *infer_sentences(outcomes),
        "",
        f"Latency, **{bench.weights_label}**: not of the weights whose success is above. "
        f"{bench.device}, batch 1, medians of {bench.rounds} rounds; {bench.shape}. "
        f"Every backend served every call ([report]({bench.report})).",
        "",
        f"![{description(bench)}]({PLOT.as_posix()})",
        "",
        *latency_table(bench),
    ]
    return "\n".join(lines)


def replace_part(path: Path, text: str) -> str:
    """Return a file's text with what stands between the markers replaced.

    Raises:
        ValueError: a marker is not there once, or they are in the wrong order.
    """
    before = path.read_text(encoding="utf-8")
    for marker in (BEGIN, END):
        if (count := before.count(marker)) != 1:
            raise ValueError(f"{path} must have the line {marker} once, found it {count} times; put it back")
    head, _, rest = before.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"{path} has {END} before {BEGIN}; swap them")
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


def main(arguments: Sequence[str] | None = None, root: Path = Path(__file__).parents[1]) -> int:
    """Write the files, or check them; return 1 with a line on stderr for what is stale, and for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.readme_results",
        description="Write the README's results from the committed data.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is stale")
    options = parser.parse_args(arguments)
    try:
        given = files(root)
        stale = {path: text for path, text in given.items() if not _holds(path, text)}
        if not options.check:
            for path, text in stale.items():
                path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        complain(error)
        return 1
    for name in (path.relative_to(root) for path in stale):
        if options.check:
            say(f"error: {name} is not what the data give; run make results")
        else:
            say(f"wrote {name}")
    if kept := [path.relative_to(root) for path in given if path not in stale]:
        say(f"up to date: {listing(kept)}")
    return 1 if options.check and stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main())
