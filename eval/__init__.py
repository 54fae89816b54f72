"""The harness; what runs on import is for `python -m eval...` in a folder of the user's."""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:  # a local `policies` would hide ours
    here, root = sys.path.pop(0), Path(__file__).resolve().parents[1]
    # A checkout comes first; a wheel lies in site-packages, where it is found already.
    sys.path[:] = [*([str(root)] if (root / "pyproject.toml").is_file() else []), *sys.path, here]
