"""A signal ends a run, whatever compiled code makes of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from eval.episodes.runner import EpisodeRunner
from eval.episodes.signals import ENDING, Signalled, exit_status, held_back, noticed, raise_pending
from policies.base import EpisodeKey
from policies.files import ROOT
from tests.eval.fake_run import plan_of
from tests.eval.fakes import ArithmeticEnv, ArithmeticPolicy

KEY = EpisodeKey("libero_spatial", 0, 0, 7)


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """A shell's background job, as these tests may be, ignores SIGINT."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_a_process(code: str, preexec: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    head = "import os, signal, time\nfrom eval.episodes.signals import noticed\n"
    command = [sys.executable, "-c", head + code]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, preexec_fn=preexec
    )


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_is_raised_once_and_has_the_shells_status(number: int, status: int) -> None:
    with noticed():
        with pytest.raises(Signalled) as raised:
            signal.raise_signal(number)
        assert exit_status(raised.value) == status
        signal.raise_signal(number)  # a copy disturbs nobody
    assert exit_status(KeyboardInterrupt()) == 130


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_a_library_that_raises_an_interrupt_of_its_own_hides_no_signal(number: int, status: int) -> None:
    def swallow() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # as Ray does

    with pytest.raises(Signalled) as raised, noticed():
        swallow()
    assert exit_status(raised.value) == status


def test_a_signal_that_compiled_code_swallowed_ends_the_episode_at_the_next_step() -> None:
    soak = "tests.eval.signal_soak"
    done = subprocess.run(
        [sys.executable, "-m", soak, "12"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "{'the signal': 12}\n", done.stderr


class Broken(ArithmeticEnv):
    """Its step makes a SystemError of an interrupt, as numba's dispatcher does."""

    def step(self, action: object) -> bool:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemError("returned a result with an exception set")  # noqa: B904  as compiled code does


def test_an_interrupt_behind_an_exception_is_no_error_of_the_episode() -> None:
    runner = EpisodeRunner(plan_of(make_env=Broken), ArithmeticPolicy())
    with pytest.raises(KeyboardInterrupt):
        runner.run(plan_of().tasks[0], KEY, lambda record: None)


def test_an_exception_without_an_interrupt_is_the_episodes() -> None:
    raise_pending(ValueError("no interrupt behind it"))


def test_a_signal_waits_until_a_record_is_whole() -> None:
    written = []

    def write() -> None:
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            written.append("a line")

    with noticed(), pytest.raises(Signalled):
        write()
    assert written == ["a line"]


def test_bookkeeping_after_a_signal_is_not_interrupted_again() -> None:
    with noticed():
        with pytest.raises(Signalled):
            signal.raise_signal(signal.SIGTERM)
        with held_back():
            pass


def test_handlers_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with noticed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "with noticed():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt: time.sleep(0.6); signal.raise_signal(signal.SIGTERM); time.sleep(60)\n"
    )
    start = time.monotonic()
    done = in_a_process(code)
    assert (done.returncode, done.stderr) == (
        143,
        "ended at once by a second signal; what was recorded is kept\n",
    )
    assert time.monotonic() - start < 30


def test_nohup_is_respected() -> None:
    code = "with noticed(): signal.raise_signal(signal.SIGHUP); print('goes on')"
    done = in_a_process(code, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "goes on\n")
