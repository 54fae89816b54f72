"""Videos: readable, whole, named by key and outcome."""

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from eval.records.schema import EpisodeRecord
from eval.records.video import VideoMode, video_name, write_video

Episode = Callable[..., EpisodeRecord]


def frames(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 * i, np.uint8) for i in range(count)]


def test_frames_come_back_in_size_number_rate_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "a.mp4"
    write_video(frames(10), path, fps=20)
    read = iio.imread(path, plugin="FFMPEG")
    assert read.shape == (10, 64, 96, 3)
    np.testing.assert_allclose(read.mean((1, 2, 3)), [20 * i for i in range(10)], atol=4)
    meta = iio.immeta(path, plugin="FFMPEG")
    assert meta["fps"] == 20
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


def test_a_failed_encoding_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"earlier")
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "false")
    with pytest.raises(OSError, match="ffmpeg failed with 1"):
        write_video(frames(2), path, fps=20)
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one frame"),
        (frames(1, height=63), "even height, even width"),
        ([np.zeros((64, 96), np.uint8)], "even height, even width"),
        ([*frames(1), np.zeros((64, 96, 3), np.float32)], "frame 1 is float32"),
        ([*frames(1), *frames(1, height=32)], r"frame 1 is uint8 \(32, 96, 3\)"),
    ],
)
def test_frames_that_are_no_video_are_refused(tmp_path: Path, bad: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(bad, tmp_path / "a.mp4", fps=20)
    assert not list(tmp_path.iterdir())


def test_the_name_tells_the_episode_and_the_outcome(make_episode: Episode) -> None:
    assert video_name(make_episode(success=False)) == "libero_spatial-task0-episode0-seed7-failure.mp4"
    assert video_name(make_episode(error_type="OSError")) == "libero_spatial-task0-episode0-seed7-error.mp4"


def test_failures_include_errors(make_episode: Episode) -> None:
    records = [make_episode(), make_episode(success=False), make_episode(error_type="OSError")]
    assert [VideoMode("failures").keeps(record) for record in records] == [False, True, True]
    assert [VideoMode("all").keeps(record) for record in records] == [True, True, True]
    assert [VideoMode("none").keeps(record) for record in records] == [False, False, False]
