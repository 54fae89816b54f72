"""The house: where imports may go, how large files are, and what a command loads before it says anything."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.files import ROOT

PACKAGES = ("eval", "optim", "policies", "tools")
MOST_LINES = 399
MOST_ENTRIES = 24
READS_RECORDS = ["eval.summary", str(ROOT / "docs/results/data/2026-11-24_denoise_sweep/runs/realtime_10")]
LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
status = 0
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code or 0
print(status, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def test_no_source_and_no_test_has_400_lines() -> None:
    paths = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize("folder", ["eval", "optim"])
def test_a_listing_fits_on_a_screen(folder: str) -> None:
    entries = [path for path in (ROOT / folder).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES


def test_every_module_is_in_a_room_of_the_import_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rooms = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources()]
    homeless = [
        module
        for module in modules
        if not module.endswith("__init__")
        and not any(module == room or module.startswith(f"{room}.") for room in rooms)
    ]
    assert homeless == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["eval", "--help"], 0, "usage: python -m eval KEY=VALUE"),
        (["eval", "polcy=oracle"], 1, "unknown key polcy; did you mean policy?"),
        (READS_RECORDS, 0, "policy: realtime"),
        (["eval.compare", "--help"], 0, "usage: python -m eval.compare"),
    ],
)
def test_what_needs_no_network_loads_none(
    arguments: list[str], status: int, says: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", LOADED, *arguments]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    ended, *loaded = done.stderr.splitlines()[-1].split()
    assert says in done.stdout + done.stderr
    assert int(ended) == status, done.stderr
    assert {"torch", "scipy", "mujoco", "ray", "wandb"}.isdisjoint(loaded)
