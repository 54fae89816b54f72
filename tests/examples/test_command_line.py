"""The copied example runs from an empty folder, and leaves records that can be resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.records.reader import read_run
from policies.files import ROOT
from tests.examples.conftest import FAKE, OUTPUTS, Save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    shutil.copytree(ROOT / "examples" / "my_policy", folder / "my_policy")
    return folder


def run_eval(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval", "--config-dir", "my_policy/conf", *arguments]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{FAKE}"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.sim
def test_a_lerobot_policy_is_evaluated_and_resumed_by_the_command_line(folder: Path, save: Save) -> None:
    saved = save(type="queues", n_obs_steps=2, noise=0.5)
    short = ("protocol=smoke", "suite.max_steps=6", "runner.warmup_inferences=0", "tracking=none")
    named = ("policy=lerobot", f"policy.args.path={saved}", "policy.args.device=cpu")
    done = run_eval(folder, *named, *short, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "policy lerobot" in done.stderr
    run = read_run(folder / "run")
    [episode] = run.episodes
    assert (episode.steps, episode.inferences, len(run.inferences)) == (6, 6, 6)
    assert episode.checkpoint_sha256 == run.run["policy"]["weights_sha256"]
    assert run.run["policy"]["target"] == "my_policy.lerobot_policy.LeRobotPolicy"
    assert run.run["policy"]["lerobot"] == "0.0.fake"

    for name in ("episodes.jsonl", "inferences.jsonl"):
        (folder / "run" / name).write_text("")
    refuse_what_the_record_names(folder, f"policy.args.path={saved}")
    resumed = run_eval(folder, "resume=run", *named)
    assert resumed.returncode == 0, resumed.stderr
    [again] = read_run(folder / "run").episodes
    assert again.actions_sha256 == episode.actions_sha256


def refuse_what_the_record_names(folder: Path, path: str) -> None:
    """Resume the run as another could have sent it: with weights and a repository of code in its record."""
    run_json = folder / "run" / "run.json"
    before = run_json.read_text()
    about = json.loads(before)
    code = "+policy.args.config.action_tokenizer_name=evil/tokenizer"
    run_json.write_text(json.dumps({**about, "overrides": [*about["overrides"], code]}))
    typed = ("resume=run", "policy=lerobot")
    for arguments, alone in (
        (typed, f"{path}, policy.args.device=cpu, {code} stand in"),
        ((*typed, path, "policy.args.device=cpu"), f"{code} stands in"),
    ):
        done = run_eval(folder, *arguments)
        assert done.returncode == 1
        assert f"error: {alone} the record alone" in done.stderr
    run_json.write_text(before)


def test_a_policy_that_cannot_run_ends_in_one_line(folder: Path, save: Save) -> None:
    saved = save(output_features={"action": {**OUTPUTS["action"], "shape": [14]}})
    done = run_eval(folder, "policy=lerobot", f"policy.args.path={json.dumps(str(saved))}", "tracking=none")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "output_features must have action of shape (7,)" in line
