"""The expert that reads the goal: it does what is missing, one skill after the other, and looks again."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from policies.base import Observation
from policies.oracle.goals import next_step
from policies.oracle.servo import OPEN, Gains, Servo
from policies.oracle.skills.base import TRAVELLING, Aim, Home, Skill
from policies.oracle.skills.choose import choose_skill
from policies.oracle.view import Shapes, View, turn
from policies.truth import Truth

Array = NDArray[np.float64]

GAINS = Gains(gain=1.5, turn_gain=1.0, integral_gain=0.1, integral_limit=0.03, integral_range=0.03)
STUCK_STEPS = 25  # of travel, within
STUCK_METRES = 0.06  # , while the aim is farther than
STUCK_AIM = 0.05
UPRIGHT_Z = -0.6  # of the hand's z axis: above, the hand is more than 53 degrees from straight down


class GoalExpert:
    """One episode: it remembers the skill at work, and where the hand began.

    Non-obvious behaviors:
        An arm that stands at the limit of a joint no longer follows. Where the hand hardly moves although
        its aim is far, it goes home first and starts the skill again. It also goes home with a hand that no
        longer points down: raised and stretched, the elbow would stay straight.
    """

    def __init__(self) -> None:
        self._shapes: Shapes | None = None
        self._servo = Servo(GAINS)
        self._skill: Skill | None = None
        self._home: tuple[Array, Array] | None = None
        self._track: deque[Array] = deque(maxlen=STUCK_STEPS)

    @property
    def phase(self) -> str:
        """The phase of the skill at work; `rest` where all is done."""
        return "rest" if self._skill is None else self._skill.phase

    def act(self, observation: Observation) -> Array:
        """Return an action (7,).

        Raises:
            ValueError: the observation has no truth, or its goal asks for what no skill does.
        """
        if observation.truth is None:
            raise ValueError("the oracle needs Observation.truth: ask with needs_privileged")
        view = self._view(observation.truth)
        aim = self._choose(view)
        action = self._servo.act(aim.position - view.grip, turn(aim.hand, view.hand), aim.gripper)
        self._watch(view, aim)
        return action

    def _choose(self, view: View) -> Aim:
        """Ask the skill at work, or the next one where it has ended."""
        while True:
            if self._skill is None:
                step = next_step(view)
                if step is None:
                    return Aim(view.grip, view.hand, OPEN)
                self._skill = choose_skill(step, view)
            skill = self._skill
            aim = skill.act(view)
            if skill.fresh:
                self._servo.forget()
                skill.fresh = False
            if aim is not None:
                return aim
            self._skill = None
            if view.hand[2, 2] > UPRIGHT_Z and self._home is not None:
                self._skill = Home(*self._home)

    def _watch(self, view: View, aim: Aim) -> None:
        """Send the hand home where it travels but does not get on."""
        if self._skill is None or self._skill.phase not in TRAVELLING:
            self._track.clear()
            return
        self._track.append(view.grip)
        moved = max(np.linalg.norm(grip - view.grip) for grip in self._track)
        far = np.linalg.norm(aim.position - view.grip) > STUCK_AIM
        if len(self._track) == STUCK_STEPS and moved < STUCK_METRES and far:
            assert self._home is not None
            self._track.clear()
            self._skill = Home(*self._home)

    def _view(self, truth: Truth) -> View:
        if self._shapes is None:
            self._shapes = Shapes(truth.layout)
            self._home = truth.grip.position.copy(), truth.grip.rotation.copy()
        return View(truth, self._shapes)
