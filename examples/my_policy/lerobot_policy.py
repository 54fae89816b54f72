"""LeRobot: any policy of an installed `lerobot` that predicts action chunks, through its own processors.

H horizon (actions per chunk), J 7 robot action dims.

The interface is that of lerobot 0.4.4, 0.5.1 and 0.6.1; 0.5 and 0.6 need Python 3.12.

Non-obvious behaviors:
    * The harness has rotated the images by 180 degrees, and its state is position, axis-angle and gripper:
      both are what lerobot's LiberoProcessorStep makes of lerobot's environment. Images are 256 x 256, as in
      the datasets; lerobot's environment renders 360 x 360 unless told otherwise.
    * Requests are answered one after another: torch draws a batch's noise in one piece, so the noise of a
      request would depend on its neighbours.
    * A policy with `n_obs_steps` > 1 sees every control step, as in lerobot. So the harness asks it at every
      step, and most calls hand out an action of the last chunk: their latency says nothing.
    * Where weights did not load or statistics are missing, lerobot writes a line to its log at most and goes
      on. Both are errors here.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from policies.base import ACTION_DIM, ActionChunk, EpisodeKey, Observation, Request
from policies.pi05.devices import find_device
from policies.pi05.weight_files import WEIGHTS, file_sha256
from policies.seeding import stable_seed

from .lerobot_checks import (
    ACTION,
    IMAGES,
    PROCESSORS,
    STATE,
    STATE_DIM,
    adapt,
    check_no_code,
    check_repositories,
    check_statistics,
    check_weights,
    find_folder,
    find_replan_steps,
    find_views,
)

SAME = 1e-3  # between two actions of one policy: a GPU may choose another kernel


@dataclass
class _Memory:
    """What an episode keeps of a policy with `n_obs_steps` > 1."""

    seen: deque[dict[str, Any]]
    actions: deque[NDArray[np.float64]] = field(default_factory=deque)


class LeRobotPolicy:
    """A policy as `save_pretrained` wrote it.

    Args:
        path: folder or hub id, with config.json, model.safetensors and both processors.
        revision: of the hub.
        device: auto, cpu, cuda or cuda:N.
        cameras: image feature of the policy (before its own renaming) to camera, where `CAMERAS` lacks it.
        replan_steps: actions that are executed before the next inference; lerobot's `n_action_steps` is the
            default.
        config: fields of the policy's config.json to set, such as `num_inference_steps`.
        upside_down: give the images as the simulator renders them, for policies that were trained on such.
        live_episodes: how many episodes are remembered where `n_obs_steps` > 1.

    Raises:
        FileNotFoundError, ValueError: naming the argument, or the field of config.json, and the way out.
    """

    needs_privileged = False

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        cameras: Mapping[str, str] | None = None,
        replan_steps: int | None = None,
        config: Mapping[str, Any] | None = None,
        upside_down: bool = False,
        live_episodes: int = 64,
    ) -> None:
        from lerobot.__version__ import __version__
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        if live_episodes < 1:
            raise ValueError(f"policy.args.live_episodes must be >= 1, got {live_episodes}")
        self.device = find_device(device, "policy.args.device")
        folder = find_folder(path, revision)
        check_no_code(folder)
        self._config = adapt(PreTrainedConfig.from_pretrained(folder), str(self.device), config or {})
        check_repositories(self._config, folder, config or {})
        self._chunk_steps = find_replan_steps(self._config, replan_steps)
        self._preprocess, self._postprocess = make_pre_post_processors(
            self._config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": str(self.device)}},
        )
        check_statistics(self._preprocess.steps, self._postprocess.steps)
        self._views = find_views(self._config, self._preprocess.steps, cameras or {})
        self._policy = get_policy_class(self._config.type).from_pretrained(folder, config=self._config)
        check_weights(self._policy.state_dict(), folder / WEIGHTS)

        self.name = f"lerobot_{self._config.type}"
        self.cameras = tuple(dict.fromkeys(self._views.values()))
        self.upside_down = upside_down
        self.live_episodes = live_episodes
        self._memories: OrderedDict[EpisodeKey, _Memory] = OrderedDict()
        self._history = self._config.n_obs_steps
        self._queues = {STATE, IMAGES} & set(getattr(self._policy, "_queues", None) or ())
        if self._history > 1 and not self._queues:
            raise ValueError(
                f"n_obs_steps={self._history} of {folder}: policies of type {self._config.type} keep no "
                "queue of observations for this adapter to fill; write a policy of your own for it"
            )
        self.replan_steps = self._chunk_steps if self._history == 1 else 1
        self._about = {
            "kind": "lerobot",
            "lerobot": __version__,
            "type": self._config.type,
            "checkpoint": path,
            "revision": revision,
            "weights_label": str(folder),
            "weights_sha256": file_sha256(folder / WEIGHTS),
            "processors_sha256": [file_sha256(folder / name) for name in PROCESSORS],
            "replan_steps": self._chunk_steps,
            "n_obs_steps": self._history,
            "config": dict(config or {}),
            "images": self._views,
            "upside_down": upside_down,
        }
        self._try_out()

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Answer each request with a chunk (H, 7), or one action of it where `n_obs_steps` > 1.

        Raises KeyError for a call after 0 of an episode that is not remembered, where `n_obs_steps` > 1.
        """
        return [ActionChunk(self._answer(request)) for request in requests]

    def provenance(self) -> dict[str, Any]:
        is_cuda = self.device.type == "cuda"
        return {**self._about, "device": torch.cuda.get_device_name(self.device) if is_cuda else "cpu"}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}

    def _answer(self, request: Request) -> NDArray[np.float64]:
        key = request.episode
        seed = stable_seed("noise", key.seed, key.suite, key.task_id, key.episode, request.call)
        batch = self._prepare(request.observation)
        self._policy.reset()
        if self._history == 1:
            return self._predict([batch], seed)
        memory = self._remember(request, batch)
        memory.seen.append(batch)
        if not memory.actions:
            memory.actions.extend(self._predict(memory.seen, seed)[: self._chunk_steps])
        return memory.actions.popleft()[None]

    def _remember(self, request: Request, batch: dict[str, Any]) -> _Memory:
        """Find an episode's memory; call 0 starts it anew with copies of `batch`, as lerobot does."""
        if request.call == 0:
            self._memories.pop(request.episode, None)
            while len(self._memories) >= self.live_episodes:
                self._memories.popitem(last=False)
            self._memories[request.episode] = _Memory(deque([batch] * self._history, maxlen=self._history))
        elif request.episode not in self._memories:
            raise KeyError(
                f"{self.name} got call {request.call} of {request.episode} but does not remember it; start "
                f"an episode with call 0 and keep at most live_episodes={self.live_episodes} in flight"
            )
        self._memories.move_to_end(request.episode)
        return self._memories[request.episode]

    def _prepare(self, observation: Observation) -> dict[str, Any]:
        """Make lerobot's batch of one: images (1, 3, 256, 256) in [0, 1], state (1, 8), the task's words."""
        batch: dict[str, Any] = {"task": [observation.instruction]}
        batch[STATE] = torch.from_numpy(observation.state).float()[None]
        for key, camera in self._views.items():
            image = observation.images[camera]
            image = np.ascontiguousarray(image[::-1, ::-1] if self.upside_down else image)
            batch[key] = torch.from_numpy(image).permute(2, 0, 1).contiguous().float()[None] / 255
        batch = self._preprocess(batch)
        batch.pop(ACTION, None)  # None, which a policy that stacks its queues would take for an action
        return batch

    def _predict(self, seen: Sequence[dict[str, Any]], seed: int) -> NDArray[np.float64]:
        """Predict a chunk (H, J) from prepared observations, oldest first."""
        with self._inference(seed):
            now = self._fill_queues(seen) if self._queues else dict(seen[-1])
            [actions] = self._policy.predict_action_chunk(now)
            return self._postprocess(actions).to("cpu", torch.float64).numpy()

    @contextmanager
    def _inference(self, seed: int) -> Iterator[None]:
        amp = torch.autocast(self.device.type) if self._config.use_amp else nullcontext()
        with torch.inference_mode(), amp, _seeded(self.device, seed):
            yield

    def _fill_queues(self, seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Fill the policy's own queues, as lerobot does, with its images stacked; return the last batch."""
        from lerobot.policies.utils import populate_queues

        for batch in seen:
            images = [batch[key] for key in self._config.image_features]
            stacked = {**batch, IMAGES: torch.stack(images, dim=-4)} if images else dict(batch)
            self._policy._queues = populate_queues(self._policy._queues, stacked)
        return stacked

    def _try_out(self) -> None:
        """Refuse a policy without chunks, or with short, changing or other ones than lerobot executes."""
        draw = np.random.default_rng(0)
        instruction = "pick up the black bowl and place it on the plate"
        first, second = (
            self._prepare(Observation(dict.fromkeys(self.cameras, image), state, instruction))
            for image, state in (
                (np.zeros((256, 256, 3), np.uint8), np.zeros(STATE_DIM)),
                (draw.integers(0, 256, (256, 256, 3), np.uint8), draw.standard_normal(STATE_DIM)),
            )
        )
        self._policy.reset()
        try:
            chunk, _, again = (self._predict([batch] * self._history, 0) for batch in (first, second, first))
        except NotImplementedError as error:
            raise ValueError(
                f"policies of type {self._config.type} predict no action chunks: {error}; write a policy of "
                "your own for it (docs/own_policy.md)"
            ) from error
        if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or not np.all(np.isfinite(chunk)):
            raise ValueError(
                f"the policy and its postprocessor must give chunks of {ACTION_DIM} finite numbers, got "
                f"{chunk.tolist() if chunk.size < 10 else chunk.shape}"
            )
        if len(chunk) < self._chunk_steps:
            raise ValueError(
                f"policy.args.replan_steps must be <= {len(chunk)}, the length of a chunk, "
                f"got {self._chunk_steps}"
            )
        if np.abs(chunk - again).max() > SAME:
            raise ValueError(
                f"the policy of type {self._config.type} gave two chunks, {np.abs(chunk - again).max():.3g} "
                "apart, for one observation and seed: it remembers earlier calls, or draws numbers that "
                "torch does not seed, and this adapter is for policies that do neither; write one of your own"
            )
        executed = self._select_actions(first, find_replan_steps(self._config, None, default=1))
        apart = np.abs(chunk[: len(executed)] - executed).max(axis=1)
        if apart.max() > SAME:
            raise ValueError(
                f"lerobot executes other actions than those of the chunk, {apart.max():.3g} apart, for "
                f"policies of type {self._config.type}; write a policy of your own for it"
            )

    def _select_actions(self, batch: dict[str, Any], count: int) -> NDArray[np.float64]:
        """Collect what lerobot's loop executes at the start of an episode (count, J), with seed 0."""
        self._policy.reset()
        with self._inference(0):
            actions = [self._postprocess(self._policy.select_action(dict(batch))) for _ in range(count)]
            return torch.cat(actions).to("cpu", torch.float64).numpy()


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators inside, and leave them outside as they were."""
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
