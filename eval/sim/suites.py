"""Names of suites: which suite of LIBERO's one perturbs, how, and whose words its instructions are."""

import re
from dataclasses import dataclass
from typing import Self

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
PERTURBED = SUITES[:4]  # by LIBERO-PRO and LIBERO-Plus
PRO = ("lan", "task", "swap", "object")
PLUS = ("camera", "robot", "pose", "noise", "language")  # pose: the robot at its pose, suite.init=pose
INITS = ("controller", "pose")  # where LIBERO-Plus's robot starts
LEVELS = range(1, 6)  # LIBERO-Plus's labels of difficulty
CONTROL = "_control"
SOURCES = ("filename", "bddl", "name")
"""Of an instruction: the task's file name, which published runs of LIBERO use; the BDDL file's text; or
LIBERO-Plus's name of the task, whose loader puts its parameters into the prompt."""

_NAME = re.compile(rf"({'|'.join(PERTURBED)})(?:_({'|'.join(PRO)})|_plus_({'|'.join(PLUS)}))")


@dataclass(frozen=True)
class SuiteName:
    """A suite's name, as records have it.

    Attributes:
        base: the suite of LIBERO's whose tasks and states it perturbs; itself where it perturbs none.
        dimension: what it perturbs, of `PRO` or `PLUS`; None where nothing that is known here.
        is_plus: whether it is LIBERO-Plus's, whose tasks are LIBERO's with parameters.
        is_control: whether it is the unperturbed arm: tasks, states and noise keys of the suite without
            `_control`, in LIBERO's own scenes and words.
    """

    name: str
    base: str
    dimension: str | None
    is_plus: bool
    is_control: bool

    @classmethod
    def parse(cls, name: str) -> Self:
        arm = name.removesuffix(CONTROL)
        match = _NAME.fullmatch(arm)
        if match is None:
            return cls(name, name, None, False, False)
        base, pro, plus = match.groups()
        return cls(name, base, pro or plus, plus is not None, arm != name)

    @property
    def arm(self) -> str:
        """The perturbed suite whose control this is; itself where it is none."""
        return self.name.removesuffix(CONTROL) if self.is_control else self.name

    @property
    def files(self) -> str:
        """The suite of the installed package whose BDDL files and initial states it uses."""
        return self.base if self.is_plus or self.is_control else self.name

    def chosen(self, *, at_pose: bool, control: bool) -> str:
        """The name with LIBERO-Plus's robot at its pose, or of the control arm."""
        name = self.name.replace("_plus_robot", "_plus_pose") if at_pose else self.name
        return name if self.is_control or not control else f"{name}{CONTROL}"

    @property
    def table(self) -> str:
        """The dimension of LIBERO-Plus's table; of its suites alone."""
        return "robot" if self.dimension == "pose" else str(self.dimension)

    @property
    def has_own_words(self) -> bool:
        """Whether instructions are what it perturbs."""
        return self.dimension in ("lan", "task", "language") and not self.is_control

    @property
    def sources(self) -> tuple[str, ...]:
        """The `SOURCES` that it has."""
        if self.has_own_words and self.is_plus:
            return ("bddl",)
        return SOURCES if self.is_plus and not self.is_control else SOURCES[:2]

    @property
    def source(self) -> str:
        """Where instructions come from unless `suite.instruction` says otherwise, of `SOURCES`.

        LIBERO-PRO rewrote the BDDL text of `_lan` and `_task` and kept the files' names; `_swap` and
        `_object` have LIBERO's own BDDL text, which is not the usual instruction.
        """
        return "bddl" if self.has_own_words else "filename"
