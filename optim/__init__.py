"""What makes a stage faster, or raises; what runs on import is that of `eval/__init__.py`."""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    here = sys.path.pop(0)
    sys.path += [str(Path(__file__).resolve().parents[1]), here]
