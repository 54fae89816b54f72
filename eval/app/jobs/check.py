"""Find the jobs that this machine cannot run, before anything is loaded.

Non-obvious behaviors:
    Another process asks: one that has asked CUDA may keep a context on the GPU that the jobs are timed on.
"""

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eval.app.jobs.typed import NOTHING, Typed
from eval.config.errors import one_line
from eval.specs.choose import checked_spec
from eval.specs.machine import explain
from optim.base import CannotRun
from policies.text import pluralize, shorten

Jobs = Sequence[Sequence[str]]
"""The overrides of each job."""

FindReasons = Callable[[Jobs, Typed], "Sequence[Reason | None]"]
"""Finds for each job why this machine cannot run it; None where it can."""


@dataclass(frozen=True)
class Reason:
    """Why a job cannot run here; without parts, `text` is all there is."""

    text: str  # the job's own error, on one line
    parts: tuple[tuple[str, str], ...] = ()  # as in `Explanation`
    way_out: str = ""


def find_reasons(jobs: Jobs, typed: Typed) -> list[Reason | None]:
    """Check each job, None where no reason is known; ValueError where the process that checks died."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            return list(pool.map(partial(reason_against, typed=typed), jobs))
        except BrokenProcessPool as error:
            raise ValueError(f"cannot find out what this machine can run: {error}") from error


def reason_against(overrides: Sequence[str], typed: Typed = NOTHING) -> Reason | None:
    """Check one job: a reason if it would end before its policy is built."""
    try:
        config = typed.configure(overrides)
        spec = checked_spec(config, typed.whole(overrides))
        if config.runner.name != "ray":  # Ray's policies run elsewhere
            spec.check_machine(config)
    except CannotRun as error:
        explanation = explain(config, error.reasons)
        return Reason(one_line(error), explanation.parts, explanation.way_out)
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        return Reason(one_line(error))
    return None


def refusal(jobs: Jobs, reasons: Sequence[Reason | None]) -> tuple[str, str]:
    """Word a refusal as details and a conclusion.

    The details are a line for each reason, above what cannot run for it; the conclusion says how many jobs
    cannot run and what to leave out of the lists.
    """
    refused = [reason for reason in reasons if reason is not None]
    by_reason: dict[str, list[str]] = {}  # why to what, once for every job
    counts: Counter[str] = Counter()
    for reason in refused:
        parts = reason.parts or ((reason.text, ""),)
        counts.update({why for why, _ in parts})
        for why, what in parts:
            by_reason.setdefault(why, []).append(what)
    details = shorten((_detail(counts[why], why, what) for why, what in by_reason.items()), "\n")
    line = f"{len(refused)} of {pluralize(len(jobs), 'job')} cannot run here"
    runs = {text for job, reason in zip(jobs, reasons, strict=True) if reason is None for text in job}
    others = len(jobs) - len(refused)
    if not others:
        ways_out = dict.fromkeys(reason.way_out for reason in refused if reason.way_out)
        return details, "; ".join((line, *ways_out))
    culprits = dict.fromkeys(text for job in jobs for text in job if text not in runs)
    out = f"leave out {shorten(culprits)}, or " if culprits else ""
    return details, f"{line}; {out}run the {pluralize(others, 'other job')} with --only-runnable"


def _detail(jobs: int, why: str, what: Sequence[str]) -> str:
    names, indent = [name for name in dict.fromkeys(what) if name], "\n  "
    below = f":{indent}{shorten(names, indent)}" if names else ""
    return f"{pluralize(jobs, 'job')}: {why}{below}"
