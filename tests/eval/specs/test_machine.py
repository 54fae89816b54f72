"""What cannot run on a machine is said in the words of what was chosen, all of it, with a way out."""

import pickle

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.app.command import CONF
from eval.config.compose import check, plain
from eval.config.groups import backend_name, options, policy_label, recipe
from eval.config.schema import Config, register
from eval.specs.machine import explain
from eval.specs.pi05_build import choose_backends
from optim.base import CannotRun

OPEN = {
    "custom": ["policy._target_=mine.Policy"],
    "remote": ["policy.url=ws://localhost:1", "policy.label=weights"],
}
GPU = "it needs an NVIDIA GPU, got policy.device=cpu"


def refused(*overrides: str) -> tuple[CannotRun, Config]:
    """Why the policy that these overrides compose cannot run on a CPU, and its configuration."""
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = check(compose("config", [*overrides, "policy.device=cpu"]))
    with pytest.raises(CannotRun) as raised:
        choose_backends(config)
    return raised.value, config


def refusal(*overrides: str) -> str:
    """The message of `refused`."""
    return str(refused(*overrides)[0])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["policy=native_fp8"],
            f"policy=native_fp8 cannot run here: {GPU} (vision on fp8, prefix on fp8, denoise on compile); "
            "choose policy=baseline",
        ),
        (
            ["policy=full_optimized"],
            f"policy=full_optimized cannot run here: {GPU} (vision on tensorrt_fp16, prefix on tensorrt_fp8, "
            "denoise on compile); choose policy=baseline",
        ),
        (
            ["policy=compiled"],
            f"policy=compiled cannot run here: {GPU} (denoise on compile, images on cuda_graph); "
            "choose policy=baseline",
        ),
        (
            ["policy=realtime"],
            f"policy=realtime cannot run here: {GPU} (vision on fused_fp8, prefix on fused_fp8, denoise on "
            "fused, images on cuda_graph); choose policy=baseline",
        ),
        (
            ["policy=native_fp8", "optim/vision=eager"],
            f"policy=native_fp8 cannot run here: {GPU} (prefix on fp8, denoise on compile); "
            "choose policy=baseline",
        ),
        (
            ["policy=native_fp8", "optim/vision=cuda_graph"],
            f"policy=native_fp8 cannot run here: {GPU} (optim/vision=cuda_graph, prefix on fp8, denoise on "
            "compile); choose policy=baseline without optim/vision=cuda_graph",
        ),
        (
            ["optim/vision=fp8"],
            f"optim/vision=fp8 cannot run here: {GPU}; choose optim/vision=eager",
        ),
        (
            ["policy.images=cuda_graph"],
            f"policy.images=cuda_graph cannot run here: {GPU}; choose policy.images=eager",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_policy_is_named_with_all_that_cannot_run_and_a_key_where_it_was_set(
    overrides: list[str], expected: str
) -> None:
    assert refusal(*overrides) == expected


def test_reasons_that_differ_are_each_said_with_their_own_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.specs.pi05_build.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert refusal("policy=native_fp8", "policy.precision=float32") == (
        "policy=native_fp8 cannot run here: it needs policy.precision=bfloat16, got float32; "
        "set policy.precision=bfloat16 (vision on fp8, prefix on fp8); or choose policy=baseline"
    )


def test_what_cannot_run_is_there_in_parts_and_says_whether_the_policy_is_named() -> None:
    error, config = refused("policy=native_fp8", "optim/vision=cuda_graph")
    explanation = explain(config, error.reasons)
    assert explanation.names_policy
    assert explanation.message == str(error)
    assert explanation.parts == (
        (GPU, "optim/vision=cuda_graph"),
        (GPU, "policy=native_fp8 (prefix on fp8, denoise on compile)"),
    )
    assert explanation.way_out == "choose policy=baseline without optim/vision=cuda_graph"
    error, config = refused("optim/vision=fp8")
    explanation = explain(config, error.reasons)
    assert not explanation.names_policy
    assert explanation.parts == ((GPU, "optim/vision=fp8"),)
    assert explanation.way_out == "choose optim/vision=eager"


def test_the_error_survives_rays_pickle_with_its_reasons() -> None:
    error, _ = refused("policy=native_fp8", "optim/vision=cuda_graph")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reasons) == (str(error), error.reasons)
    assert list(error.reasons) == ["vision", "prefix", "denoise"]


def test_every_policys_recipe_is_that_of_its_composition() -> None:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        for policy in options("policy"):
            named = OPEN.get(policy, [])
            config = check(compose("config", [f"policy={policy}", *named]))
            composed = {
                stage: backend_name(stage, chosen)
                for stage in ("vision", "prefix", "denoise")
                if (chosen := getattr(config.optim, stage)) is not None
            }
            own = recipe(policy)
            assert {stage: name for stage, name in own.items() if stage != "images"} == composed, policy
            assert own.get("images", "eager") == getattr(config.policy, "images", "eager")
    assert recipe("one that was named on the command line") == {}


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["policy=realtime"], "realtime"),
        (["policy=realtime", "optim.denoise.warmup=5"], "realtime"),
        (["policy=realtime", "optim/vision=compile"], "realtime (vision compile)"),
        (
            ["policy=baseline", "optim/prefix=fp8", "optim/vision=cuda_graph"],
            "baseline (vision cuda_graph, prefix fp8)",
        ),
        (["policy=realtime", "optim/vision=compile", "policy.name=mine"], "mine"),
        (["policy=oracle"], "oracle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_policy_is_labelled_with_stages_on_another_backend_than_its_own(
    overrides: list[str], label: str
) -> None:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = plain(compose("config", overrides))
    assert policy_label(config["policy"]["name"], config) == label


def test_a_label_of_a_record_without_a_configuration_is_the_policy() -> None:
    assert policy_label("realtime", {}) == "realtime"
    assert policy_label("realtime", {"optim": {"vision": None}}) == "realtime"


def test_a_backend_keeps_its_name_when_an_option_of_it_is_set() -> None:
    fp16 = {"_target_": "optim.tensorrt.TensorRT", "precision": "fp16", "cuda_graph": False}
    assert backend_name("vision", fp16) == "tensorrt_fp16"
    assert backend_name("vision", fp16 | {"precision": "bf16"}) == "tensorrt_bf16"
    assert backend_name("vision", {"_target_": "toy.Toy"}) == "toy.Toy"
