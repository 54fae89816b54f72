"""First and last frame of an episode's video, as pictures that a page can hold."""

import base64
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from eval.records.schema import EpisodeRecord
from eval.records.video import video_name

FRAME_WIDTH = 224  # pixels; LIBERO's cameras have 256
TIMEOUT_S = 60


@dataclass(frozen=True)
class Frames:
    """Two JPEG pictures as `data:` addresses, or why there are none."""

    first: str | None = None
    last: str | None = None
    why_not: str | None = None


def frames_of(folder: Path, record: EpisodeRecord) -> Frames:
    """Take the first and the last frame out of the video of an episode of the run in `folder`."""
    video = folder / "videos" / video_name(record)
    if not video.is_file() or video.is_symlink() or video.parent.is_symlink():
        mode = "all" if record.success else "failures"
        return Frames(why_not=f"no video recorded; run again with video={mode}")
    try:
        return Frames(_picture(video, last=False), _picture(video, last=True))
    except OSError as error:
        return Frames(why_not=f"the video cannot be read: {error}")


def _picture(video: Path, *, last: bool) -> str:
    """Take a frame out of a video, as a `data:` address.

    Raises:
        OSError: ffmpeg finds none.
    """
    import imageio_ffmpeg  # carries its own ffmpeg; not needed by reports without videos

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "frame.jpg")
        which = ["-update", "1"] if last else ["-frames:v", "1"]  # each frame replaces the one before
        # By its content alone, ffmpeg may take a file for a list of others, or of addresses, and open those.
        source = [
            "-f",
            "mov",
            "-protocol_whitelist",
            "file,pipe",
            "-i",
            str(video),
            "-vf",
            f"scale={FRAME_WIDTH}:-2",
            "-q:v",
            "4",
        ]
        try:
            done = subprocess.run(
                [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *source, *which, str(picture)],
                capture_output=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{video.name}: ffmpeg took more than {TIMEOUT_S} s") from error
        if done.returncode != 0 or not picture.is_file():
            reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise OSError(f"{video.name}: {reason or 'no frame'}")
        return "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
