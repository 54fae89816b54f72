"""Signals at random moments of control steps: how many end the run, and how many are lost.

`python -m tests.eval.signal_soak 800 libero` sends 800 to LIBERO's simulator, without `libero` to the fakes.
"""

import ctypes
import os
import random
import signal
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.episodes.runner import EpisodeRunner
from eval.episodes.signals import ENDING, Signalled, noticed
from eval.sim.tasks import Task
from policies.base import EpisodeKey
from tests.eval.fake_run import plan_of
from tests.eval.fakes import ArithmeticEnv, ArithmeticPolicy

COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double))


class CompiledEnv(ArithmeticEnv):
    """Spends its steps in compiled code that calls Python, and loses what is raised there."""

    def step(self, action: NDArray[np.float64]) -> bool:
        numbers = np.random.default_rng(self.steps).random(40)
        compare = COMPARE(lambda a, b: (a[0] > b[0]) - (a[0] < b[0]))
        ctypes.CDLL(None).qsort(numbers.ctypes.data_as(ctypes.c_void_p), numbers.size, 8, compare)
        super().step(action)
        return False


class StillPolicy(ArithmeticPolicy):
    """Asks for no image."""

    cameras: tuple[str, ...] = ()


def count(trials: int, seed: int, task: Task, make_env: Any) -> Counter[str]:
    """Send a signal during each of `trials` episodes; count what came out of them."""
    chance = random.Random(seed)
    plan = plan_of(max_steps=10**6, make_env=make_env)
    runner = EpisodeRunner(plan, StillPolicy())
    outcomes: Counter[str] = Counter()
    for trial in range(trials):
        number = chance.choice(ENDING)
        sender = threading.Timer(chance.uniform(0.001, 0.05), os.kill, (os.getpid(), number))
        key = EpisodeKey("libero_spatial", task.task_id, trial % 50, 7)

        def send_in_first_step(record: object, sender: threading.Timer = sender) -> None:
            if not sender.ident:
                sender.start()

        try:
            with noticed():
                result = runner.run(task, key, send_in_first_step)
                outcomes[f"an episode: {type(result.error).__name__}"] += 1
        except Signalled as signalled:
            outcomes["the signal" if signalled.number == number else f"{signalled}, not {number}"] += 1
        except BaseException as error:  # noqa: BLE001  whatever comes out is what is counted
            outcomes[type(error).__name__] += 1
        sender.join()
    runner.close()
    return outcomes


def main(trials: int, simulator: str) -> Counter[str]:
    """Count with the fakes, or with `libero`'s simulator."""
    sys.unraisablehook = lambda unraisable: None  # what ctypes says of each exception that it loses
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)  # a shell's `&` would have SIGINT ignored
    if simulator != "libero":
        return count(trials, trials, plan_of().tasks[0], CompiledEnv)
    from eval.sim.env import LiberoEnv
    from eval.sim.stack import prepare
    from eval.sim.tasks import load_tasks

    prepare()
    return count(trials, trials, load_tasks("libero_spatial")[0], LiberoEnv)


if __name__ == "__main__":
    print(dict(main(int(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "fakes")))  # noqa: T201
