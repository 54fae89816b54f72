"""Messages as bytes: msgpack with NumPy arrays, in openpi's form or vla-eval's. Data is never code.

openpi marks an array with keys of bytes (openpi_client/msgpack_numpy.py), vla-eval with keys of text, and has
images of their own (vla_eval/protocol/numpy_codec.py, image_codec.py). `unpack` reads both.

Non-obvious behaviors:
    * An array that was read shares the message's memory and is read-only.
    * A message is refused before memory is taken for what it claims to hold: its headers are counted before
      anything is built (`_check_counts`), shapes are held against the length of the data, of a PNG the
      chunks are (`policies.remote.png`), and of an image the header is read before its pixels are. So a
      message takes its own length twice, 107 MiB (measured with Pillow 13.0, PNG and JPEG alike) while one
      image of `MAX_DECODED` bytes is decoded, and a few MiB for everything else.
"""

import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from policies.remote.fields import spell
from policies.remote.png import check_chunks

MEBIBYTE = 2**20
# of one message, all of it together
MAX_ITEMS = 2**14  # of lists and maps; a pair is two
MAX_LEVELS = 32  # of lists and maps in each other
MAX_TEXT = MEBIBYTE  # bytes of texts, which may take four times that
MAX_IMAGES = 16  # that are encoded
MAX_DECODED = 32 * MEBIBYTE  # bytes of those
MAX_DIMS = 8
MAX_POINT = 0x10FFFF  # of Unicode
SURROGATES = 0xD800 >> 11  # the first bits of 0xD800 to 0xDFFF, which are no characters
ARRAY_KINDS = "biufSUMm"  # of dtypes; not V, O and c, which openpi refuses too
SCALAR_KINDS = "biuf"
IMAGE_FORMATS = ("png", "jpeg")  # beside raw
# what Pillow raises for files that are no images
DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, struct.error, zlib.error)
PIXELS = ("L", "RGB", "RGBA")  # modes of an image whose levels are bytes

Value = Any
"""What msgpack holds, and arrays and scalars of NumPy."""


class WireError(ValueError):
    """Bytes that are no message, or a value that has no place in one."""


def pack_openpi(value: Value) -> bytes:
    """Write a message in openpi's form; WireError for a dtype of kind V, O or c, or another type."""
    return _pack(value, _openpi_form)


def pack_vla_eval(value: Value) -> bytes:
    """Write a message in vla-eval's form, images as plain arrays; WireError as for `pack_openpi`."""
    return _pack(value, _vla_eval_form)


def unpack(message: bytes) -> Value:
    """Read a message of either form.

    Raises WireError for what is not msgpack, a dtype of kind V, O or c, a shape that is not its data's, an
    image that is not what it says, or more of anything than one message may have.
    """
    try:
        _check_counts(message)
        return msgpack.unpackb(message, object_hook=_Reader().read, max_ext_len=0)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        why = str(error) or type(error).__name__
        raise WireError(f"these {len(message)} bytes are not a message in msgpack: {why}") from error


# First bytes of msgpack (github.com/msgpack/msgpack, spec.md), and the width of the number behind them
_BYTES, _TEXTS = {0xC4: 1, 0xC5: 2, 0xC6: 4}, {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}
_NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_EXTENSIONS = (0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8)
_SIZED = _BYTES | _TEXTS | _LISTS | _MAPS


def _check_counts(message: bytes) -> None:
    """Walk over the headers of a message, building nothing; WireError for more than one may have.

    What is no msgpack otherwise is left to msgpack.
    """
    at, items, text = 0, 0, 0
    open_items = [1]  # that are still to come in each list or map around this place
    while at < len(message) and open_items:
        open_items[-1] -= 1
        first = message[at]
        width = _SIZED.get(first, 0)
        size = int.from_bytes(message[at + 1 : at + 1 + width], "big")
        at += 1 + width + _NUMBERS.get(first, 0)
        count = 0
        if first in _EXTENSIONS:
            raise WireError("a message must hold no extension types")
        if 0x80 <= first < 0xA0:  # a short map or list
            count = (first & 0x0F) * (2 if first < 0x90 else 1)
        elif first in _LISTS or first in _MAPS:
            count = size * (2 if first in _MAPS else 1)
        elif 0xA0 <= first < 0xC0:  # a short text
            at, text = at + (first & 0x1F), text + (first & 0x1F)
        elif first in _TEXTS:
            at, text = at + size, text + size
        elif first in _BYTES:
            at += size
        items += count
        if items > MAX_ITEMS:
            raise WireError(f"a message must have at most {MAX_ITEMS} items in its lists and maps")
        if text > MAX_TEXT:
            raise WireError(f"a message must have at most {MAX_TEXT // MEBIBYTE} MiB of text")
        if count:
            open_items.append(count)
        if len(open_items) > MAX_LEVELS:
            raise WireError(f"a message must have at most {MAX_LEVELS} lists and maps in each other")
        while open_items and not open_items[-1]:
            open_items.pop()


def is_quick(message: bytes) -> bool:
    """Whether `unpack` takes a few milliseconds at most: no large message, and no image to decode."""
    return len(message) <= MEBIBYTE and b"__image__" not in message


def _pack(value: Value, form: Any) -> bytes:
    try:
        packed = msgpack.packb(value, default=form)
    except (TypeError, OverflowError) as error:
        raise WireError(f"a message cannot hold this: {error}") from error
    assert isinstance(packed, bytes)
    return packed


