"""What the robot does while the policy thinks: the clock of an episode.

LIBERO stands still during an inference; a robot does not. A clock charges each inference its latency L, in
control periods of P = 50 ms / speed, and says which actions are executed in the meantime. H horizon, s
execution horizon (replan steps), d = ceil(L / P) the delay in control steps. From one observation to the
next:

    free    NEW[0:s]; time stands still, as in LIBERO
    wait    hold while the latency lasts, then NEW[0:s]; what is left of a period is kept for the next cycle
    async   d more actions of the old chunk, then NEW[d:s]; in the first cycle hold d steps, then NEW[0:s - d]
    rtc     as async, and NEW is guided towards what is left of the old chunk (real-time chunking)

Non-obvious behaviors:
    * To hold is to send no motion and the gripper as it was; before the first action it is open, as in the
      settle steps. Held steps count towards the suite's limit.
    * A cycle of async or rtc has s steps, the first one too, so that observations are s steps apart.
    * The robot stood still in the first cycle, so its chunk is executed from 0 on, and the second cycle goes
      on with it where the first ended: s - d, not s. What is left of it for guidance begins there too.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from eval.records.schema import ClockRecord
from eval.sim.env import CONTROL_HZ, SETTLE_ACTION
from policies.base import EpisodeKey, Guidance, GuideOptions
from policies.seeding import stable_seed

Mode = Literal["free", "wait", "async", "rtc"]
MODES = get_args(Mode)
OVERLAPPING: tuple[Mode, ...] = ("async", "rtc")  # the robot goes on with the old chunk
PERIOD_MS = 1e3 / CONTROL_HZ
MOTION = 6  # channels of an action that move the hand; the last one is the gripper
ROUNDING = 1e-9  # of periods: a latency of three periods is three, whatever the division says


class CannotServe(ValueError):
    """Delay, replan steps and horizon do not fit together; the message names all three."""


class Latency(Protocol):
    """How long an inference takes, in milliseconds, for the clock.

    Attributes:
        worst_ms: the largest; None where that is not known.
    """

    @property
    def worst_ms(self) -> float | None: ...

    def __call__(self, key: EpisodeKey, call: int, measured_ms: float) -> float: ...


@dataclass(frozen=True)
class Fixed:
    """The same for each inference."""

    ms: float

    @property
    def worst_ms(self) -> float:
        return self.ms

    def __call__(self, key: EpisodeKey, call: int, measured_ms: float) -> float:
        return self.ms


@dataclass(frozen=True)
class Drawn:
    """One of the latencies that a bench measured, drawn by the episode's key and the number of the call."""

    samples_ms: tuple[float, ...]

    @property
    def worst_ms(self) -> float:
        return max(self.samples_ms)

    def __call__(self, key: EpisodeKey, call: int, measured_ms: float) -> float:
        drawn = stable_seed("latency", key.suite, key.task_id, key.episode, key.seed, call)
        return self.samples_ms[drawn % len(self.samples_ms)]


@dataclass(frozen=True)
class Measured:
    """What this inference took: an episode is no longer a function of its key."""

    worst_ms: None = None

    def __call__(self, key: EpisodeKey, call: int, measured_ms: float) -> float:
        return measured_ms


