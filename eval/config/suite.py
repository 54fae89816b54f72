"""The suite of the configuration: its name and its options, checked against each other."""

from dataclasses import dataclass

from omegaconf import MISSING

from eval.config.ranges import ConfigError, at_least, one_of
from eval.records.schema import SUITE
from eval.sim.suites import INITS, LEVELS, SuiteName

WHOSE = {  # the suites that have an option
    "level": "LIBERO-Plus's suites, as in suite=libero_spatial_plus_camera",
    "round_camera": "LIBERO-Plus's suites, as in suite=libero_spatial_plus_camera",
    "init": "LIBERO-Plus's robot, as in suite=libero_spatial_plus_robot",
    "control": "suites that perturb one of LIBERO's, as in suite=libero_spatial_swap",
}


@dataclass
class SuiteConfig:
    """conf/suite: which tasks, and for how many control steps at most; docs/robustness.md has the rest.

    Non-obvious behaviors:
        What is checked is named as records name it: `init=pose` and `control=true` change `name`.

    Attributes:
        name: one that the installed package registers, or LIBERO-Plus's.
        tasks: ids; None takes as many as the protocol says.
        instruction: of `SOURCES`; None takes the suite's own.
        level: LIBERO-Plus's label of difficulty; None takes all.
        init: of LIBERO-Plus's robot, `controller` as published or `pose`.
        round_camera: as LIBERO-Plus does in every dimension; None does.
        control: the unperturbed arm, with the tasks, states and noise keys of the perturbed one.
    """

    name: str = MISSING
    max_steps: int = MISSING
    tasks: list[int] | None = None
    instruction: str | None = None
    level: int | None = None
    init: str | None = None
    round_camera: bool | None = None
    control: bool | None = None

    def __post_init__(self) -> None:
        if not SUITE.fullmatch(self.name):
            raise ConfigError(f"suite.name must be letters, digits and _.- alone, got {self.name!r:.100}")
        suite = SuiteName.parse(self.name)
        for key, does_apply in {
            "level": suite.is_plus,
            "round_camera": suite.is_plus,
            "init": suite.table == "robot",
            "control": suite.dimension is not None,
        }.items():
            if getattr(self, key) is not None and not does_apply:
                raise ConfigError(
                    f"suite.{key} must be null for {self.name}, got {getattr(self, key)}; it is an option of "
                    f"{WHOSE[key]}"
                )
        if self.level is not None and self.level not in LEVELS:
            raise ConfigError(f"suite.level must be 1 to 5, or null for all, got {self.level}")
        if self.init is not None:
            one_of("suite.init", self.init, INITS)
        self.name = suite.chosen(at_pose=self.init == "pose", control=self.control is True)
        if self.instruction is not None:
            one_of("suite.instruction", self.instruction, SuiteName.parse(self.name).sources)
        at_least("suite.max_steps", self.max_steps, 1)
        if self.tasks is not None and (not self.tasks or len(set(self.tasks)) != len(self.tasks)):
            raise ConfigError(
                f"suite.tasks must be null or a list of different task ids, got {list(self.tasks)}"
            )
