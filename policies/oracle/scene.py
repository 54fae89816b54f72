"""What the oracle sees and how it can be tuned: poses, the grasp on the rim, options.

Frames are the world's: z up, lengths in metres; the hand's frame is the grip site's, whose local x is the
axis along which the fingers close and whose local z points out of the hand.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from policies.base import Observation

SUITE = "libero_spatial"
BOWL = "akita_black_bowl_1"  # the bowl that the goal names; akita_black_bowl_2 is the distractor
PLATE = "plate_1"
NEEDED = (f"{BOWL}_pos", f"{BOWL}_quat", f"{PLATE}_pos", "grip_site_pos", "grip_site_mat")
UPRIGHT_COS = 0.5  # a bowl tilted by more than 60 degrees has no rim to reach from above; try as if it stood

UP = np.array([0.0, 0.0, 1.0])
# metres from the plate's origin to the bowl's: in the plane LIBERO's own bound (`check_ontop`, which also
# wants contact); in height 5 mm at rest and somewhat more at touch-down in the hand
PLACED_RADIUS = 0.03
PLACED_HEIGHT = 0.012


@dataclass(frozen=True)
class OracleOptions:
    """Tunables: lengths in metres, times in control steps of 1/20 s."""

    rim_radius: float = 0.048  # from the bowl's axis to the grasp; the rim's outer radius is 53 mm
    grasp_height: float = 0.032  # above the bowl's origin, the rim is at 52 mm; at 40 mm the grasp slips
    hover_height: float = 0.06  # fingertips above the grasp while aligning: 4 cm over the rim
    lift_height: float = 0.08  # the drawer's walls reach 6 cm above the origin of the bowl in it
    slope: float = 1.5  # of the cone down to the plate, height over distance; it clears the drawer's front
    aligned: float = 0.015  # plane error at which the hand may go down
    astray: float = 0.03  # plane error at which it must go up again
    tilted_rad: float = 0.2  # orientation error at which the hand may go down
    close_early: float = 0.02  # above the grasp: the fingers need 3 steps to come near the rim
    close_steps: int = 11  # the gripper needs 8 to shut; lifting after 8, the bowl slipped in 4 of 10 tasks
    release_steps: int = 5  # more than half open: enough to leave a rim, or to go down around one
    dropped: float = 0.085  # from grip site to bowl's origin; 58 mm in a good grasp
    press: float = 0.005  # below the plate's origin, 1 cm below rest: contact ends the way, not the aim
    retreat_height: float = 0.12  # fingertips above the grasp at the end: clear of the bowl
    travel_patience: int = 60  # steps in hover or carry, which take up to 40; then something blocks the way
    contact_patience: int = 25  # steps in descend, lift or lower, which take up to 13
    gain: float = 1.5  # share of the position error asked for in a step
    turn_gain: float = 1.0  # share of the orientation error asked for in a step
    integral_gain: float = 0.1  # per step; against a steady error of 1 to 2 cm near the reach limit
    integral_limit: float = 0.03  # bound of the integral term on each axis
    integral_range: float = 0.03  # beyond this an axis is travelling and its integral sleeps: no overshoot
    live_episodes: int = 256  # episodes remembered at a time; a runner interleaves one per worker

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"oracle {name} must be > 0, got {value}")
        if self.aligned >= self.astray:
            raise ValueError(f"oracle aligned must be < astray, got {self.aligned} and {self.astray}")


@dataclass(frozen=True)
class Scene:
    """The poses that matter now, and the grasp aimed at."""

    bowl: NDArray[np.float64]
    plate: NDArray[np.float64]
    grip: NDArray[np.float64]
    grasp: NDArray[np.float64]
    turn: NDArray[np.float64]  # axis-angle in the world frame from the hand's orientation to the one wanted

    @property
    def grasp_miss(self) -> float:
        return float(np.linalg.norm((self.grasp - self.grip)[:2]))

    @property
    def plate_miss(self) -> float:
        return float(np.linalg.norm((self.plate - self.bowl)[:2]))

    @property
    def placed(self) -> bool:
        return self.plate_miss < PLACED_RADIUS and bool(self.bowl[2] - self.plate[2] < PLACED_HEIGHT)


def rim_angle_deg(instruction: str) -> float:
    """Choose where on the rim to grasp: the direction from the bowl's centre, in the world's plane."""
    if "drawer" in instruction:
        return 0.0  # the drawer leaves no room for the fingers in y
    if "on the wooden cabinet" in instruction:
        return 180.0  # towards the robot: the far rim is at the end of its reach
    return 90.0  # the hand starts with its fingers closing along y: nothing to turn


def look(observation: Observation, options: OracleOptions, *, opposite: bool) -> Scene:
    """Read the poses and place the grasp on the rim, or on its other side where `opposite`."""
    poses = observation.privileged
    angle_deg = rim_angle_deg(observation.instruction) + 180.0 * opposite
    axis = Rotation.from_quat(poses[f"{BOWL}_quat"]).apply(UP)
    if axis[2] < UPRIGHT_COS:
        axis = UP
    outward = _direction(angle_deg)
    outward = outward - (outward @ axis) * axis
    outward = outward / np.linalg.norm(outward)
    # Of the two ways to close along this line take the one in [90, 270) degrees: the hand starts at 90,
    # and turning it the other way ends near the limit of the last joint.
    closing = _direction(90.0 + (angle_deg - 90.0) % 180.0)
    wanted = np.column_stack([closing, np.cross(-UP, closing), -UP])
    return Scene(
        bowl=poses[f"{BOWL}_pos"],
        plate=poses[f"{PLATE}_pos"],
        grip=poses["grip_site_pos"],
        grasp=poses[f"{BOWL}_pos"] + options.rim_radius * outward + options.grasp_height * axis,
        turn=Rotation.from_matrix(wanted @ poses["grip_site_mat"].T).as_rotvec(),
    )


def check_served(observation: Observation) -> None:
    """Raise ValueError where the poses or the words are not those of a task of `SUITE`."""
    missing = [name for name in NEEDED if name not in observation.privileged]
    if missing:
        raise ValueError(
            f"the oracle serves {SUITE} only: {', '.join(missing)} missing from the privileged state of "
            f"{observation.instruction!r}"
        )
    words = observation.instruction
    if "black bowl" not in words or "place it on the plate" not in words:
        raise ValueError(
            f"the oracle serves {SUITE} only: it places the black bowl on the plate, but the instruction is "
            f"{words!r}"
        )


def _direction(angle_deg: float) -> NDArray[np.float64]:
    angle = np.deg2rad(angle_deg)
    return np.array([np.cos(angle), np.sin(angle), 0.0])
