"""Fuzz for longer: `python -m tests.fuzz SECONDS [FIRST_SEED]` tries all targets in turn and counts."""

import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, prepare, try_once

seconds = float(sys.argv[1])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
counts: Counter[tuple[str, str]] = Counter()
with tempfile.TemporaryDirectory() as place:
    folders = {name: Path(place, name) / "folder" for name in TARGETS}
    for folder in folders.values():
        folder.parent.mkdir()
    valid = {name: prepare(target, folders[name]) for name, target in TARGETS.items()}
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for name, target in TARGETS.items():
            start_s = time.monotonic()
            try:
                end = try_once(target, folders[name], valid[name], seed)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                end = "FAULT"
                sys.stdout.write(f"{name}, seed {seed}:\n{''.join(traceback.format_exception(error)[-6:])}\n")
            if time.monotonic() - start_s > 5:
                sys.stdout.write(f"{name}, seed {seed}: took {time.monotonic() - start_s:.1f} s\n")
            counts[name, end] += 1
        seed += 1
for name in TARGETS:
    ends = ", ".join(f"{end} {counts[name, end]}" for end in ("read", "refused", "FAULT"))
    sys.stdout.write(f"{name}: {ends}\n")
sys.stdout.write(f"{counts.total()} files, the last seed {seed - 1}\n")
sys.exit(any(end == "FAULT" for _, end in counts))
