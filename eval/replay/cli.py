"""Replay a run open loop: `python -m eval.replay RUN policy=... [overrides] [--tolerance 0.999] [--json]`.

RUN must have recorded observations (`record_observations=16`). Another policy gets them, with the noise of
their inferences, and is compared with the run's own configuration in eager PyTorch, in the precision of the
run. Overrides are those of `python -m eval`, on top of the run's; `policy=` also replaces the run's backends.

The exit status is 0 when the actions of every observation have a cosine of at least the tolerance with the
reference's and every backend served its calls; 1 when not; 2 when they cannot be compared, with one line on
stderr that says why; 64 for a wrong command line. Unlike success, parity means something with random weights
too.

Non-obvious behaviors:
    The policy is given the run's precision unless `policy.precision` is among the overrides.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import RenderableType

from eval.analysis.comparable import NotComparable
from eval.analysis.summary import is_random, setting
from eval.app.command import ArgumentParser
from eval.records.recording import OBSERVATIONS_FILE, load_recording
from eval.records.schema import to_plain
from eval.render.console import print_error, report_console
from eval.render.tables import Block, Sentence, Table, banner, to_console
from eval.replay.parity import Replay, replay
from eval.replay.subjects import build, read_run_json
from optim.base import StageMismatch
from optim.core.parity import Parity, ParityError
from policies.files import path_argument
from policies.text import pluralize

TOLERANCE = 0.999  # native_fp8 has 0.9993 at full size and 3 steps (docs/results/2026-11-23_optimised_stages)
SHOWN = 10  # observations on the console, the worst first

WORST = ("", "cosine", "relative error", "max abs, normalised")
# The others are narrow, so that the names of observations stay on one line.
OBSERVATIONS = (
    *("observation", "call", "cosine", "relative\nerror"),
    *("max abs,\nnormalised", "max abs,\naction"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m eval.replay", description="Run another policy on a run's recorded observations."
    )
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="folder of a run with recorded observations"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="policy=..., optim/vision=..., ...")
    parser.add_argument(
        "--tolerance", type=_tolerance, default=TOLERANCE, help="least cosine that is accepted (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_intermixed_args(arguments)
    try:
        run = read_run_json(options.run)
        kept = load_recording(options.run / OBSERVATIONS_FILE)
        subjects = build(run, options.overrides, kept)
    except (NotComparable, ValueError, KeyError, OSError, HydraException, OmegaConfBaseException) as error:
        print_error(error)
        return 2
    try:
        result = replay(subjects, kept, options.tolerance)
    except (ParityError, StageMismatch, FloatingPointError) as error:
        print_error(error)
        return 1
    if options.json:
        sys.stdout.write(json.dumps(to_plain(result.to_dict(), "replay"), indent=2, allow_nan=False) + "\n")
    else:
        report_console().print(render(result))
    return 0 if result.passed else 1


def render(result: Replay) -> RenderableType:
    return to_console(_blocks(result))


def _blocks(result: Replay) -> Iterator[Block]:
    label = str(result.reference["weights_label"])
    if is_random(label):
        yield banner(label)
    for who, about in (("reference, eager", result.reference), ("policy", result.policy)):
        yield Sentence(f"{who}: {about['policy']} | {about['checkpoint']} | {setting(about)}")
    caption = f"Worst of {pluralize(len(result.observations), 'observation')}"
    yield Table(WORST, list(worst_rows(result)), caption)
    yield Table(OBSERVATIONS, list(observation_rows(result))[:SHOWN], "Observations, the worst first")
    yield Sentence(_where(result))
    for problem in result.problems:
        yield Sentence(f"error: {problem}", "red", strong=True)
    verdict = "PARITY" if result.passed else "NO PARITY"
    yield Sentence(
        f"{verdict}: cosine {result.actions.cosine:.6f} at worst, {result.median_cosine:.6f} at the "
        f"median; {result.tolerance:g} is accepted. Actions differ by {result.max_abs_action:.3g}.",
        "green" if result.passed else "red",
        strong=True,
    )


def worst_rows(result: Replay) -> Iterator[tuple[str, ...]]:
    """Cells under `WORST`."""
    yield "actions", *_cells(result.actions)
    for name, parity in result.stages.items():
        yield f"{name} ({result.engagement[name]['backend']}), the reference's inputs", *_cells(parity)
    for i, parity in enumerate(result.steps, 1):
        yield f"x after step {i} of {len(result.steps)}, eager steps", *_cells(parity)
    yield "the run's own actions", *_cells(result.recorded)


def observation_rows(result: Replay) -> Iterator[tuple[str, ...]]:
    """Cells under `OBSERVATIONS`, the worst first."""
    for observation in sorted(result.observations, key=lambda observation: observation.actions.cosine):
        yield (
            observation.episode,
            str(observation.call),
            *_cells(observation.actions),
            f"{observation.max_abs_action:.3g}",
        )


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a cosine above 0, at most 1, got {text}")
    return value


def _where(result: Replay) -> str:
    if not result.steps:
        return "x after each step: the numbers of denoise steps differ, so only the ends are compared"
    if result.departs is None:
        return f"x after each step stays within a cosine of {result.tolerance:g}"
    return (
        f"x departs in step {result.departs} of {len(result.steps)}: its cosine is below {result.tolerance:g}"
    )


def _cells(parity: Parity) -> tuple[str, str, str]:
    return f"{parity.cosine:.6f}", f"{parity.rel_error:.3g}", f"{parity.max_abs:.3g}"
