"""How often 500 pairs show harm: `python -m tools.power_table`, the table of docs/sensitivity.md, simulated.

A row is a protocol: how much of it BASE solves, and how many pairs differ by chance alone, as they do between
two equally good policies. A column is the harm that NEW has beyond that, in points of success.
"""

import sys
from dataclasses import dataclass

import numpy as np

from eval.analysis.comparison import MARGIN
from eval.analysis.sequential import PairedTest
from eval.analysis.statistics import PairedCounts, newcombe, verdict

PAIRS, RUNS, SEED = 500, 300, 0
HARMS = (0, 1, 3, 5, 10, 15, 20)  # points
PROTOCOLS = ((99, 0.5), (90, 5), (60, 20))  # per cent that BASE solves, and that differ by chance


@dataclass(frozen=True)
class Power:
    """Of `RUNS` runs with one harm: shares of verdicts, and the median number of pairs to a decision."""

    fixed_good: float
    fixed_bad: float
    sequential_good: float
    sequential_bad: float
    pairs: int


def simulate(solved: float, by_chance: float, harm: float, runs: int = RUNS) -> Power:
    """Draw runs of independent pairs; all three are in per cent."""
    rng = np.random.default_rng(SEED)
    won, lost = by_chance / 200, by_chance / 200 + harm / 100
    fixed, decisions, lengths = [], [], []
    for draws in rng.random((runs, PAIRS)):
        test = PairedTest(MARGIN)
        for draw in draws.tolist():
            test.add(base=not lost <= draw < lost + won, new=draw >= lost)
        counts = int((draws < lost).sum()), int(((draws >= lost) & (draws < lost + won)).sum())
        both = min(max(round(PAIRS * solved / 100) - counts[0], 0), PAIRS - sum(counts))
        fixed.append(verdict(newcombe(PairedCounts(both, *counts, PAIRS - both - sum(counts))), MARGIN))
        decisions.append(test.decision)
        lengths.append(test.pairs)
    return Power(
        fixed.count("non-inferior") / runs,
        fixed.count("inferior") / runs,
        decisions.count("non-inferior") / runs,
        decisions.count("inferior") / runs,
        int(np.median(lengths)),
    )


def table() -> list[str]:
    """The table as lines of Markdown."""
    lines = [
        "| BASE solves, differ by chance | harm, points | fixed: non-inferior / inferior | "
        "sequential: non-inferior / inferior | median pairs |",
        "|---|---:|---:|---:|---:|",
    ]
    return lines + [row(solved, by_chance, harm) for solved, by_chance in PROTOCOLS for harm in HARMS]


def row(solved: float, by_chance: float, harm: float) -> str:
    """One of its rows."""
    power = simulate(solved, by_chance, harm)
    shares = (power.fixed_good, power.fixed_bad, power.sequential_good, power.sequential_bad)
    fixed_good, fixed_bad, good, bad = (f"{share:.0%}" for share in shares)
    return (
        f"| {solved:g} %, {by_chance:g} % | {harm:g} | {fixed_good} / {fixed_bad} | {good} / {bad} | "
        f"{power.pairs} |"
    )


def main() -> None:
    sys.stdout.write("\n".join(table()) + "\n")


if __name__ == "__main__":
    main()
