"""Episode videos: which episodes are kept, file names, and H.264 files that are complete or absent."""

import subprocess
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.records.schema import EpisodeRecord
from policies.files import replacing

VIDEOS = "videos"  # the folder in a run's


class VideoMode(StrEnum):
    """Which episodes leave a video: `failures` includes errors, which file names tell apart."""

    FAILURES = "failures"
    ALL = "all"
    NONE = "none"

    def keeps(self, record: EpisodeRecord) -> bool:
        return self is VideoMode.ALL or (self is VideoMode.FAILURES and record.outcome != "success")


def video_name(record: EpisodeRecord) -> str:
    """Name the file by the episode's key, its outcome, and a warning of random weights."""
    random = "-random_weights" if record.weights_label else ""
    return f"{record.key}-{record.outcome}{random}.mp4"


def write_video(frames: Sequence[NDArray[np.uint8]], path: Path, fps: int) -> None:
    """Write frames, uint8 (height, width, 3) of one even size, as H.264 in yuv420p.

    The file appears under its name only when it is complete; an older one is replaced. Raises ValueError for
    frames that do not fit, OSError when ffmpeg fails.
    """
    if not frames:
        raise ValueError(f"{path}: a video needs at least one frame, got none")
    if fps < 1:
        raise ValueError(f"{path}: fps must be >= 1, got {fps}")
    shape = frames[0].shape
    if len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:  # yuv420p halves both sides
        raise ValueError(f"{path}: frames must be (even height, even width, 3), got {shape}")
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.shape != shape:
            raise ValueError(f"{path}: frame {i} is {frame.dtype} {frame.shape}, not uint8 {shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _encode(frames, temporary, fps)


def _encode(frames: Sequence[NDArray[np.uint8]], path: Path, fps: int) -> None:
    import imageio_ffmpeg  # carries its own ffmpeg; not needed by runs without videos

    height, width, _ = frames[0].shape
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -".split()
    target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    # Not imageio_ffmpeg.write_frames: it ignores ffmpeg's exit status; a full disk would leave a broken file.
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *target, str(path)],
        input=b"".join(frame.tobytes() for frame in frames),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(
            f"{path}: ffmpeg failed with {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        )
