"""The chunks of a PNG, looked at before anything decodes it: pixels, and a few bytes on what they mean.

Texts and profiles (tEXt, zTXt, iTXt, iCCP, eXIf) are packed, and take a thousand times their size when a
decoder opens the file. Names and lengths: w3.org/TR/png-3.
"""

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DATA, END = b"IDAT", b"IEND"
# bytes of each chunk at most; None: as many as the file has
CHUNKS = {
    b"IHDR": 13,
    b"PLTE": 768,
    b"tRNS": 256,
    DATA: None,
    END: 0,
    b"sRGB": 1,
    b"gAMA": 4,
    b"cHRM": 32,
    b"pHYs": 9,
    b"tIME": 7,
    b"sBIT": 4,
    b"bKGD": 6,
}
MAX_CHUNKS = 2**14  # libpng writes one for every 8 KiB
FRAME = 12  # bytes of a chunk beside its data


def check_chunks(data: bytes) -> None:
    """Raise ValueError for a file that has other chunks, larger ones or more of them, or no end."""
    if not data.startswith(SIGNATURE):
        raise ValueError("it has not its signature")
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + FRAME > len(data):
            raise ValueError("it has no end")
        length, name = struct.unpack_from(">I4s", data, at)
        if name not in CHUNKS:
            raise ValueError(f"it must hold pixels alone, got a chunk {name!r}; write it without one")
        most = CHUNKS[name]
        if most is not None and length > most:
            raise ValueError(f"its chunk {name.decode()} must have at most {most} bytes, got {length}")
        at += FRAME + length
        if name == END:
            return
    raise ValueError(f"it must have at most {MAX_CHUNKS} chunks")
