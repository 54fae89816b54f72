"""openpi's protocol: the server greets with metadata, then one observation is answered by one chunk.

Names are those of openpi's LIBERO example (examples/libero/main.py, policies/libero_policy.py); the answer's
are those of its server (serving/websocket_policy_server.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.base import Observation, Request
from policies.remote import fields

NAME = "openpi"
IMAGES = {fields.AGENTVIEW: "observation/image", fields.WRIST: "observation/wrist_image"}
STATE, PROMPT = "observation/state", "prompt"
IMAGE_SIZE = 224  # what openpi's LIBERO client resizes to
REPLAN_STEPS = 5  # what it executes of a chunk
KEYS = (*IMAGES.values(), STATE, PROMPT, fields.EPISODE, fields.CALL)


def write_observation(request: Request, cameras: Sequence[str], image_size: int | None) -> dict[str, Any]:
    """Word a request; images are resized to `image_size`, or left as they were rendered where it is None."""
    observation = request.observation
    images = {IMAGES[name]: resize_with_pad(observation.images[name], image_size) for name in cameras}
    return {
        **images,
        STATE: observation.state,
        PROMPT: observation.instruction,
        **fields.identity(request),
    }


def read_observation(message: Any, cameras: Sequence[str]) -> fields.Received:
    """Read what a client sent; FieldError for what is missing or wrong."""
    message = fields.read_map(message, "an observation")
    observation = Observation(
        {name: fields.read_image(message, IMAGES[name]) for name in cameras},
        fields.read_state(message, STATE),
        fields.read_text(message, PROMPT),
    )
    return fields.Received(observation, *fields.read_identity(message), fields.unread(message, KEYS))


def write_answer(actions_HJ: NDArray[np.float64], infer_ms: float, stage_ms: Mapping[str, float]) -> Any:
    """Word an answer: a chunk, and how long it took in milliseconds."""
    return {
        "actions": actions_HJ,
        "server_timing": {"infer_ms": infer_ms},
        "policy_timing": {f"{stage}_ms": ms for stage, ms in stage_ms.items()},
    }


def resize_with_pad(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Resize bilinear, centred on black, to the bit as openpi's client does (openpi_client/image_tools.py).

    Pillow rounds to whole levels between its two passes; `policies.pi05.preprocess.resize_with_pad`, which
    works on tensors, is within one level of it.
    """
    height, width = image.shape[:2]
    if size is None or (height, width) == (size, size):
        return image
    from PIL import Image

    ratio = max(width / size, height / size)
    inner = (int(width / ratio), int(height / ratio))
    canvas = Image.new("RGB", (size, size))
    resized = Image.fromarray(image).resize(inner, resample=Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(canvas)