@dataclass(frozen=True)
class Clock:
    """How inferences are charged.

    Attributes:
        speed: of a robot that executes the same actions so many times as fast; physics is unchanged.
        guide: how new chunks are guided; of rtc alone.
    """

    mode: Mode = "free"
    latency: Latency = field(default_factory=lambda: Fixed(0.0))
    speed: float = 1.0
    guide: GuideOptions | None = None

    @property
    def charges(self) -> bool:
        """Whether inferences take time."""
        return self.mode != "free"

    @property
    def period_ms(self) -> float:
        return PERIOD_MS / self.speed

    def delay(self, latency_ms: float) -> int:
        """Count the control steps from an observation to the first action that answers it."""
        return math.ceil(latency_ms / self.period_ms - ROUNDING)

    def check(self, latency_ms: float, replan_steps: int, horizon: int | None) -> None:
        """Raise CannotServe where async or rtc have no action to execute; `horizon` None is not known yet."""
        if self.mode not in OVERLAPPING:
            return
        delay = self.delay(latency_ms)
        if delay > replan_steps:
            raise CannotServe(
                f"clock={self.mode} needs a delay of at most the replan steps, got d = {delay} "
                f"({latency_ms:g} ms at {self.period_ms:g} ms a step) and s = {replan_steps}; "
                "raise checkpoint.replan_steps, lower clock.speed, or use clock=wait"
            )
        if horizon is not None and replan_steps > horizon - delay:
            raise CannotServe(
                f"clock={self.mode} needs s <= H - d actions of the old chunk, got s = {replan_steps}, "
                f"H = {horizon} and d = {delay} ({latency_ms:g} ms at {self.period_ms:g} ms a step); lower "
                "checkpoint.replan_steps or clock.speed, or use clock=wait"
            )

    def check_chunks(self, replan_steps: int | None, horizon: int | None) -> None:
        """Raise CannotServe where the longest delay does not fit a policy's chunks; None is not known yet."""
        worst_ms = self.latency.worst_ms
        if worst_ms is not None and replan_steps is not None:
            self.check(worst_ms, replan_steps, horizon)

    def check_policy(self, about: Mapping[str, Any]) -> None:
        """Raise CannotServe where what a policy says of itself does not fit; see `check`."""
        self.check_chunks(about.get("replan_steps"), about.get("horizon"))
        guide, guided = None if self.guide is None else asdict(self.guide), about.get("guidance")
        if guide != guided:
            raise CannotServe(
                f"clock={self.mode} needs a policy that was loaded with "
                f"{'no guidance' if guide is None else f'clock=rtc, {self.guide}'}, got one with "
                f"{'no guidance' if guided is None else guided}; load it with the clock that it runs under"
            )


FREE = Clock()


def guidance_weights(delay: int, left: int, horizon: int) -> NDArray[np.float32]:
    """Weigh the old chunk's actions for a new one: 1 while it is sent, then less and less, 0 where it ended.

    Equation 5 of arXiv 2506.07339: c (e^c - 1) / (e - 1) with c = (left - i) / (left - d + 1) from d on.

    Args:
        left: actions of the old chunk, from the one that is sent at the new observation on.
    """
    c_H = np.clip((left - np.arange(horizon)) / (left - delay + 1), 0.0, 1.0)
    return (c_H * np.expm1(c_H) / np.expm1(1.0)).astype(np.float32)


@dataclass(frozen=True)
class Step:
    """One control step that a clock planned; `age` counts steps since the observation that it answers."""

    action: NDArray[np.float64]  # (7,)
    age: int | None  # None where the robot holds


@dataclass
class Statistics:
    """What a clock did in an episode so far."""

    held_steps: int = 0
    ages: list[int] = field(default_factory=list)  # of the executed actions
    seams: list[float] = field(default_factory=list)  # largest change of a motion channel where chunks meet
    delays: list[int] = field(default_factory=list)  # d of each inference
    latencies_ms: list[float] = field(default_factory=list)  # that each was charged

    def count(self, step: "Step") -> None:
        """Count a step that is executed."""
        if step.age is None:
            self.held_steps += 1
        else:
            self.ages.append(step.age)

    def record(self, clock: Clock, steps: int) -> ClockRecord:
        """Describe an episode of so many control steps."""
        return ClockRecord(
            mode=clock.mode,
            speed=clock.speed,
            robot_s=steps * clock.period_ms / 1e3,
            held_steps=self.held_steps,
            delay_mean=_mean(self.delays),
            delay_max=max(self.delays, default=None),
            age_mean=_mean(self.ages),
            age_max=max(self.ages, default=None),
            seam_mean=_mean(self.seams),
            seam_max=max(self.seams, default=None),
            latency_mean_ms=_mean(self.latencies_ms),
        )


