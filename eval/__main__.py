import sys
from pathlib import Path

if Path(sys.path[0]) != Path(__file__).resolve().parents[1]:  # a local `policies` would hide ours
    sys.path.append(sys.path.pop(0))

from eval.cli import main

main()
