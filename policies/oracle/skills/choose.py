"""From a fact that is missing to the skill that brings it about."""

from policies.oracle.goals import joints_of
from policies.oracle.grasps import kind_of
from policies.oracle.skills.base import Skill
from policies.oracle.skills.carry import Carry
from policies.oracle.skills.door import Shut
from policies.oracle.skills.drawer import Pull, Push
from policies.oracle.skills.knob import Turn
from policies.oracle.skills.plate import Slide
from policies.oracle.view import View
from policies.truth import Predicate


def choose_skill(predicate: Predicate, view: View) -> Skill:
    """Make the skill for a predicate that does not hold."""
    match predicate.name:
        case "open":
            return Pull(predicate, view)
        case "close":
            [joint, *_] = joints_of(view.truth.layout, predicate.arguments[0])
            hinge = view.truth.layout.joints[joint].kind == "hinge"
            return Shut(predicate, view) if hinge else Push(predicate, view)
        case "turnon" | "turnoff":
            return Turn(predicate, view)
    thing, target = predicate.arguments
    region = view.truth.layout.regions.get(target)
    if kind_of(thing) == "plate" and region is not None and region.thing is None:
        return Slide(predicate)
    return Carry(predicate)
