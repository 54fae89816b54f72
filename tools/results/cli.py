"""Results of the README: `python -m tools.results.cli [--check]` writes them from `docs/results/data`.

It writes the part of README.md between two markers, a plot for each bench, comparisons beside their runs, and
a page for each folder whose runs have inferences. With `--check` nothing is written, and the exit status is 1
when one of them is not what the data give. It is 1 either way when there is one that no data give: none is
ever deleted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.analysis.summary import is_random
from eval.render.console import print_error, print_info
from policies.files import ROOT
from policies.text import shorten
from tools.results.bench import Bench, read_benches
from tools.results.data import DATA, REPORTS
from tools.results.plot import description, latency_svg, plot_of
from tools.results.runs import comparisons, pages
from tools.results.success import Outcome, read_outcomes
from tools.results.tables import infer_sentences, latency_table, success_table

README = Path("README.md")
BEGIN = "<!-- results: begin, written by make results -->"
END = "<!-- results: end -->"
GENERATED = (f"{REPORTS}/*.svg", f"{REPORTS}/*.html", f"{DATA}/*/compare_*.md")


def files(root: Path) -> dict[Path, str]:
    """Return what the data give, by file.

    Raises:
        OSError, ValueError: the data are not as they must be, or the README has no place for them.
    """
    outcomes, benches = read_outcomes(root), read_benches(root)
    return {
        root / README: replace_part(root / README, part(outcomes, benches)),
        **{root / plot_of(bench): latency_svg(bench) for bench in benches},
        **comparisons(root),
        **pages(root),
    }


def part(outcomes: Sequence[Outcome], benches: Sequence[Bench]) -> str:
    """Return the README's part: success with trained weights, and apart from it latency, bench by bench."""
    lines = [
        "Success with trained weights. A row without records was read off its report.",
        "",
        *success_table(outcomes),
        "",
        *infer_sentences(outcomes),
    ]
    for bench in benches:
        lines += ["", *_latency(bench)]
    return "\n".join(lines)


def _latency(bench: Bench) -> list[str]:
    [first, *_] = bench.timings.values()
    weights = f"weights `{bench.weights_label}`"
    if is_random(bench.weights_label):
        weights = f"**{bench.weights_label}**: not of the weights whose success is above"
    return [
        f"Latency of {', '.join(timing.policy for timing in first)}, {weights}. "
        f"{bench.device}, batch 1, medians of {bench.rounds} rounds; {bench.shape}. "
        f"Every backend served every call ([report]({bench.report})).",
        "",
        f"![{description(bench)}]({plot_of(bench).as_posix()})",
        "",
        *latency_table(bench),
    ]


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


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the files, or check them; return 1 with a line on stderr for what is stale, and for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.results.cli",
        description="Write the README's results from the committed data.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is stale")
    options = parser.parse_args(arguments)
    try:
        given = files(root)
        stale = {path: text for path, text in given.items() if not _holds(path, text)}
        strange = [path for of in GENERATED for path in sorted(root.glob(of)) if path not in given]
        if not options.check:
            for path, text in stale.items():
                path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print_error(error)
        return 1
    for name in (path.relative_to(root) for path in stale):
        if options.check:
            print_error(f"{name} is not what the data give; run make results")
        else:
            print_info(f"wrote {name}")
    for path in strange:
        print_error(f"{path.relative_to(root)} is of no data; remove it")
    if kept := [path.relative_to(root) for path in given if path not in stale]:
        print_info(f"up to date: {shorten(kept)}")
    return 1 if strange or (options.check and stale) else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
