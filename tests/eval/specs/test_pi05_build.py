"""From configuration to policy: devices and precisions are chosen, wrong ones refused before weights load."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from eval.config.compose import configure
from eval.config.schema import (
    Config,
    ConfigError,
    DenoiseConfig,
    OptimConfig,
    Pi05PolicyConfig,
    PolicyConfig,
    ProtocolConfig,
    RunnerConfig,
    SuiteConfig,
    TrackingConfig,
)
from eval.specs import pi05_build as build_module
from eval.specs.choose import make_spec
from eval.specs.pi05_build import choose_device, choose_dtype, load
from optim.base import Backend, CannotRun, CountedStage, StageContext
from optim.core.engines import serve
from optim.eager import Eager
from policies.base import EpisodeKey, Observation, Policy, Request
from policies.files import ROOT
from policies.oracle.policy import OraclePolicy
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.policy import Pi05Policy

PI05 = "eval.specs.pi05.Pi05Spec"
EAGER = {"_target_": "optim.eager.Eager"}
CHECKPOINT = CheckpointConfig(
    name="random_small",
    layout="random",
    sizes="small",
    norm_mode="quantile",
    state_in_prompt=False,
    horizon=10,
    replan_steps=5,
    denoise_steps=10,
)


def config(**changes: Any) -> Config:
    """The baseline with random weights on the CPU, some parts changed."""
    parts: dict[str, Any] = {
        "suite": SuiteConfig("libero_spatial", 220),
        "protocol": ProtocolConfig("smoke", 1, 0, 1),
        "checkpoint": CHECKPOINT,
        "policy": Pi05PolicyConfig("baseline", PI05, device="cpu"),
        "optim": OptimConfig(EAGER, EAGER, EAGER),
        "denoise": DenoiseConfig(10),
        "runner": RunnerConfig("local"),
        "tracking": TrackingConfig("none"),
    }
    return Config(**(parts | changes))


def built(of: Config) -> Policy:
    """The policy of a configuration whose backends need no examples."""

    def capture(policy: Pi05Policy) -> list[Request]:
        raise AssertionError("no pass needs an example, and the simulator would be started for it")

    return make_spec(of.policy).build(of, capture).policy


def set_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""

    def load(*_: Any) -> None:
        pytest.fail("the weights were loaded")

    monkeypatch.setattr(build_module, "load_checkpoint", load)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    set_gpus(monkeypatch, gpus)
    assert choose_device("auto") == torch.device(device)


def test_a_device_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, 2)
    assert [str(choose_device(name)) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize(("gpus", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: int, name: str) -> None:
    set_gpus(monkeypatch, gpus)
    with pytest.raises(ConfigError, match=rf"policy\.device={name} is not there: .* sees {gpus} GPUs"):
        choose_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "mps", "cuda:x", "meta"])
def test_what_is_no_device_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.device must be auto, cpu, cuda or cuda:N, got"):
        choose_device(name)


def test_auto_precision_is_bfloat16_on_gpus_and_float32_elsewhere() -> None:
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert choose_dtype("float32", torch.device("cuda")) is torch.float32


@pytest.mark.usefixtures("no_weights")
def test_the_oracle_needs_no_weights() -> None:
    policy = PolicyConfig("oracle", "eval.specs.oracle.OracleSpec")
    assert isinstance(built(config(policy=policy, optim=OptimConfig())), OraclePolicy)


def test_a_policy_is_built_as_the_configuration_says() -> None:
    policy = built(
        config(
            policy=Pi05PolicyConfig("mine", PI05, form="full", precision="bfloat16", device="cpu"),
            checkpoint=replace(CHECKPOINT, replan_steps=4),
            denoise=DenoiseConfig(3),
        )
    )
    assert isinstance(policy, Pi05Policy)
    facts = policy.provenance()
    assert (policy.name, policy.replan_steps, facts["form"]) == ("mine", 4, "full")
    assert (facts["dtype"], facts["device"]) == ("bfloat16", "cpu")
    assert facts["denoise_steps"] == 3  # of the denoise group, not the checkpoint's 10
    assert facts["weights_label"] == "RANDOM WEIGHTS (small)"
    assert {stage: of["backend"] for stage, of in policy.engagement().items()} == dict.fromkeys(
        ("vision", "prefix", "denoise"), "eager"
    )


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("backend", [None, "eager", {}, {"warmup": 3}])
def test_a_stage_without_a_backend_is_refused_before_weights_load(backend: Any) -> None:
    with pytest.raises(ConfigError, match=r"optim\.prefix must be a backend, chosen with a slash"):
        built(config(optim=OptimConfig(EAGER, backend, EAGER)))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    "backend", [{"_target_": "optim.abacus.Abacus"}, {"_target_": "optim.eager.Eager", "speed": 11}]
)
def test_a_backend_that_cannot_be_made_is_refused_before_weights_load(backend: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.denoise refused its options: "):
        built(config(optim=OptimConfig(EAGER, EAGER, backend)))


@pytest.mark.usefixtures("no_weights")
def test_a_missing_device_is_refused_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"policy\.device=cuda is not there"):
        built(config(policy=Pi05PolicyConfig("baseline", PI05, device="cuda")))


def test_a_backend_that_does_not_engage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def engage(*_: Any) -> None:
        raise ImportError("no module named 'tensorrt'")

    monkeypatch.setattr(Eager, "__call__", engage)
    with pytest.raises(ConfigError, match=r"optim\.vision=Eager\(\) did not engage: ImportError: no module"):
        built(config())


@pytest.mark.usefixtures("no_weights")
def test_a_backend_that_cannot_run_on_this_machine_is_refused_before_weights_load() -> None:
    graph = {"_target_": "optim.cuda_graph.CudaGraph"}
    with pytest.raises(
        CannotRun, match=r"^optim/denoise=cuda_graph cannot run here: it needs an .*; choose optim/den"
    ):
        built(config(optim=OptimConfig(EAGER, EAGER, graph)))


@pytest.mark.usefixtures("no_weights")
def test_graphed_images_need_a_gpu_and_say_so_before_weights_load() -> None:
    policy = Pi05PolicyConfig("realtime", PI05, device="cpu", images="cuda_graph")
    with pytest.raises(CannotRun, match=r"^policy=realtime cannot run here: .* \(images on cuda_graph\); "):
        built(config(policy=policy))


@dataclass(frozen=True)
class Examined(Backend):
    """Keeps what it was given."""

    needs_amax: ClassVar[bool] = True
    seen: ClassVar[list[StageContext]] = []

    def __call__(self, source: StageContext) -> CountedStage:
        self.seen.append(source)
        return serve(source, "examined", lambda args: source.stage.forward, tolerance=0.0)


def test_a_backend_gets_captured_examples_the_calibration_and_the_hash_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "load_scales", lambda checkpoint, path: {"prefix": {"layers.0": path}})
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        for name in ("agentview_image", "robot0_eye_in_hand_image")
    }

    def capture(policy: Pi05Policy) -> list[Request]:
        observation = Observation(images, np.zeros(8), "pick up the bowl")
        return [Request(observation, EpisodeKey("libero_spatial", 0, 0, 7), 0)]

    examined = {"_target_": f"{__name__}.Examined"}
    monkeypatch.setattr(Examined, "seen", [])
    chosen = config(optim=OptimConfig(EAGER, examined, EAGER, scales="FILE"))
    facts = make_spec(chosen.policy).build(chosen, capture).policy.provenance()
    expected = hashlib.sha256(b'{"prefix": {"layers.0": "FILE"}}').hexdigest()
    assert facts["scales_sha256"] == expected, "a resume with other scales is refused"
    [source] = Examined.seen
    [args] = source.examples
    assert args[0] is not None
    assert args[0].shape == (1, 512, 128)
    assert source.amax == {"layers.0": "FILE"}
    assert len(source.weights_sha256) == 64


@pytest.mark.parametrize("key", ["denoise.steps", "checkpoint.denoise_steps"])
def test_the_records_name_the_key_that_says_the_denoise_steps(key: str) -> None:
    folder = ROOT / "tests" / "parity" / "lerobot_small"
    overrides = ["checkpoint=lerobot_pi05_libero", f"checkpoint.path={folder}", f"{key}=3"]
    settings = load(configure([*overrides, "policy.device=cpu"])).provenance()["settings"]
    assert settings["denoise_steps"] == {
        "value": 3,
        "from": f"{key}; config.json num_inference_steps says 10",
    }
    assert settings["replan_steps"]["from"] == "config.json n_action_steps"
