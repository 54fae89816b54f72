"""What a perturbation costs: each perturbed run of several beside the control arm of the same policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.analysis.comparable import Names, NotComparable
from eval.analysis.comparison import Comparison, compare
from eval.analysis.summary import Summary
from eval.records.reader import Run
from eval.sim.suites import SuiteName

ARMS: Names = ("the control arm", "the perturbed arm")


@dataclass(frozen=True)
class Arms:
    """A perturbed run and its control.

    Attributes:
        control, perturbed: their numbers among the runs, from 1.
        label: the policy; suite: the perturbed one.
        comparison: of the two; None where `not_comparable` says why.
    """

    control: int
    perturbed: int
    label: str
    suite: str
    comparison: Comparison | None
    not_comparable: str | None

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars."""
        comparison = None if self.comparison is None else self.comparison.to_dict()
        return vars(self) | {"comparison": comparison}


def find_arms(runs: Sequence[Run], summaries: Sequence[Summary], margin: float) -> tuple[Arms, ...]:
    """Compare each perturbed run with the first control arm of its suite by the same policy and setting."""
    arms = []
    for j, perturbed in enumerate(summaries):
        suites = [SuiteName.parse(suite) for suite in perturbed.suites]
        if any(suite.dimension is None or suite.is_control for suite in suites):
            continue
        for i, control in enumerate(summaries):
            if _is_control(control, perturbed):
                comparison, reason = _compared(runs[i], runs[j], margin)
                suite = ", ".join(perturbed.suites)
                arms.append(Arms(i + 1, j + 1, _label(perturbed), suite, comparison, reason))
                break
    return tuple(arms)


def _is_control(control: Summary, perturbed: Summary) -> bool:
    named = [SuiteName.parse(suite) for suite in control.suites]
    return (
        all(suite.is_control for suite in named)
        and sorted(suite.arm for suite in named) == sorted(perturbed.suites)
        and (control.policy_label, control.setting) == (perturbed.policy_label, perturbed.setting)
        and control.checkpoint_sha256 == perturbed.checkpoint_sha256
    )


def _label(summary: Summary) -> str:
    return f"{summary.policy_label}, {summary.setting}" if summary.setting else summary.policy_label


def _compared(control: Run, perturbed: Run, margin: float) -> tuple[Comparison | None, str | None]:
    try:
        return compare(control, perturbed, margin, ARMS), None
    except NotComparable as error:
        return None, str(error)
