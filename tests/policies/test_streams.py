"""A stream whose reader has gone goes quiet, and fails nobody."""

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from policies.files import ROOT
from policies.streams import surviving


class Failing(io.StringIO):
    """Fails with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_a_pipe_without_a_reader_and_a_closed_terminal_are_quiet() -> None:
    for number in (errno.EPIPE, errno.EIO):
        print("one episode", file=surviving(Failing(number)), flush=True)


def test_a_full_disk_stays_an_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        surviving(Failing(errno.ENOSPC)).write("a result")


def test_rich_neither_exits_nor_closes_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        console = Console(file=surviving(stream))
        console.print("one episode")
        console.print("another")
    assert os.fstat(1).st_rdev != os.stat(os.devnull).st_rdev


def test_a_process_whose_reader_left_ends_with_its_own_status() -> None:
    code = (
        "import sys, time\nfrom policies.streams import surviving_readers\n"
        "with surviving_readers():\n"
        "    time.sleep(0.3)\n"
        "    for _ in range(100): print('x' * 1000); print('y' * 1000, file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(30) == 7
