"""pi0.5 as a policy: preprocess, three stages, postprocess.

B batch, H horizon, A padded action dims.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.base import ACTION_DIM, ActionChunk, GuideOptions, Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.dims import FORMS, STAGES, Pi05Dims
from policies.pi05.postprocess import Postprocess
from policies.pi05.preprocess import ModelInputs, Preprocess
from policies.pi05.timing import StageTimer
from policies.seeding import action_noise

StageArgs = dict[str, tuple[Tensor | None, ...]]


class ServedStage(Protocol):
    """A stage that names its backend and counts its calls (`optim.base.CountedStage`)."""

    backend: str
    details: dict[str, Any]
    calls: int
    misses: int
    refused: int
    served_by: str

    def __call__(self, *args: Tensor | None) -> Any: ...


@dataclass(eq=False)
class Pi05Policy:
    """Implements `policies.base.Policy`; ValueError for an unknown `form`, or stages other than the three."""

    name: str  # label in records
    stages: Mapping[str, ServedStage]
    preprocess: Preprocess
    postprocess: Postprocess
    dims: Pi05Dims
    device: torch.device
    dtype: torch.dtype
    form: str  # lean (only real tokens) or full (what openpi computes)
    replan_steps: int
    denoise_steps: int
    checkpoint_facts: Mapping[str, Any]  # `Checkpoint.provenance()`
    guidance: GuideOptions | None = None  # of the denoise stage
    needs_privileged: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"policy.form must be one of {FORMS}, got {self.form!r}")
        if set(self.stages) != set(STAGES):
            raise ValueError(f"stages must be exactly {STAGES}, got {tuple(self.stages)}")
        self.cameras = self.preprocess.cameras

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        stages: Mapping[str, ServedStage],
        *,
        name: str,
        form: str = "lean",
        prompt_multiple: int = 1,
    ) -> "Pi05Policy":
        """Run `stages` with everything else taken from the checkpoint."""
        return cls(
            name=name,
            stages=stages,
            preprocess=checkpoint.preprocess(prompt_multiple),
            postprocess=checkpoint.postprocess(),
            dims=checkpoint.dims,
            device=checkpoint.device,
            dtype=checkpoint.dtype,
            form=form,
            replan_steps=checkpoint.settings.replan_steps,
            denoise_steps=checkpoint.settings.denoise_steps,
            checkpoint_facts=checkpoint.provenance(),
            guidance=checkpoint.guidance,
        )

    def with_stages(self, stages: Mapping[str, ServedStage]) -> "Pi05Policy":
        return replace(self, stages=stages)

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """See `policies.base.Policy`.

        Raises KeyError where an observation lacks a camera, FloatingPointError where an action is not finite,
        ValueError for guidance that the denoise stage does not take or that has another size.
        """
        timer = StageTimer(self.device)
        actions_BHA, _ = self._run(requests, timer)
        normalised_BHA = actions_BHA.cpu().numpy()  # the copy waits for the device
        actions_BHJ = self.postprocess(normalised_BHA)
        stage_ms = timer.read_ms()
        backends = {name: self.stages[name].served_by for name in STAGES}
        kept = [None] * len(requests) if self.guidance is None else list(normalised_BHA.copy())
        return [
            ActionChunk(actions_HJ, stage_ms, backends, normalised_HA)
            for actions_HJ, normalised_HA in zip(actions_BHJ, kept, strict=True)
        ]

    def example_inputs(
        self, batches: Sequence[Sequence[Request]]
    ) -> dict[str, list[tuple[Tensor | None, ...]]]:
        """Run batches and keep each stage's arguments, one call per batch, for an `optim.base.StageContext`.

        Non-obvious behaviors:
            An engine that reuses its output buffers would overwrite an earlier example, so call this on eager
            stages.
        """
        runs = [self._run(requests, StageTimer(self.device))[1] for requests in batches]
        return {name: [run[name] for run in runs] for name in STAGES}

    def noise(self, requests: Sequence[Request]) -> Tensor:
        """Draw noise_BHA, float32, on the policy's device, without waiting for a GPU."""
        size = (self.dims.action_horizon, self.dims.action_dim)
        drawn = np.stack([action_noise(request.episode, request.call, *size) for request in requests])
        return self._send(drawn)

    def old(self, requests: Sequence[Request]) -> Tensor | None:
        """Make the denoise stage's old_2BHA of the requests' guidance; None where the stage takes none.

        Real action dims alone are guided. A request without guidance has zero weights.
        """
        if self.guidance is None:
            if any(request.guidance is not None for request in requests):
                raise ValueError(f"policy {self.name} takes no guidance; load it with clock=rtc")
            return None
        size = (self.dims.action_horizon, self.dims.action_dim)
        old_2BHA = np.zeros((2, len(requests), *size), np.float32)
        for i, request in enumerate(requests):
            if (guidance := request.guidance) is None:
                continue
            if guidance.old_HA.shape != size or guidance.weights_H.shape != size[:1]:
                raise ValueError(
                    f"guidance must have shapes {size} and {size[:1]}, got {guidance.old_HA.shape} and "
                    f"{guidance.weights_H.shape}"
                )
            old_2BHA[0, i, :, :ACTION_DIM] = guidance.old_HA[:, :ACTION_DIM]
            old_2BHA[1, i, :, :ACTION_DIM] = guidance.weights_H[:, None]
        return self._send(old_2BHA)

    def _send(self, array: NDArray[np.float32]) -> Tensor:
        """Copy to the policy's device without waiting for a GPU."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from other memory the copy would wait
        return tensor.to(self.device, non_blocking=True)

    def provenance(self) -> dict[str, Any]:
        is_cuda = self.device.type == "cuda"
        return {
            **self.checkpoint_facts,
            "policy": self.name,
            "device": torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
            "form": self.form,
            "denoise_steps": self.denoise_steps,
            "replan_steps": self.replan_steps,
            **({} if self.guidance is None else {"guidance": asdict(self.guidance)}),
        }

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "backend": stage.backend,
                "calls": stage.calls,
                "misses": stage.misses,
                "refused": stage.refused,
                "details": stage.details,
            }
            for name, stage in self.stages.items()
        }

    @torch.no_grad()
    def _run(self, requests: Sequence[Request], timer: StageTimer) -> tuple[Tensor, StageArgs]:
        if not requests:
            raise ValueError("infer needs at least one request, got none")
        inputs = self.preprocess([request.observation for request in requests], self.form)
        return run_stages(
            self.stages, inputs, lambda: self.noise(requests), timer, lambda: self.old(requests)
        )


def run_stages(
    stages: Mapping[str, Any],
    inputs: ModelInputs,
    noise: Callable[[], Tensor],
    timer: StageTimer,
    old: Callable[[], Tensor | None] = lambda: None,
) -> tuple[Tensor, StageArgs]:
    """Run the three; return actions_BHA, normalised and on the device, and the arguments of each stage.

    `noise` draws noise_BHA, and `old` makes old_2BHA for a stage with guidance, after vision and prefix have
    been launched, while a GPU is busy.
    """
    args: StageArgs = {"vision": (inputs.images_BNCHW,)}
    with timer("vision"):
        image_tokens_BQD = stages["vision"](*args["vision"])
    args["prefix"] = (image_tokens_BQD, inputs.image_mask_BN, inputs.tokens_BT, inputs.token_mask_BT)
    with timer("prefix"):
        keys_LBGPD, values_LBGPD, prefix_mask_BP = stages["prefix"](*args["prefix"])
    args["denoise"] = (noise(), keys_LBGPD, values_LBGPD, prefix_mask_BP)
    if (old_2BHA := old()) is not None:
        args["denoise"] += (old_2BHA,)
    with timer("denoise"):
        actions_BHA = stages["denoise"](*args["denoise"])
    return actions_BHA, args
