"""Read a .npz that somebody else may have made: what each array is, is known before memory is taken for it.

`numpy.load` believes the file: a header of 8e12 numbers is allocated first, and read then.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from policies.files import plain_opener
from policies.text import brief, shorten

Array = NDArray[np.generic]
MEBIBYTE = 2**20
MOST_BYTES = 2048 * MEBIBYTE  # of a file, and of its arrays; some 5000 observations of two cameras
MOST_ARRAYS = 64
END = struct.Struct(
    "<4s4H2IH"
)  # of a ZIP: PK 5 6, disks, entries here and in all, directory's size, place, comment
LOCATOR_64 = b"PK\x06\x07"  # would give other numbers than END
ENCRYPTED = 1

Check = Callable[[str, np.dtype[np.generic], tuple[int, ...]], str | None]
"""Says of an array's name, type and shape what is wrong with them; None where nothing is."""


def read_arrays(path: Path, check: Check) -> dict[str, Array]:
    """Read all arrays of a file.

    Args:
        check: is asked before an array is read.

    Raises:
        ValueError: it is no .npz, `check` finds something wrong, or it is damaged.
        OSError: it cannot be read, or is no plain file.
    """
    with open(path, "rb", opener=plain_opener) as file:
        try:
            _refuse_large(file)
            with zipfile.ZipFile(file) as archive:
                return _read_all(archive, check)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError) as error:  # a seek before 0
            raise ValueError(f"it is damaged: {brief(str(error))}") from error
        except (NotImplementedError, RuntimeError, KeyError, MemoryError, RecursionError) as error:
            raise ValueError(f"it cannot be read: {type(error).__name__}: {brief(str(error))}") from error


def _refuse_large(file: BinaryIO) -> None:
    """Raise ValueError unless the file ends as a small ZIP does: its directory is read as a whole."""
    size = file.seek(0, 2)
    if size > MOST_BYTES:
        raise ValueError(f"it must have at most {MOST_BYTES} bytes, got {size}")
    locator_size = 20
    file.seek(max(0, size - END.size - locator_size))
    tail = file.read()
    end = END.unpack(tail[-END.size :]) if len(tail) >= END.size else None
    if end is None or end[0] != b"PK\x05\x06" or tail.startswith(LOCATOR_64):
        raise ValueError("it is not a .npz, or only a part of one")
    entries, directory_bytes = end[4], end[5]
    if entries > MOST_ARRAYS or directory_bytes > MOST_ARRAYS * 1024:
        raise ValueError(f"it must have at most {MOST_ARRAYS} arrays, got {entries}")
    file.seek(0)


def _read_all(archive: zipfile.ZipFile, check: Check) -> dict[str, Array]:
    infos = archive.infolist()
    names = [info.filename.removesuffix(".npy") for info in infos]
    if len(set(names)) != len(names):
        raise ValueError(f"an array stands in it twice: {shorten(sorted(names))}")
    total = sum(info.file_size for info in infos)
    if total > MOST_BYTES:
        raise ValueError(f"its arrays must have at most {MOST_BYTES} bytes, got {total}")
    return {name: _read_one(archive, info, name, check) for name, info in zip(names, infos, strict=True)}


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    try:
        return np.lib.format.read_array_header_1_0(member)
    except Exception as error:  # NumPy reads it as a literal of Python, with all the errors of that
        raise ValueError(f"the header of {name!r:.100} is damaged: {brief(str(error))}") from error


def _read_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, check: Check) -> Array:
    if info.flag_bits & ENCRYPTED:
        raise ValueError(f"{name!r:.100} is encrypted")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name!r:.100} must be an array in NumPy's format 1.0")
        shape, is_fortran, dtype = _header(member, name)
        if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.isnative or is_fortran:
            raise ValueError(f"{name!r:.100} must be a plain array, got {dtype!s:.100}")
        if wrong := check(name, dtype, shape):
            raise ValueError(f"{name!r:.100} {wrong}, got {dtype} {shape!s:.100}")
        needed = math.prod(shape) * dtype.itemsize
        if needed != info.file_size - member.tell():
            raise ValueError(
                f"{name!r:.100} has {info.file_size - member.tell()} bytes, not {needed} {shape}"
            )
        content = member.read(needed)
        if len(content) != needed or member.read(1):
            raise ValueError(f"{name!r:.100} is cut short")
    return np.frombuffer(bytearray(content), dtype).reshape(shape)