def _openpi_form(value: Value) -> Value:
    if isinstance(value, np.ndarray):
        _check_kind(value.dtype, ARRAY_KINDS)
        return {
            b"__ndarray__": True,
            b"data": _data(value),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        _check_kind(value.dtype, SCALAR_KINDS)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no form in msgpack")


def _vla_eval_form(value: Value) -> Value:
    if isinstance(value, np.ndarray):
        _check_kind(value.dtype, SCALAR_KINDS)  # its reader takes no others
        return {"__ndarray__": True, "data": _data(value), "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        _check_kind(value.dtype, SCALAR_KINDS)
        return value.item()
    raise TypeError(f"{type(value).__name__} has no form in msgpack")


def _data(array: NDArray[Any]) -> memoryview | bytes:
    """The array's bytes, without a copy where they lie in order."""
    whole = np.ascontiguousarray(array)
    return whole.view(np.uint8).reshape(-1).data if whole.size and whole.ndim else whole.tobytes()


def _check_kind(dtype: np.dtype[Any], kinds: str) -> None:
    if dtype.kind not in kinds:
        raise WireError(f"dtype must be of a kind among {', '.join(kinds)}, got {dtype} of kind {dtype.kind}")


def _same(key: bytes) -> str:
    return key.decode()


def _parts(fields: Mapping[Any, Value], key: Any, names: tuple[str, ...]) -> list[Value]:
    missing = [name for name in names if key(name.encode()) not in fields]
    if missing:
        raise WireError(f"an array lacks {', '.join(missing)}")
    return [fields[key(name.encode())] for name in names]


def _dtype(name: Value, kinds: str) -> np.dtype[Any]:
    if not isinstance(name, str) or len(name) > 16:
        raise WireError(f"dtype must be a short text as '<f4', got {spell(name)}")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise WireError(f"dtype must be one of NumPy's, got {name!r}") from error
    _check_kind(dtype, kinds)
    if dtype.itemsize == 0:
        raise WireError(f"dtype must have a size, got {name!r}")
    return dtype


def _shape(shape: Value) -> tuple[int, ...]:
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        or not all(type(length) is int and 0 <= length < 2**31 for length in shape)
    ):
        raise WireError(f"shape must be at most {MAX_DIMS} lengths from 0, got {spell(shape)}")
    return tuple(shape)


def _array(data: Value, dtype_name: Value, shape_list: Value) -> NDArray[Any]:
    dtype, shape = _dtype(dtype_name, ARRAY_KINDS), _shape(shape_list)
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else spell(data)
        raise WireError(
            f"an array {shape} of {dtype} has {math.prod(shape) * dtype.itemsize} bytes, got {size}"
        )
    if not data:
        return np.empty(shape, dtype)
    if dtype.kind == "U":
        points = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if points.max() > MAX_POINT or (points >> 11 == SURROGATES).any():
            raise WireError("a text in an array must be Unicode; NumPy could not read it")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(data: Value, dtype_name: Value) -> np.generic:
    dtype = _dtype(dtype_name, SCALAR_KINDS)
    if not isinstance(data, bool | int | float):
        raise WireError(f"a scalar of {dtype} must be a number, got {spell(data)}")
    scalar = dtype.type(data)
    assert isinstance(scalar, np.generic)
    return scalar


@dataclass
class _Reader:
    """Makes arrays, scalars and images of one message's maps, within what is left for it."""

    images: int = MAX_IMAGES
    decoded: int = MAX_DECODED

    def read(self, fields: dict[Any, Value]) -> Value:
        """msgpack's object_hook: a map that marks an array, a scalar or an image becomes one."""
        for key in (bytes, _same):
            if key(b"__ndarray__") in fields:
                return _array(*_parts(fields, key, ("data", "dtype", "shape")))
            if key(b"__npgeneric__") in fields:
                return _scalar(*_parts(fields, key, ("data", "dtype")))
        return self._image(fields) if "__image__" in fields else fields

    def _image(self, fields: Mapping[Any, Value]) -> NDArray[Any]:
        """Decode vla-eval's image: whatever its file claims, it must have the shape that the message says."""
        image_format, data, shape_list = _parts(fields, _same, ("format", "data", "shape"))
        if image_format == "raw":
            return _array(data, *_parts(fields, _same, ("dtype", "shape")))
        if image_format not in IMAGE_FORMATS:
            raise WireError(f"an image's format must be raw, png or jpeg, got {spell(image_format)}")
        if not isinstance(data, bytes):
            raise WireError(f"an image's data must be bytes, got {spell(data)}")
        shape = _shape(shape_list)
        self.images -= 1
        self.decoded -= math.prod(shape)
        if self.images < 0:
            raise WireError(f"a message must have at most {MAX_IMAGES} images in png or jpeg")
        if self.decoded < 0:
            raise WireError(
                f"all images of a message must have at most {MAX_DECODED // MEBIBYTE} MiB decoded together; "
                f"one of {shape} is too much"
            )
        return _decode(data, image_format, shape)


def _decode(data: bytes, image_format: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        if image_format == "png":
            check_chunks(data)
        image = Image.open(io.BytesIO(data), formats=(image_format,))  # reads the header alone
        channels = (len(image.getbands()),) if len(shape) == 3 else ()
        size = (image.height, image.width, *channels)
        if size != shape or image.mode not in PIXELS:
            raise WireError(f"an image's shape must be that of its file, {size} {image.mode}, got {shape}")
        return np.asarray(image).reshape(shape)
    except WireError:
        raise
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise WireError(f"an image is not {image_format}: {error}") from error
