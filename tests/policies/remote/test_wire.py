"""Messages: both forms read back what was written; what could be code, or fill the memory, is refused."""

import io
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from policies.files import ROOT
from policies.remote.fields import spell
from policies.remote.wire import WireError, is_quick, pack_openpi, pack_vla_eval, unpack

ARRAYS = [
    np.arange(12, dtype=np.float64).reshape(3, 4),
    np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[:, ::-1],
    np.array([True, False]),
    np.array(2.5, dtype=np.float32),
    np.zeros((0, 7)),
    np.arange(3, dtype=">i4"),
]


def array(data: bytes = b"\0" * 8, dtype: Any = "<f8", shape: Any = (1,)) -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


def image(image_format: str, data: bytes, shape: Any) -> bytes:
    return msgpack.packb({"__image__": True, "format": image_format, "data": data, "shape": shape})


def encoded(levels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [pack_openpi, pack_vla_eval])
@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype}{value.shape}")
def test_an_array_comes_back_to_the_bit(pack: Any, value: np.ndarray) -> None:
    read = unpack(pack({"x": [value]}))["x"][0]
    assert (read.dtype, read.shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(read, value)


def test_openpi_marks_arrays_with_bytes_and_vla_eval_with_text() -> None:
    value = np.float32([1, 2])
    assert b"__ndarray__" in msgpack.unpackb(pack_openpi(value), strict_map_key=False)
    assert "__ndarray__" in msgpack.unpackb(pack_vla_eval(value))


def test_a_scalar_keeps_its_dtype_in_openpis_form_and_is_a_number_in_vla_evals() -> None:
    assert unpack(pack_openpi(np.float32(0.1))) == np.float32(0.1)
    assert unpack(pack_openpi(np.float32(0.1))).dtype == np.float32
    assert unpack(pack_vla_eval(np.int64(3))) == 3


@pytest.mark.parametrize("pack", [pack_openpi, pack_vla_eval])
@pytest.mark.parametrize(
    "value", [np.array([{}]), np.array([1j]), np.zeros(1, "i4,i4"), np.array([object()])]
)
def test_dtypes_that_hold_objects_are_not_sent(pack: Any, value: np.ndarray) -> None:
    with pytest.raises(WireError, match="dtype must be of a kind"):
        pack(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70])
