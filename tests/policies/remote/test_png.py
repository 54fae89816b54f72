"""A PNG in a message holds pixels alone, and takes memory for them alone."""

import io
import struct
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from policies.remote.png import MAX_CHUNKS
from policies.remote.wire import WireError, unpack
from tests.policies.remote.memory import forget_peak, peak_mb

LEVELS = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
HEADER = struct.pack(">IIBBBBB", 9, 8, 8, 2, 0, 0, 0)
PIXELS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in LEVELS))
TEXT = b"a" * (2**20 - 64)
PACKED = zlib.compress(TEXT, 9)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, before: bool = True) -> bytes:
    """A file of `LEVELS` with these chunks before or behind the pixels."""
    pixels = chunk(b"IDAT", PIXELS)
    parts = [*chunks, pixels] if before else [pixels, *chunks]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HEADER) + b"".join(parts) + chunk(b"IEND", b"")


def read(data: bytes, shape: Any = (8, 9, 3)) -> np.ndarray:
    return unpack(msgpack.packb({"__image__": True, "format": "png", "data": data, "shape": shape}))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        (b"iTXt", b"k\0\1\0\0\0" + PACKED),
        (b"zTXt", b"k\0\0" + PACKED),
        (b"tEXt", b"k\0" + TEXT),
        (b"iCCP", b"k\0\0" + PACKED),
        (b"eXIf", TEXT),
        (b"vpAg", TEXT),
    ],
    ids=lambda value: value.decode() if len(value) == 4 else "",
)
def test_a_file_with_texts_or_profiles_is_refused_before_they_are_unpacked(
    name: bytes, data: bytes, before: bool
) -> None:
    file = png(*[chunk(name, data)] * 63, before=before)
    before_mb = forget_peak()
    with pytest.raises(
        WireError, match=f"is not png: it must hold pixels alone, got a chunk b'{name.decode()}'"
    ):
        read(file)
    assert peak_mb() - before_mb < 4 + 2 * len(file) / 2**20


def by_opencv() -> bytes:
    import cv2

    written, data = cv2.imencode(".png", LEVELS[:, :, ::-1])
    assert written
    return data.tobytes()


def by_pillow(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, "png", **options)
    return buffer.getvalue()


FACTS = [
    chunk(b"sRGB", b"\0"),
    chunk(b"gAMA", struct.pack(">I", 45455)),
    chunk(b"cHRM", struct.pack(">8I", *range(1, 9))),
    chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
    chunk(b"tIME", struct.pack(">HBBBBB", 2026, 11, 28, 1, 2, 3)),
    chunk(b"sBIT", b"\x08\x08\x08"),
    chunk(b"bKGD", b"\0\1" * 3),
]


@pytest.mark.parametrize(
    "data",
    [by_opencv(), by_pillow(), by_pillow(dpi=(72, 72), optimize=True), png(), png(*FACTS)],
    ids=["opencv", "pillow", "pillow with dpi", "bare", "every fact"],
)
def test_what_encoders_write_is_read_to_the_bit(data: bytes) -> None:
    np.testing.assert_array_equal(read(data), LEVELS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(chunk(b"cHRM", TEXT)), "its chunk cHRM must have at most 32 bytes, got 1048512"),
        (png(chunk(b"PLTE", bytes(771))), "its chunk PLTE must have at most 768 bytes"),
        (png(*[chunk(b"IDAT", b"")] * MAX_CHUNKS), f"it must have at most {MAX_CHUNKS} chunks"),
        (png()[:-12], "it has no end"),
        (png()[:40], "it has no end"),
        (png()[1:], "it has not its signature"),
    ],
    ids=["chrm", "palette", "chunks", "no end", "cut", "signature"],
)
def test_a_file_that_claims_more_than_pixels_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=f"is not png: {says}"):
        read(data)


def test_pillow_itself_would_unpack_the_texts() -> None:
    """Or this module would have nothing to do."""
    file = png(*[chunk(b"zTXt", b"k%d\0\0" % i + PACKED) for i in range(8)])
    opened = Image.open(io.BytesIO(file))
    assert isinstance(opened, PngImagePlugin.PngImageFile)
    assert sum(map(len, opened.text.values())) == 8 * len(TEXT)
