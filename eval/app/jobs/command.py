"""What the commands that run jobs share: an error is one line, and an interrupt shows what there is."""

import signal
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eval.render.console import print_error, print_info, wants_trace

ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


class Interrupted(Exception):
    """A user interrupted the jobs; what there was of them has been shown."""


def run_command(work: Callable[[], int], interrupted: str) -> int:
    """Return the exit status of `work`: 1 after an error, 130 after an interrupt.

    Args:
        interrupted: what to say of an interrupt while no job was running.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems: end as after ctrl-C
    try:
        return work()
    except ERRORS as error:
        if wants_trace():
            raise
        print_error(error)
        return 1
    except Interrupted:
        return 130
    except KeyboardInterrupt:
        print_info(interrupted)
        return 130


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
        raise Interrupted from interrupt
    show()