def test_a_value_without_a_form_is_not_sent(value: Any) -> None:
    with pytest.raises(WireError, match="cannot hold"):
        pack_openpi(value)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (array(dtype="|O"), "kind O"),
        (array(dtype="|V8"), "kind V"),
        (array(dtype="<c8"), "kind c"),
        (array(dtype="i4,i4"), "kind V"),
        (array(dtype="<U0", data=b""), "must have a size"),
        (array(dtype=["<f8"]), "short text"),
        (array(dtype="nothing"), "one of NumPy's"),
        (array(shape=(2,)), "has 16 bytes, got 8"),
        (array(shape=(2**31,)), "lengths from 0"),
        (array(shape=(-1,)), "lengths from 0"),
        (array(shape=(True,)), "lengths from 0"),
        (array(shape=[1] * 9), "at most 8"),
        (array(shape="8"), "lengths from 0"),
        (array(data="text"), "got 'text'"),
        (msgpack.packb({b"__ndarray__": True, b"data": b""}), "lacks dtype, shape"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f8"}), "must be a number"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "kind O"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "not a message"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "no extension types"),
        (pickle.dumps({"x": 1}), "not a message"),
        (b"", "not a message"),
        (b"\x81", "not a message"),
        (b"\x91" * 5000 + b"\xc0", "at most 32 lists and maps in each other"),
        (msgpack.packb(list(range(2**14 + 1))), "at most 16384 items"),
        (msgpack.packb([[{}] * 1000] * 17), "at most 16384 items"),
        (msgpack.packb({str(i): i for i in range(2**13 + 1)}), "at most 16384 items"),
        (msgpack.packb([f"{i:0>200}" for i in range(6000)]), "at most 1 MiB of text"),
        (msgpack.packb("x" * (2**20 + 1)), "at most 1 MiB of text"),
        (msgpack.packb({1: 2}), "not a message"),
        (image("gif", b"", (1, 1, 3)), "raw, png or jpeg"),
        (image("png", b"nothing", (1, 1, 3)), "is not png"),
        (image("png", "text", (1, 1, 3)), "must be bytes"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        unpack(message)


def test_a_claim_of_many_items_takes_no_memory() -> None:
    claims = b"\xdd\x00\xff\xff\xff" * 400  # lists of 16 million items, one within the other
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack(claims)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_vla_evals_images_come_back(channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    raw = {
        "__image__": True,
        "format": "raw",
        "data": levels.tobytes(),
        "dtype": "|u1",
        "shape": [5, 6, channels],
    }
    np.testing.assert_array_equal(unpack(msgpack.packb(raw)), levels)
    png = image("png", encoded(levels.squeeze(), "png"), (5, 6, channels))
    np.testing.assert_array_equal(unpack(png), levels)


def test_what_may_take_long_is_told_by_its_bytes() -> None:
    frames = {name: np.zeros((256, 256, 3), np.uint8) for name in ("a", "b")}
    assert is_quick(pack_openpi(frames))
    assert is_quick(pack_vla_eval(frames))
    assert not is_quick(pack_openpi({**frames, "c": np.zeros((1024, 1024, 3), np.uint8)}))
    assert not is_quick(msgpack.packb([0, {"deep": {"__image__": True, "format": "png"}}]))


def test_a_jpeg_is_read_as_pillow_reads_it() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    data = encoded(levels, "jpeg")
    np.testing.assert_array_equal(
        unpack(image("jpeg", data, (8, 8, 3))), np.asarray(Image.open(io.BytesIO(data)))
    )


def test_an_image_must_have_the_shape_that_its_message_says() -> None:
    data = encoded(np.zeros((8, 9, 3), np.uint8), "png")
    with pytest.raises(WireError, match="must be that of its file"):
        unpack(image("png", data, (9, 8, 3)))


def test_an_image_of_another_format_than_it_says_is_refused() -> None:
    data = encoded(np.zeros((8, 8, 3), np.uint8), "png")
    with pytest.raises(WireError, match="is not jpeg"):
        unpack(image("jpeg", data, (8, 8, 3)))


BOMBS = """
import io, sys
import msgpack, numpy as np
from PIL import Image
from policies.files import ROOT
from policies.remote.fields import spell
from policies.remote.wire import WireError, unpack
from tests.policies.remote.memory import forget_peak, peak_mb

def image(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "png")
    return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": [side, side, 3]}

message = msgpack.packb({"images": [image(2000)] * 12, "flat": [[{}] * 4096] * int(sys.argv[1])})
unpack(msgpack.packb(image(8)))
before_mb = forget_peak()
try:
    unpack(message)
except WireError as error:
    print(peak_mb() - before_mb, error, sep=": ")
"""


@pytest.mark.parametrize(("lists", "most_mb", "says"), [(0, 100, "32 MiB decoded"), (900, 1, "16384 items")])
def test_a_message_takes_memory_for_what_it_may_hold_alone(lists: int, most_mb: int, says: str) -> None:
    """Twelve small files of 137 MiB together, and 3.5 MiB of empty maps."""
    environ = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", BOMBS, str(lists)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    taken_mb, _, why = done.stdout.partition(": ")
    assert says in why
    assert float(taken_mb) < most_mb


def test_images_are_counted_together_before_the_next_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"__image__": True, "format": "png", "data": b"no file", "shape": [3300, 3300, 3]}
    with pytest.raises(WireError, match="is not png"):
        unpack(msgpack.packb(wide))
    decoded: list[Any] = []
    monkeypatch.setattr("policies.remote.wire._decode", lambda *parts: decoded.append(parts))
    with pytest.raises(WireError, match=r"32 MiB decoded together; one of \(3300, 3300, 3\)"):
        unpack(msgpack.packb([wide, wide]))
    small = {**wide, "shape": [1, 1, 3]}
    with pytest.raises(WireError, match="at most 16 images"):
        unpack(msgpack.packb([small] * 17))
    assert len(decoded) == 1 + 16


@pytest.mark.parametrize("seed", range(20))
def test_the_headers_are_counted_as_msgpack_reads_them(seed: int) -> None:
    draw = random.Random(seed)

    def value(level: int) -> Any:
        kind = draw.random()
        if level < 4 and kind < 0.3:
            return [value(level + 1) for _ in range(draw.choice((0, 1, 15, 16, 40)))]
        if level < 4 and kind < 0.6:
            return {f"k{i}": value(level + 1) for i in range(draw.choice((0, 1, 15, 16, 40)))}
        sizes = (0, 1, 31, 32, 255, 256, 70000)
        numbers = [sign * 2**bits for bits in (0, 5, 7, 15, 31, 62) for sign in (1, -1)]
        return draw.choice((None, True, 1.5, *numbers, "x" * draw.choice(sizes), b"y" * draw.choice(sizes)))

    message = msgpack.packb(value(0), use_single_float=seed % 2 == 0)
    try:
        assert unpack(message) == msgpack.unpackb(message)
    except WireError as error:
        assert re.search("at most (16384 items|1 MiB of text)", str(error))  # noqa: PT017
    whole = {"a": [1, "text", {b"k": [0.5] * 70}], "b": b"y" * 300}
    assert unpack(msgpack.packb(whole)) == whole


@pytest.mark.parametrize("value", [b"\xff" * 2**24, [b"\xff" * 2**24], {"k": np.zeros((2000, 2000))}])
def test_a_value_of_any_size_is_named_in_few_words(value: Any) -> None:
    tracemalloc.start()
    try:
        assert len(spell(value)) <= 80
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()
