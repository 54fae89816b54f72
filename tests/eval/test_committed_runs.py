"""Runs that older versions recorded, as docs/results/data holds them, are read as they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval.records.folders import RUN_FILE
from policies.files import ROOT

DATA = ROOT / "docs" / "results" / "data"
RUNS = sorted(path.parent.relative_to(DATA) for path in DATA.rglob(RUN_FILE))


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a committed run, somewhere else."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(DATA / run, tmp_path / "run"))

    return copy


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_finished_run_has_nothing_left_and_stays_as_it_is(
    run: Path,
    copied: Callable[[Path], Path],
    command_line: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = copied(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command_line(f"resume={folder}")
    out, err = capfd.readouterr()
    assert err.startswith("nothing is left to run: ")
    assert f"\nrecords: {folder}\n" in out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_option_that_a_backend_had_once_is_no_change_where_it_said_what_holds_today(
    copied: Callable[[Path], Path], refusal: Callable[..., str]
) -> None:
    folder = copied(Path("2026-11-24_denoise_sweep/runs/realtime_10"))
    file = folder / RUN_FILE
    run = json.loads(file.read_text())
    assert run["config"]["optim"]["denoise"]["weights"] == "bf16"
    old = run["config"]["checkpoint"]["sha256"]
    new = OmegaConf.load(ROOT / "conf" / "checkpoint" / "reference.yaml").sha256
    weights = f"checkpoint.sha256 was {old!r}, is {new!r}; "  # trained anew since
    changed = f"{folder} has another configuration, policy or simulator: {weights}"
    assert refusal(f"resume={folder}", "seed=8") == f"{changed}seed was 7, is 8"
    run["config"]["optim"]["denoise"]["weights"] = "fp8"
    file.write_text(json.dumps(run))
    line = refusal(f"resume={folder}", "seed=8")
    assert line == f"{changed}optim.denoise.weights was 'fp8', is None; seed was 7, is 8"
