"""Make the page of a run's folder while it is mirrored, in a process of its own, as a command."""

import subprocess
import sys
from pathlib import Path

from eval.render.console import print_info
from policies.files import ROOT

CALL = "import sys; sys.path.insert(0, sys.argv.pop(1)); from eval.report.cli import main; sys.exit(main())"
PATIENCE_S = 300.0


def make_page(folder: Path) -> Path | None:
    """Write report.html beside a run's records; where that fails, say why and return None."""
    page = folder / "report.html"
    command = [sys.executable, "-P", "-c", CALL, str(ROOT), str(folder), "--out", str(page)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print_info(f"no page for W&B: {error}")
        return None
    if done.returncode != 0:
        print_info(f"no page for W&B: {done.stderr.strip() or f'exit status {done.returncode}'}")
        return None
    return page
