"""Which jobs of a sweep this machine cannot run, as far as that is known before anything is loaded.

Non-obvious behaviors:
    A process of its own asks: what has asked CUDA may keep a context on the GPU that the jobs are timed on.
"""

import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eval.build import choose_passes
from eval.cli import refuse_ignored
from eval.messages import one_line
from eval.replay_subjects import configure
from eval.words import counted
from policies.listing import listing

Jobs = Sequence[Sequence[str]]
"""The overrides of each job."""


def find_reasons(jobs: Jobs) -> list[str | None]:
    """Return for each job why it cannot run here; None where nothing speaks against it.

    Raises:
        ValueError: the process that asks ended.
    """
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            return list(pool.map(reason_against, jobs))
        except BrokenProcessPool as error:
            raise ValueError(f"cannot find out what this machine can run: {error}") from error


def reason_against(overrides: Sequence[str]) -> str | None:
    """Return why a run with these overrides would end before its policy is built."""
    try:
        config = configure(overrides)
        refuse_ignored(config, list(overrides))
        if config.policy.kind != "oracle" and config.runner.name != "ray":  # Ray's policies run elsewhere
            choose_passes(config)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return one_line(error)
    return None


def refusal(jobs: Jobs, reasons: Sequence[str | None]) -> str:
    """Return one line: how many jobs cannot run, each reason once, and what to leave out of the lists."""
    runnable = [job for job, reason in zip(jobs, reasons, strict=True) if reason is None]
    refused = Counter(reason for reason in reasons if reason is not None)
    parts = [f"{counted(number, 'job')}: {reason}" for reason, number in refused.items()]
    line = f"{refused.total()} of {counted(len(jobs), 'job')} cannot run here | {listing(parts, ' | ')}"
    if not runnable:
        return line
    runs = {text for job in runnable for text in job}
    culprits = dict.fromkeys(text for job in jobs for text in job if text not in runs)
    out = f"leave out {listing(culprits)}, or " if culprits else ""
    return f"{line} | {out}run the {counted(len(runnable), 'other job')} with --only-runnable"
