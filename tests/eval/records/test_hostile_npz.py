"""Observations of somebody else: one line, and no memory that only its header asks for."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.records import arrays
from eval.records.observations import load_requests, require_cameras
from eval.records.recording import load_recording, save_recording
from policies.files import NotPlain
from tests.eval.records.test_observations import request_of

LARGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (8000000000000, 8), }"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three requests with actions."""
    path = tmp_path / "observations.npz"
    save_recording(path, [(request_of(i), np.random.default_rng(i).normal(size=(10, 7))) for i in range(3)])
    return path


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _with_header(content: bytes, header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return content[:8] + len(text).to_bytes(2, "little") + text + content[-64:]


def _actions(shape: tuple[int, ...], value: float = 0.0) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({"actions_HJ.npy": _npy(np.full(shape, value))})


def _images(*shape: int) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({"images/agentview_image.npy": _npy(np.zeros(shape, np.uint8))})


def _set(**changed: Any) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({f"{name}.npy": _npy(array) for name, array in changed.items()})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_actions((3, 10, 6)), r"'actions_HJ' must be float64 \(number, H, 7\), got float64 \(3, 10, 6\)"),
        (_actions((3, 10)), r"'actions_HJ' must be float64 \(number, H, 7\)"),
        (_actions((2, 10, 7)), "differ in length"),
        (_actions((3, 10, 7), np.nan), "actions_HJ must be finite"),
        (_actions((0, 10, 7)), "'actions_HJ' must hold 1 to 100000 requests"),
        (lambda members: members.pop("actions_HJ.npy"), "does not hold the actions"),
        (_set(actions_HJ=np.full((3, 10, 7), "text")), "'actions_HJ' must be float64"),
        (_set(state=np.full((3, 8), np.inf)), "state must be finite"),
        (_set(state=np.zeros((3, 7))), r"'state' must be float64 \(number, 8\)"),
        (_set(suite=np.array(["../x"] * 3)), "suite 0 must be letters, digits"),
        (_set(seed=np.array([-1] * 3)), "seed 0 must be >= 0"),
        (_set(call=np.zeros(3)), "'call' must be whole numbers"),
        (_set(more=np.zeros(3)), "'more' is no array of saved requests"),
        (_images(3, 3, 1000, 3), "4 to 4096 pixels a side"),
        (_images(3, 16, 1000, 3), "must be at most 8 times as long as wide"),
        (_images(3, 0, 16, 3), "4 to 4096 pixels a side"),
        (_images(3, 16, 16), r"must be uint8 \(number, height, width, 3\)"),
    ],
)
def test_an_array_that_is_another_is_named(
    damage: Callable[[dict[str, bytes]], Any], why: str, recording: Path
) -> None:
    members = _members(recording)
    damage(members)
    _write(recording, members)
    with pytest.raises(ValueError, match=why) as refused:
        load_recording(recording)
    assert len(str(refused.value).splitlines()) == 1


def test_a_header_of_8e12_numbers_takes_no_memory(recording: Path) -> None:
    members = _members(recording)
    members["state.npy"] = _with_header(members["state.npy"], LARGE)
    _write(recording, members)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"'state' must hold 1 to 100000 requests"):
        load_requests(recording)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_arrays_beyond_the_bound_are_refused_before_they_are_unpacked(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_BYTES", 2**20)
    members = _members(recording) | {
        "images/agentview_image.npy": _npy(np.zeros((3, 1000, 1000, 3), np.uint8))
    }
    _write(recording, members)
    assert recording.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match="its arrays must have at most 1048576 bytes, got 90"):
        load_requests(recording)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_array_that_stands_twice_is_refused(recording: Path) -> None:
    with zipfile.ZipFile(recording, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("state.npy", _npy(np.zeros((3, 8))))
    with pytest.raises(ValueError, match="an array stands in it twice"):
        load_requests(recording)


def test_every_flipped_byte_is_one_line_or_nothing(recording: Path) -> None:
    whole = recording.read_bytes()
    messages = []
    for i in range(0, len(whole), 13):
        recording.write_bytes(whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :])
        try:
            load_recording(recording)
        except (ValueError, OSError) as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert {message for message in messages if not message.startswith(str(recording))} == set()
    assert {message for message in messages if len(message.splitlines()) != 1} == set()


def test_a_recording_that_is_a_link_is_not_followed(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "observations.npz"
    link.symlink_to(recording)
    with pytest.raises(NotPlain, match="must be a plain file, got a link"):
        load_recording(link)
    assert len(load_requests(link)) == 3  # which the user named


def test_a_camera_that_the_policy_wants_and_nobody_recorded_is_named() -> None:
    with pytest.raises(
        ValueError, match="observations must have third_eye, which the policy wants, and have"
    ):
        require_cameras([request_of(0)], ["agentview_image", "third_eye"])
