"""The oracle serves libero_spatial, decides from the poses it sees, and says so where it cannot."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.base import ACTION_DIM, EpisodeKey, Observation, Request
from policies.oracle import OraclePolicy
from policies.oracle.scene import UP, OracleOptions, rim_angle_deg
from policies.oracle.spatial import Phase, SpatialExpert

INSTRUCTION = "pick up the black bowl from table center and place it on the plate"
KEY = EpisodeKey("libero_spatial", 2, 0, 7)
BOWL = np.array([-0.08, 0.02, 0.898])
PLATE = np.array([0.07, 0.20, 0.902])
GRIP = np.array([-0.21, 0.0, 1.18])
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # fingers close along y
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])  # xyzw
OPTIONS = OracleOptions()
GRASP = BOWL + np.array([0.0, OPTIONS.rim_radius, OPTIONS.grasp_height])


def observe(
    grip: NDArray[np.float64] = GRIP,
    bowl: NDArray[np.float64] = BOWL,
    mat: NDArray[np.float64] = POINTING_DOWN,
    quat: NDArray[np.float64] = UPRIGHT,
) -> Observation:
    return Observation(
        images={},
        state=np.zeros(8),
        instruction=INSTRUCTION,
        privileged={
            "akita_black_bowl_1_pos": bowl,
            "akita_black_bowl_1_quat": quat,
            "plate_1_pos": PLATE,
            "grip_site_pos": grip,
            "grip_site_mat": mat,
        },
    )


def act(
    policy: OraclePolicy, observation: Observation, call: int, key: EpisodeKey = KEY
) -> NDArray[np.float64]:
    return policy.infer([Request(observation, key, call)])[0].actions_HJ[0]


def bring_to_lift(policy: OraclePolicy, key: EpisodeKey = KEY) -> int:
    """Show the poses of a good grasp until the hand lifts; return the next call."""
    call = 0
    while call == 0 or policy.phase(key) != Phase.LIFT:
        act(policy, observe(grip=GRASP), call, key)
        call += 1
        assert call < 30
    return call


def test_a_chunk_is_one_action_in_range() -> None:
    for grip in (GRIP, GRIP + 5.0, GRASP):
        (chunk,) = OraclePolicy().infer([Request(observe(grip=grip), KEY, 0)])
        assert chunk.actions_HJ.shape == (1, ACTION_DIM)
        assert chunk.actions_HJ.dtype == np.float64
        assert np.all(np.abs(chunk.actions_HJ) <= 1.0)


def test_it_moves_towards_the_rim_with_open_fingers() -> None:
    action = act(OraclePolicy(), observe(), 0)
    assert np.all(np.sign(action[:3]) == np.sign(GRASP - GRIP))
    assert action[3:6] == pytest.approx(0.0)
    assert action[6] == -1.0


def test_a_tilted_hand_is_turned_back() -> None:
    angle = 0.1
    about_x = np.array(
        [[1.0, 0.0, 0.0], [0.0, np.cos(angle), -np.sin(angle)], [0.0, np.sin(angle), np.cos(angle)]]
    )
    action = act(OraclePolicy(), observe(mat=about_x @ POINTING_DOWN), 0)
    assert action[3:6] == pytest.approx([-angle / 0.5, 0.0, 0.0])


def test_the_grasp_tilts_with_the_bowl() -> None:
    """Tilted by 30 degrees about x, the rim at +y rises and comes closer to the axis of the world."""
    half = np.deg2rad(15.0)
    quat = np.array([np.sin(half), 0.0, 0.0, np.cos(half)])
    cos, sin = np.cos(2 * half), np.sin(2 * half)
    radius, height = OPTIONS.rim_radius, OPTIONS.grasp_height
    tilted = BOWL + np.array([0.0, radius * cos - height * sin, radius * sin + height * cos])
    action = act(OraclePolicy(), observe(grip=tilted + OPTIONS.hover_height * UP, quat=quat), 0)
    assert action[:6] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("quat", [[1.0, 0.0, 0.0, 0.0], [0.5**0.5, 0.0, 0.0, 0.5**0.5]])
def test_an_overturned_bowl_gets_finite_actions(quat: list[float]) -> None:
    assert np.all(np.isfinite(act(OraclePolicy(), observe(quat=np.array(quat)), 0)))


def test_the_rim_angle_follows_the_words() -> None:
    assert rim_angle_deg(INSTRUCTION) == 90.0
    assert rim_angle_deg("pick up the black bowl on the wooden cabinet and place it on the plate") == 180.0
    assert rim_angle_deg("pick up the black bowl in the top drawer of the wooden cabinet and ...") == 0.0


def test_call_0_starts_the_episode_anew() -> None:
    policy = OraclePolicy()
    first = act(policy, observe(), 0)
    bring_to_lift(policy)
    assert np.array_equal(act(policy, observe(), 0), first)
    assert policy.phase(KEY) == Phase.HOVER


def test_interleaved_episodes_do_not_mix() -> None:
    policy, other = OraclePolicy(), replace(KEY, episode=1)
    call = bring_to_lift(policy)
    policy.infer([Request(observe(), other, 0), Request(observe(grip=GRASP), KEY, call)])
    assert (policy.phase(other), policy.phase(KEY)) == (Phase.HOVER, Phase.LIFT)


def test_a_dropped_bowl_is_fetched_again() -> None:
    policy = OraclePolicy()
    call = bring_to_lift(policy)
    action = act(policy, observe(grip=GRASP + 0.05 * UP), call)
    assert policy.phase(KEY) == Phase.HOVER
    assert action[6] == -1.0


def test_a_blocked_descent_changes_to_the_other_side_of_the_rim() -> None:
    policy, stuck = OraclePolicy(), GRASP + 0.04 * UP
    blocked_at = OPTIONS.release_steps + OPTIONS.contact_patience + 1
    for call in range(blocked_at):
        act(policy, observe(grip=stuck), call)
    assert policy.phase(KEY) == Phase.DESCEND
    action = act(policy, observe(grip=stuck), blocked_at)
    assert policy.phase(KEY) == Phase.HOVER
    assert action[1] == 0.0  # up first
    assert action[2] > 0.0
    action = act(policy, observe(grip=GRASP + OPTIONS.hover_height * UP), blocked_at + 1)
    assert action[1] == -1.0  # from +y of the bowl to -y
    assert action[3:6] == pytest.approx(0.0)  # the same line to close along: nothing to turn


def test_after_placing_it_stays_harmlessly_above() -> None:
    policy, placed = OraclePolicy(), PLATE + 0.005 * UP
    above = GRASP - BOWL + placed + OPTIONS.retreat_height * UP
    for call in range(50):
        action = act(policy, observe(grip=above, bowl=placed), call)
        assert policy.phase(KEY) == Phase.RETREAT
        assert action[:6] == pytest.approx(0.0, abs=1e-9)
        assert action[6] == -1.0


def test_the_integral_is_bounded() -> None:
    policy = OraclePolicy()
    short = GRASP + np.array(
        [0.029, 0.0, OPTIONS.hover_height]
    )  # held back near the goal, as by a joint limit
    for call in range(2 * OPTIONS.travel_patience):
        action = act(policy, observe(grip=short), call)
        expert = policy._experts[KEY]
        assert isinstance(expert, SpatialExpert)
        assert np.all(np.abs(expert.servo.integral) <= OPTIONS.integral_limit)
        assert -action[0] * 0.05 <= OPTIONS.gain * 0.029 + OPTIONS.integral_limit + 1e-9


def test_memory_is_bounded_and_forgetting_is_an_error() -> None:
    policy = OraclePolicy(OracleOptions(live_episodes=2))
    keys = [replace(KEY, episode=i) for i in range(3)]
    for key in keys:
        act(policy, observe(), 0, key)
    assert len(policy._experts) == 2
    with pytest.raises(KeyError, match="does not remember"):
        act(policy, observe(), 1, keys[0])


@pytest.mark.parametrize("name", ["akita_black_bowl_1_pos", "akita_black_bowl_1_quat", "plate_1_pos"])
def test_another_suites_objects_are_refused(name: str) -> None:
    observation = observe()
    poses = {k: v for k, v in observation.privileged.items() if k != name}
    with pytest.raises(ValueError, match=f"libero_spatial only: {name} missing"):
        act(OraclePolicy(), replace(observation, privileged=poses), 0)


def test_another_suites_instruction_is_refused() -> None:
    observation = replace(observe(), instruction="put the wine bottle on top of the cabinet")
    with pytest.raises(ValueError, match=r"libero_spatial only.*wine bottle"):
        act(OraclePolicy(), observation, 0)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="gain must be > 0, got 0"):
        OracleOptions(gain=0)
    with pytest.raises(ValueError, match="aligned must be < astray"):
        OracleOptions(aligned=0.05)


def test_provenance_names_the_options() -> None:
    provenance = OraclePolicy().provenance()
    assert provenance["kind"] == "oracle"
    assert provenance["options"]["rim_radius"] == OPTIONS.rim_radius
    assert OraclePolicy().engagement() == {}


@pytest.mark.sim
@pytest.mark.parametrize(
    ("suite", "task_id", "max_steps"),
    [
        ("libero_spatial", 0, 220),  # a table
        ("libero_spatial", 4, 220),  # a drawer
        ("libero_object", 2, 280),  # a bottle into a basket
        ("libero_goal", 0, 300),  # pull a drawer
        ("libero_goal", 5, 300),  # push a plate
        ("libero_goal", 7, 300),  # turn a knob
        ("libero_10", 3, 520),  # a bowl into a drawer, and push it shut
        ("libero_90", 33, 400),  # push a door
    ],
)
def test_it_solves_a_task_for_each_skill(
    simulator: dict[str, str], suite: str, task_id: int, max_steps: int
) -> None:
    from eval.sim.env import LiberoEnv
    from eval.sim.tasks import load_tasks

    policy = OraclePolicy()
    env = LiberoEnv(load_tasks(suite)[task_id], render=False)
    key = EpisodeKey(suite, task_id, 0, 7)
    env.reset(key)
    success = any(
        env.step(act(policy, env.observe((), privileged=True), call, key)) for call in range(max_steps)
    )
    env.close()
    assert success, f"failed in phase {policy.phase(key)}"


def test_another_suite_is_served_from_its_goal() -> None:
    """Without truth nothing can be read; the spatial machine would have asked for a bowl instead."""
    with pytest.raises(ValueError, match=r"needs Observation\.truth"):
        act(OraclePolicy(), observe(), 0, replace(KEY, suite="libero_goal"))
