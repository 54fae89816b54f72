"""Commands that run jobs end with one line and the right status, however they end."""

import signal
from collections.abc import Callable

import pytest

from eval.app.jobs.command import Interrupted, run_and_show, run_command
from eval.render.console import FULL_ERROR


def interrupt() -> int:
    raise KeyboardInterrupt


def fail() -> int:
    raise ValueError("no episode to report on")


def test_an_error_is_one_line_and_with_full_error_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(fail, "interrupted") == 1
    assert capsys.readouterr().err == "error: no episode to report on\n"
    monkeypatch.setenv(FULL_ERROR, "1")
    with pytest.raises(ValueError, match="no episode"):
        run_command(fail, "interrupted")


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    def terminate() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert run_command(terminate, "interrupted; go on") == 143
    assert capsys.readouterr().err == "interrupted; go on\n"


def test_interrupted_jobs_are_shown_and_nothing_to_show_hides_no_interrupt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    def show() -> None:
        shown.append("table")

    def jobs(show_jobs: Callable[[], object]) -> int:
        run_and_show(interrupt, show_jobs, "go on with it: again")
        return 0

    assert run_command(lambda: jobs(show), "no job was running") == 130
    assert shown == ["table"]
    assert capsys.readouterr().err == "interrupted; go on with it: again\n"
    assert run_command(lambda: jobs(fail), "no job was running") == 130
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; go on with it: again",
        "error: no episode to report on",
    ]
    with pytest.raises(Interrupted):
        run_and_show(interrupt, show, "")
