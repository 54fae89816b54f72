"""Served policies: batches give the same actions but for rounding, and a backend without batches is asked
one request at a time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from eval.app.command import CONF
from eval.config.compose import check
from eval.config.schema import register
from eval.episodes.rollout import ServedChunk
from eval.runners.ray import serving
from eval.runners.ray.policy_server import PolicyServer
from eval.runners.ray.serving import build_served_policy
from eval.sim.env import CAMERAS
from eval.sim.tasks import Task
from eval.specs.base import BuiltPolicy
from eval.specs.batching import Batching
from optim.base import Backend, CountedStage, StageContext, StageMismatch
from optim.core.engines import serve
from policies.base import EpisodeKey, Observation, Policy, Request
from tests.eval.fakes import no_observation

SHORT, LONG = "pick up the black bowl", "pick up the black bowl next to the ramekin and place it on the plate"
SERVED = ("runner=ray", "policy.device=cpu", "policy.precision=float32")


@pytest.fixture
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        yield


def requests_of(cameras: Sequence[str], instructions: Sequence[str]) -> list[Request]:
    """A request with random images and a random state for each instruction."""
    rng = np.random.default_rng(0)
    return [
        Request(
            Observation(
                {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in cameras},
                rng.uniform(-1, 1, 8),
                instruction,
            ),
            EpisodeKey("libero_spatial", 0, episode, 7),
            0,
        )
        for episode, instruction in enumerate(instructions)
    ]


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(("form", "batches"), [("lean", [[0, 2, 4], [1, 3]]), ("full", [[0, 1, 2, 3, 4]])])
def test_batched_actions_are_those_of_requests_served_alone(form: str, batches: list[list[int]]) -> None:
    arguments = [*SERVED, "runner.max_batch=8", f"policy.form={form}"]
    built = build_served_policy(check(compose("config", arguments)), [0], no_observation)
    policy, batching = built.policy, built.batching
    requests = requests_of(policy.cameras, [LONG, SHORT, LONG, SHORT, LONG])
    assert batching.sizes is None  # eager stages take any number
    assert batching.one_at_a_time is None
    split = list(batching.split(requests, lambda request: request))
    assert [[request.episode.episode for request in batch] for batch in split] == batches
    for batch in split:
        for request, chunk in zip(batch, policy.infer(batch), strict=True):
            [alone] = policy.infer([request])
            differences = np.abs(chunk.actions_HJ - alone.actions_HJ)
            assert np.median(differences) < 1e-6
            assert differences.max() < 1e-4  # a gripper that turns: one ulp of the noise moves it by 3e-5


@dataclass(frozen=True)
class Batches(Backend):
    """Engines that compute what the stage does, and keep the batches that they were built and asked for."""

    built: ClassVar[list[int]] = []
    asked: ClassVar[list[int]] = []

    def __call__(self, source: StageContext) -> CountedStage:
        return serve(source, "toy", lambda args: self._build(source.stage, args), tolerance=0.0)

    def _build(self, stage: torch.nn.Module, args: Sequence[Tensor | None]) -> Callable[..., Any]:
        def engine(*args: Tensor | None) -> Any:
            self.asked.append(_batch(args))
            return stage(*args)

        self.built.append(_batch(args))
        return engine


@dataclass(frozen=True)
class OneByOne(Batches):
    """The same, for one request."""

    @property
    def serves_batches(self) -> bool:
        return False

    def _build(self, stage: torch.nn.Module, args: Sequence[Tensor | None]) -> Callable[..., Any]:
        if _batch(args) > 1:
            raise StageMismatch("the kernel is written for one request")
        return super()._build(stage, args)


def _batch(args: Sequence[Tensor | None]) -> int:
    assert args[0] is not None
    return len(args[0])


@pytest.fixture
def serve_with(hydra: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BuiltPolicy]:
    """Build a served policy with these backends, with shapes from random images."""

    [start] = requests_of(tuple(CAMERAS), [LONG])
    task = Task("libero_spatial", 0, LONG, "", np.zeros((50, 1)))
    monkeypatch.setattr(serving, "choose_tasks", lambda config: [task])
    monkeypatch.setattr(Batches, "built", [])
    monkeypatch.setattr(Batches, "asked", [])

    def build(max_batch: int, **backends: type[Backend]) -> BuiltPolicy:
        targets = [f"optim.{stage}._target_={__name__}.{of.__name__}" for stage, of in backends.items()]
        arguments = [*SERVED, "checkpoint=random_small", f"runner.max_batch={max_batch}", *targets]
        return build_served_policy(check(compose("config", arguments)), [0], lambda: start.observation)

    return build


def answers(policy: Policy, batching: Batching, requests: Sequence[Request]) -> list[ServedChunk]:
    """What a host with `max_batch=4` answers to requests that arrive together."""

    async def ask() -> list[ServedChunk]:
        host = PolicyServer(
            max_batch=4,
            max_wait_ms=60_000,  # who waits for a batch that nobody serves is seen
            warmup_inferences=0,
            threads=torch.get_num_threads(),
        )
        facts = await host.build(lambda _: BuiltPolicy(policy, batching), no_observation)
        assert (facts.batch_sizes, facts.one_at_a_time) == (batching.sizes, batching.one_at_a_time)
        return await asyncio.gather(*(host.infer(request, True) for request in requests))

    return asyncio.run(asyncio.wait_for(ask(), 30))


def test_a_backend_that_serves_batches_is_built_and_asked_for_them(
    serve_with: Callable[..., BuiltPolicy],
) -> None:
    built = serve_with(4, prefix=Batches)
    policy, batching = built.policy, built.batching
    assert Batches.built == [1, 2, 4]
    assert (batching.sizes, batching.one_at_a_time) == ((1, 2, 4), None)
    Batches.asked.clear()  # the comparison with the stage
    served = answers(policy, batching, requests_of(policy.cameras, [LONG] * 4))
    assert [chunk.service.batch for chunk in served] == [4] * 4
    assert Batches.asked == [4]


def test_a_backend_without_batches_is_built_and_asked_for_one_request_and_named(
    serve_with: Callable[..., BuiltPolicy],
) -> None:
    built = serve_with(4, vision=Batches, prefix=OneByOne, denoise=OneByOne)
    policy, batching = built.policy, built.batching
    assert Batches.built == [1, 1, 1]  # vision too: nobody will ask it for more
    assert batching.sizes == (1,)
    assert batching.one_at_a_time == (
        "no batches with optim.prefix=OneByOne(), optim.denoise=OneByOne(); "
        "choose another optim/prefix, optim/denoise to have them"
    )
    Batches.asked.clear()
    served = answers(policy, batching, requests_of(policy.cameras, [LONG] * 3))
    assert [chunk.service.batch for chunk in served] == [1] * 3
    assert Batches.asked == [1] * 9


def test_a_backend_without_batches_is_no_news_where_none_were_asked_for(
    serve_with: Callable[..., BuiltPolicy],
) -> None:
    batching = serve_with(1, prefix=OneByOne).batching
    assert (batching.sizes, batching.one_at_a_time) == ((1,), None)


def test_a_reason_to_serve_one_at_a_time_goes_with_no_other_size() -> None:
    with pytest.raises(ValueError, match=r"^sizes must be \(1,\) where 'no batches with X', got \(1, 2\)$"):
        Batching((1, 2), one_at_a_time="no batches with X")
