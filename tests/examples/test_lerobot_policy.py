"""The LeRobot adapter gives the policy what lerobot would give it, and refuses what it cannot evaluate."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from examples.my_policy.lerobot_checks import check_weights
from examples.my_policy.lerobot_policy import LeRobotPolicy
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from tests.examples.conftest import INPUTS, STATS, Save, image

KEY = EpisodeKey("libero_spatial", 2, 3, 7)
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def observe(seed: int) -> Observation:
    draw = np.random.default_rng(seed)
    images = {name: draw.integers(0, 256, (256, 256, 3), np.uint8) for name in CAMERAS}
    return Observation(images, draw.standard_normal(8), "pick up the bowl")


def ask(policy: LeRobotPolicy, seed: int = 0, call: int = 0, key: EpisodeKey = KEY) -> NDArray[np.float64]:
    [chunk] = policy.infer([Request(observe(seed), key, call)])
    return chunk.actions_HJ


def by_hand(folder: Path, observations: Sequence[Observation]) -> NDArray[np.float64]:
    """Compute the chunk of a policy without noise: of all features, oldest first, channel means of images."""
    weights = {
        name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state = [(seen.state.astype(np.float32) - 0.5) / 2 for seen in observations]
    means = [[seen.images[name].mean((0, 1)) / 255 for seen in observations] for name in CAMERAS]
    features = np.concatenate([np.ravel(state), *(np.ravel(mean) for mean in means)])
    weight = weights.get("head.weight", weights.get("tied"))
    return (weight @ features + weights["head.bias"]).reshape(-1, 7) * 0.5 + 0.25


def test_a_chunk_is_what_the_policy_and_its_processors_make_of_the_observation(save: Save) -> None:
    folder = save()
    policy = LeRobotPolicy(str(folder), device="cpu")
    assert policy.cameras == CAMERAS
    assert policy.replan_steps == 4
    actions = ask(policy)
    assert actions.dtype == np.float64
    np.testing.assert_allclose(actions, by_hand(folder, [observe(0)]), atol=1e-5)


def test_images_can_be_given_as_the_simulator_renders_them(save: Save) -> None:
    seen = {}
    for upside_down in (False, True):
        policy = LeRobotPolicy(str(save()), device="cpu", upside_down=upside_down)
        seen[upside_down] = policy._prepare(observe(0))["observation.images.image"]
    assert torch.equal(seen[True], torch.flip(seen[False], dims=(2, 3)))  # as LiberoProcessorStep flips
    expected = torch.from_numpy(observe(0).images["agentview_image"]).permute(2, 0, 1)[None] / 255
    assert torch.equal(seen[False], expected)


def test_noise_comes_from_the_episode_and_the_call_alone(save: Save) -> None:
    policy = LeRobotPolicy(str(save(noise=1.0)), device="cpu")
    first = ask(policy)
    other = EpisodeKey("libero_spatial", 2, 4, 7)
    requests = [Request(observe(0), other, 0), Request(observe(0), KEY, 0)]
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    batch = [chunk.actions_HJ for chunk in policy.infer(requests)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(batch[1], first)
    assert not np.allclose(batch[0], first)
    assert not np.allclose(ask(policy, call=1), first)


@pytest.mark.gpu
def test_noise_on_a_gpu_comes_from_the_episode_and_the_call_alone(save: Save) -> None:
    policy = LeRobotPolicy(str(save(noise=1.0)), device="cuda:0")
    assert policy.provenance()["device"] == torch.cuda.get_device_name(0)
    first = ask(policy)
    torch.cuda.manual_seed(99)
    before = torch.cuda.get_rng_state()
    again = ask(policy)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert np.array_equal(again, first)
    assert not np.allclose(ask(policy, call=1), first)


def test_a_policy_with_a_history_sees_every_step_and_hands_out_its_chunk(save: Save) -> None:
    folder = save(type="queues", n_obs_steps=2)
    policy = LeRobotPolicy(str(folder), device="cpu", replan_steps=3)
    assert policy.replan_steps == 1
    other = EpisodeKey("libero_spatial", 0, 0, 7)
    acted = []
    for call in range(5):
        acted.append(ask(policy, seed=call, call=call))
        ask(policy, seed=100 + call, call=call, key=other)  # an episode beside it
    first = by_hand(folder, [observe(0), observe(0)])
    second = by_hand(folder, [observe(2), observe(3)])
    np.testing.assert_allclose(np.concatenate(acted), [*first[:3], *second[:2]], atol=1e-5)
    np.testing.assert_allclose(ask(policy, seed=0, call=0), first[:1], atol=1e-5)  # call 0 starts anew


def test_an_episode_that_is_not_remembered_is_an_error(save: Save) -> None:
    policy = LeRobotPolicy(str(save(type="queues", n_obs_steps=2)), device="cpu", live_episodes=1)
    ask(policy)
    ask(policy, key=EpisodeKey("libero_spatial", 0, 0, 7))
    with pytest.raises(KeyError, match=r"call 1 of libero_spatial-task2.*live_episodes=1"):
        ask(policy, call=1)


def test_a_policy_with_one_observation_step_and_queues_is_a_chunk_policy(save: Save) -> None:
    folder = save(type="queues")
    policy = LeRobotPolicy(str(folder), device="cpu")
    assert policy.replan_steps == 4
    np.testing.assert_allclose(ask(policy), by_hand(folder, [observe(0)])[:4], atol=1e-5)


def test_cameras_go_by_the_names_before_the_policys_own_renaming(save: Save) -> None:
    renamed = {"observation.images.image": "observation.images.camera1", "wrist": "observation.images.image2"}
    inputs = {**INPUTS, "observation.images.camera1": image()}
    del inputs["observation.images.image"]
    folder = save(rename_map=renamed, input_features=inputs)
    with pytest.raises(ValueError, match=r"wrist: no camera; set '\+policy\.args\.cameras=\{wrist: NAME\}'"):
        LeRobotPolicy(str(folder), device="cpu")
    policy = LeRobotPolicy(str(folder), device="cpu", cameras={"wrist": "robot0_eye_in_hand_image"})
    assert policy.provenance()["images"] == {
        "wrist": "robot0_eye_in_hand_image",
        "observation.images.image": "agentview_image",
    }
    assert ask(policy).shape == (8, 7)


def test_a_camera_that_lerobot_fills_itself_needs_no_image(save: Save) -> None:
    inputs = {**INPUTS, "observation.images.empty_camera_0": image(224)}
    policy = LeRobotPolicy(str(save(input_features=inputs, empty_cameras=1)), device="cpu")
    assert policy.cameras == CAMERAS


def test_a_record_names_lerobot_the_weights_and_the_processors(save: Save) -> None:
    folder = save()
    about = LeRobotPolicy(str(folder), device="cpu", config={"n_action_steps": 2}).provenance()
    assert about["lerobot"] == "0.0.fake"
    assert about["type"] == "chunks"
    assert about["replan_steps"] == 2
    assert about["device"] == "cpu"
    (folder / "policy_postprocessor.json").write_text(
        (folder / "policy_postprocessor.json").read_text().replace("0.25", "0.75")
    )
    changed = LeRobotPolicy(str(folder), device="cpu", config={"n_action_steps": 2}).provenance()
    assert {key for key in about if about[key] != changed[key]} == {"processors_sha256"}
    save(chunk_size=9)
    assert LeRobotPolicy(str(folder), device="cpu").provenance()["weights_sha256"] != about["weights_sha256"]


@pytest.mark.parametrize(
    ("config", "arguments", "error"),
    [
        ({"output_features": {"action": {"type": "ACTION", "shape": [14]}}}, {}, "action of shape (7,)"),
        ({"output_features": None}, {}, "got none"),
        ({"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}, {}, "temporal_ensemble_coeff=null"),
        ({"rtc_config": {"enabled": True}}, {}, "+policy.args.config.rtc_config=null"),
        ({"type": "remembers"}, {}, "it remembers earlier calls"),
        ({"type": "smooths"}, {}, "lerobot executes other actions than those of the chunk"),
        ({"use_relative_actions": True}, {}, "use_relative_actions is set"),
        ({"type": "single"}, {}, "type single predict no action chunks: it returns single actions"),
        ({"n_obs_steps": 2}, {}, "n_obs_steps=2"),
        ({"type": "tdmpc"}, {}, "type tdmpc keep the plan of its last call"),
        ({"n_action_steps": None}, {}, "neither n_action_steps nor action_chunk_size"),
        ({}, {"replan_steps": 0}, "replan_steps must be an integer >= 1, got 0"),
        ({}, {"replan_steps": 9}, "replan_steps must be <= 8, the length of a chunk, got 9"),
        ({}, {"config": {"chunk": 3}}, "policy.args.config.chunk is no field of PreTrainedConfig"),
        ({}, {"config": {"device": "cuda"}}, "policy.args.config.device"),
        ({}, {"device": "tpu"}, "policy.args.device must be auto, cpu, cuda"),
        ({}, {"cameras": {"front": CAMERAS[0]}}, "policy.args.cameras: no image feature front"),
        ({}, {"cameras": {"observation.images.image": "front"}}, "got front"),
        ({}, {"revision": "v2"}, "policy.args.revision=v2"),
        ({}, {"live_episodes": 0}, "live_episodes must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(
    save: Save, config: dict[str, Any], arguments: dict[str, Any], error: str
) -> None:
    folder = save(**config)
    with pytest.raises(ValueError, match=re.escape(error)):
        LeRobotPolicy(str(folder), **{"device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("name", "feature", "error"),
    [
        (
            "observation.state",
            {"type": "STATE", "shape": [32]},
            "observation.state of shape (32,): LIBERO's is (8,)",
        ),
        (
            "observation.environment_state",
            {"type": "ENV", "shape": [4]},
            "observation.environment_state (ENV)",
        ),
        ("observation.state.joints", {"type": "STATE", "shape": [7]}, "observation.state.joints (STATE)"),
        ("observation.images.top", image(), "observation.images.top: no camera"),
        ("observation.images.empty_camera_0", image(), "observation.images.empty_camera_0: no camera"),
        ("observation.images.image", image(96), "images are (3, 256, 256), and it does not resize"),
    ],
)
def test_a_feature_that_libero_lacks_is_refused_by_name(
    save: Save, name: str, feature: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        LeRobotPolicy(str(save(input_features={**INPUTS, name: feature})), device="cpu")


def test_a_policy_that_resizes_takes_images_of_another_size(save: Save) -> None:
    inputs = {**INPUTS, "observation.images.image": image(224)}
    LeRobotPolicy(str(save(input_features=inputs, image_resolution=[224, 224])), device="cpu")


def test_what_a_field_of_the_configuration_forbids_can_be_set_otherwise(save: Save) -> None:
    folder = save(temporal_ensemble_coeff=0.01, n_action_steps=1)
    changes = {"temporal_ensemble_coeff": None, "n_action_steps": 3}
    assert LeRobotPolicy(str(folder), device="cpu", config=changes).replan_steps == 3


@pytest.mark.parametrize("name", ["observation.state", "action"])
def test_statistics_that_lerobot_would_do_without_are_an_error(save: Save, name: str) -> None:
    stats = {key: value for key, value in STATS.items() if key != name}
    with pytest.raises(ValueError, match=rf"normalises {name} by MEAN_STD without its statistics"):
        LeRobotPolicy(str(save(stats=stats)), device="cpu")
    LeRobotPolicy(str(save(stats=stats, modes=dict.fromkeys(("STATE", "ACTION"), "IDENTITY"))), device="cpu")


@pytest.mark.parametrize("kind", ["chunks", "careless"])
def test_weights_that_lerobot_left_as_initialised_are_an_error(save: Save, kind: str) -> None:
    folder = save(type=kind)
    weights = load_file(folder / "model.safetensors")
    del weights["head.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"did not load 1 of the network's 3 tensors .*head\.bias"):
        LeRobotPolicy(str(folder), device="cpu")


def test_weights_may_be_tied_renamed_or_of_another_precision(tmp_path: Path) -> None:
    drawn = torch.randn(3, 4)
    file = tmp_path / "model.safetensors"
    save_file({"head": drawn, "layer": drawn[0].clone()}, file)
    check_weights({"head": drawn, "tied": drawn, "model.layer": drawn[0].bfloat16()}, file)
    with pytest.raises(ValueError, match=r"1 of the network's 2 tensors .*model\.layer"):
        check_weights({"head": drawn, "model.layer": drawn[1]}, file)


STEP = {"class": "a_module_of_somebody.Step", "config": {}}


@pytest.mark.parametrize("file", ["policy_preprocessor.json", "policy_postprocessor.json", "config.json"])
@pytest.mark.parametrize(
    ("step", "error"),
    [
        (STEP, "class=a_module_of_somebody.Step names code to import"),
        (
            {"registry_name": "device_processor", **STEP},
            "class=a_module_of_somebody.Step names code to import",
        ),
        ({"registry_name": "x", "config": {"deep": [{"_target_": "os.system"}]}}, "_target_=os.system names"),
        (
            {"registry_name": "x", "config": {"auto_map": {"AutoModel": "a.B"}}},
            'auto_map={"AutoModel": "a.B"}',
        ),
    ],
)
def test_a_folder_that_names_code_is_refused_before_lerobot_reads_it(
    save: Save, step: dict[str, Any], error: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module_of_somebody.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = save()
    content = json.loads((folder / file).read_text())
    content.setdefault("steps", []).append(step)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{folder / file}: steps[")) as refused:
        LeRobotPolicy(str(folder), device="cpu")
    assert error in str(refused.value)


@pytest.mark.parametrize("name", [None, 3, ["a"]])
def test_a_step_without_a_name_that_lerobot_knows_is_refused(save: Save, name: Any) -> None:
    folder = save()
    file = folder / "policy_preprocessor.json"
    file.write_text(json.dumps({"steps": [{"registry_name": name, "config": {}}]}))
    with pytest.raises(ValueError, match=r"steps\[0\] must have a registry_name"):
        LeRobotPolicy(str(folder), device="cpu")
    file.write_text(json.dumps({"steps": "all"}))
    with pytest.raises(ValueError, match=r"must have a list of steps"):
        LeRobotPolicy(str(folder), device="cpu")


def test_a_repository_whose_code_would_run_is_named_by_lerobot_or_by_the_user(save: Save) -> None:
    own, other = "lerobot/fast-action-tokenizer", "somebody/tokenizer"
    LeRobotPolicy(str(save(action_tokenizer_name=own)), device="cpu")
    folder = save(action_tokenizer_name=other)
    with pytest.raises(
        ValueError, match=r"name it yourself: \+policy.args.config.action_tokenizer_name=some"
    ):
        LeRobotPolicy(str(folder), device="cpu")
    trusting = {"device": "cpu", "config": {"action_tokenizer_name": other}}
    LeRobotPolicy(str(folder), **trusting)
    file = folder / "policy_preprocessor.json"
    content = json.loads(file.read_text())
    content["steps"][0]["config"]["action_tokenizer_name"] = other
    file.write_text(json.dumps(content))
    LeRobotPolicy(str(folder), **trusting)
    with pytest.raises(
        ValueError, match=r"steps\[0\] action_tokenizer_name=somebody/tokenizer names a repos"
    ):
        LeRobotPolicy(str(folder), device="cpu", config={"action_tokenizer_name": own})


@pytest.mark.parametrize(
    ("missing", "added", "error"),
    [
        (["policy_preprocessor.json", "policy_postprocessor.json"], [], "older than lerobot 0.4: migrate it"),
        (["model.safetensors"], ["adapter_config.json"], "a LoRA adapter: merge it"),
        (["config.json"], [], "lacks config.json; save the policy with lerobot"),
    ],
)
def test_a_folder_that_is_not_whole_says_what_to_do(
    save: Save, missing: list[str], added: list[str], error: str
) -> None:
    folder = save()
    for name in missing:
        (folder / name).unlink()
    for name in added:
        (folder / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=error):
        LeRobotPolicy(str(folder), device="cpu")


def test_the_folder_of_a_training_run_names_the_policy_inside(save: Save, tmp_path: Path) -> None:
    inside = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    inside.parent.mkdir(parents=True)
    save().rename(inside)
    with pytest.raises(FileNotFoundError, match=rf"set policy\.args\.path={re.escape(str(inside))}"):
        LeRobotPolicy(str(tmp_path / "run"), device="cpu")


def test_a_path_that_is_neither_a_folder_nor_a_hub_id_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no folder '/nothing/at/all'"):
        LeRobotPolicy("/nothing/at/all", device="cpu")


def test_an_answer_is_a_chunk_for_each_request(save: Save) -> None:
    policy = LeRobotPolicy(str(save()), device="cpu")
    answers = policy.infer([Request(observe(seed), KEY, seed) for seed in range(3)])
    assert [type(answer) for answer in answers] == [ActionChunk] * 3
    for seed, answer in enumerate(answers):
        assert np.array_equal(answer.actions_HJ, ask(policy, seed, seed))
