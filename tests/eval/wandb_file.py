"""Read back what an offline W&B run stored."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2


def stored(folder: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Read a .wandb file: a LevelDB log, so blocks of 32 KiB with (crc, length, type) before each chunk."""
    wandb.teardown()  # waits for W&B's own process, which may write on after `finish`
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    position, whole = 7, b""  # the file begins with 7 bytes of its own
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows of the run below `folder`, without W&B's own columns."""
    rows = []
    for record in stored(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return rows


def artifacts(folder: Path, kind: str) -> list[Any]:
    """The artifacts of a type that an offline run stored."""
    logged = [record.artifact for record in stored(folder) if record.WhichOneof("record_type") == "artifact"]
    return [artifact for artifact in logged if artifact.type == kind]