class Playback:
    """Turns the chunks of one episode into control steps, as its clock says.

    Args:
        replan_steps: s, for the policy.
    """

    def __init__(self, clock: Clock, replan_steps: int) -> None:
        self.clock = clock
        self.replan_steps = replan_steps
        self.statistics = Statistics()
        self._chunk: NDArray[np.float64] | None = None  # the newest
        self._normalised_HA: NDArray[np.float32] | None = None  # the same, where the clock guides
        self._next = 0  # its first action that is not planned yet
        self._offset = 0  # steps from its observation to its action 0
        self._debt_ms = 0.0
        self._last = SETTLE_ACTION
        self._acted: NDArray[np.float64] | None = None  # the chunk that `_last` is of
        self._steps: deque[Step] = deque()

    def __len__(self) -> int:
        """Count the steps until the next observation."""
        return len(self._steps)

    def guidance(self, latency_ms: float) -> Guidance | None:
        """Say towards what the next chunk is guided, whose inference takes so long; None at the first one."""
        old_HA = self._normalised_HA
        if self.clock.guide is None or old_HA is None:
            return None
        left = len(old_HA) - self._next
        shifted_HA = np.zeros_like(old_HA)
        shifted_HA[:left] = old_HA[self._next :]
        return Guidance(shifted_HA, guidance_weights(self.clock.delay(latency_ms), left, len(old_HA)))

    def refill(
        self,
        actions_HJ: NDArray[np.float64],
        latency_ms: float,
        normalised_HA: NDArray[np.float32] | None = None,
    ) -> None:
        """Plan the next steps; see `plan`.

        Args:
            normalised_HA: the chunk as the policy's network gave it, for a clock that guides; without it,
                CannotServe.
        """
        if self.clock.guide is not None and normalised_HA is None:
            raise CannotServe(
                f"clock={self.clock.mode} needs chunks with normalised_HA, and the policy gave one without; "
                "use clock=async"
            )
        self._steps.extend(self.plan(actions_HJ, latency_ms))
        self._normalised_HA = normalised_HA

    def pop(self) -> NDArray[np.float64]:
        """Take the action (7,) of the next step; IndexError when none is planned."""
        step = self._steps.popleft()
        self.statistics.count(step)
        return step.action

    def plan(self, actions_HJ: NDArray[np.float64], latency_ms: float) -> list[Step]:
        """Plan the steps until the next observation, for the chunk that answers the last one.

        Raises CannotServe where the chunk, or the old one, is too short for the delay.
        """
        clock, s = self.clock, self.replan_steps
        clock.check(latency_ms, s, len(actions_HJ))
        if clock.mode == "free":
            steps = self._begin(actions_HJ, 0, s, 0)
        elif clock.mode == "wait":
            self._debt_ms += latency_ms
            delay = math.floor(self._debt_ms / clock.period_ms + ROUNDING)
            self._debt_ms = max(0.0, self._debt_ms - delay * clock.period_ms)
            steps = [*self._hold(delay), *self._begin(actions_HJ, 0, s, delay)]
        else:
            delay = clock.delay(latency_ms)
            if self._chunk is None:
                steps = [*self._hold(delay), *self._begin(actions_HJ, 0, s - delay, delay)]
            else:
                steps = [*self._go_on(delay), *self._begin(actions_HJ, delay, s, 0)]
        if clock.charges:
            self.statistics.delays.append(delay)
            self.statistics.latencies_ms.append(latency_ms)
        return steps

    def _hold(self, count: int) -> list[Step]:
        still = np.concatenate([np.zeros(MOTION), self._last[MOTION:]])
        return [Step(still, None)] * count

    def _begin(self, actions_HJ: NDArray[np.float64], first: int, end: int, offset: int) -> list[Step]:
        """Execute actions of a new chunk, whose action 0 is `offset` steps after its observation."""
        self._chunk, self._next, self._offset = actions_HJ, first, offset
        return self._go_on(end - first)

    def _go_on(self, count: int) -> list[Step]:
        """Execute the next actions of the newest chunk."""
        chunk, first = self._chunk, self._next
        assert chunk is not None, "there is a chunk to go on with"
        if first + count > len(chunk):
            raise CannotServe(
                f"clock={self.clock.mode} needs {count} more actions of a chunk of H = {len(chunk)}, of "
                f"which {first} are executed; lower checkpoint.replan_steps or clock.speed, or use clock=wait"
            )
        self._next = first + count
        return [self._step(chunk, i) for i in range(first, first + count)]

    def _step(self, chunk: NDArray[np.float64], i: int) -> Step:
        if self._acted is not None and self._acted is not chunk:
            self.statistics.seams.append(float(np.abs(chunk[i, :MOTION] - self._last[:MOTION]).max()))
        self._acted, self._last = chunk, chunk[i]
        return Step(chunk[i], self._offset + i)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
