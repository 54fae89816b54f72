"""What the commands that run jobs share: an error is one line, and an interrupt shows what there is."""

from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eval.episodes.signals import exit_status, noticed
from eval.render.console import print_error, print_info, wants_trace
from policies.streams import surviving_readers

ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


class Interrupted(Exception):
    """A signal ended the jobs; what there was of them has been shown.

    Attributes:
        status: the command's exit status.
    """

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(str(interrupt))
        self.status = exit_status(interrupt)


def run_command(work: Callable[[], int], interrupted: str) -> int:
    """Return the exit status of `work`: 1 after an error, after a signal that of
    `eval.episodes.signals.exit_status`.

    Args:
        interrupted: what to say of an interrupt while no job was running.
    """
    try:
        with surviving_readers(), noticed():
            return work()
    except ERRORS as error:
        if wants_trace():
            raise
        print_error(error)
        return 1
    except Interrupted as shown:
        return shown.status
    except KeyboardInterrupt as interrupt:
        print_info(interrupted)
        return exit_status(interrupt)


def run_and_show(run: Callable[[], object], show: Callable[[], object], go_on: str) -> None:
    """Run jobs, then show what came of them.

    Args:
        go_on: how to go on after an interrupt.

    Raises:
        Interrupted: the user ended them; what there is has been shown.
    """
    try:
        run()
    except KeyboardInterrupt as interrupt:
        print_info(f"interrupted; {go_on}")
        try:
            show()
        except ERRORS as error:
            print_error(error)
        raise Interrupted(interrupt) from interrupt
    show()
