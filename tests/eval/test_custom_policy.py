"""A 13-line policy in an empty folder, by configuration alone: run by both runners, resumed, compared."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval import compare
from eval.records.reader import read_run
from eval.report import cli as report
from policies.files import ROOT
from tests.eval.fake_run import results

POLICY = """
import numpy as np
from policies.base import ActionChunk

class MyPolicy:
    cameras, needs_privileged, replan_steps = (), False, 4
    def __init__(self, size):
        self.size = size
    def infer(self, requests):
        return [ActionChunk(np.full((5, 7), 0.1 * self.size * (r.call % 3))) for r in requests]
    def provenance(self):
        return {}
    def engagement(self):
        return {}
"""
YAML = "name: mine\n_target_: my_pkg.MyPolicy\nargs: {size: 3}\n"
WHAT = ["suite.tasks=[4]", "protocol.episodes=2", "suite.max_steps=12", "tracking=none"]
NAMED = ["policy=custom", "policy._target_=my_pkg.MyPolicy", "+policy.args.size=3"]

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the policy, and its run `whole`."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_pkg.py").write_text(POLICY)
    done = evaluate(folder, *NAMED, *WHAT, "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in the folder, as a user without this checkout would."""
    return run_python(folder, "-m", "eval", *arguments)


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def cut(run: Path, to: Path) -> dict[str, Any]:
    """Copy a run as if it had been stopped after its first episode."""
    to.mkdir()
    about: dict[str, Any] = json.loads((run / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({**about, "finished": False}))
    for name in ("episodes.jsonl", "inferences.jsonl"):
        lines = (run / name).read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["episode"] == 0]
        (to / name).write_text("".join(f"{line}\n" for line in kept))
    return about


def test_the_record_says_which_class_acted_and_invents_nothing(folder: Path) -> None:
    run = read_run(folder / "whole")
    assert len(run.episodes) == 2
    assert {episode.policy for episode in run.episodes} == {"my_pkg.MyPolicy"}
    assert {episode.checkpoint_sha256 for episode in run.episodes} == {None}
    about = run.run["policy"]
    assert about.keys() == {"target", "version", "source_sha256", "args"}
    assert (about["target"], about["args"], about["version"]) == ("my_pkg.MyPolicy", {"size": 3}, None)


def test_ray_records_the_same_episodes(folder: Path) -> None:
    done = evaluate(folder, *NAMED, *WHAT, "runner=ray", "runner.workers=2", "hydra.run.dir=ray")
    assert done.returncode == 0, done.stderr
    assert results(read_run(folder / "ray")) == results(read_run(folder / "whole"))
    assert read_run(folder / "ray").run["policy"] == read_run(folder / "whole").run["policy"]


def test_a_run_is_resumed_when_this_command_line_names_the_class(folder: Path) -> None:
    cut(folder / "whole", folder / "cut")
    before = {path.name: path.read_bytes() for path in (folder / "cut").iterdir()}
    refused = evaluate(folder, "resume=cut")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "error: policy._target_=my_pkg.MyPolicy stands in the record alone, and a record is not allowed to "
        "choose code; if you trust it, name it on this command line: policy._target_=my_pkg.MyPolicy"
    )
    assert {path.name: path.read_bytes() for path in (folder / "cut").iterdir()} == before
    done = evaluate(folder, "resume=cut", "policy._target_=my_pkg.MyPolicy")
    assert done.returncode == 0, done.stderr
    assert results(read_run(folder / "cut")) == results(read_run(folder / "whole"))


def test_a_policy_whose_file_has_changed_is_another(folder: Path) -> None:
    cut(folder / "whole", folder / "changed")
    (folder / "my_pkg.py").write_text(POLICY + "\n# changed\n")
    try:
        refused = evaluate(folder, "resume=changed", "policy._target_=my_pkg.MyPolicy")
    finally:
        (folder / "my_pkg.py").write_text(POLICY)
    assert refused.returncode == 1
    assert "policy source_sha256 was " in refused.stderr.splitlines()[-1]


def test_a_yaml_of_ones_own_is_a_choice_like_the_others(folder: Path) -> None:
    (folder / "conf" / "policy").mkdir(parents=True)
    (folder / "conf" / "policy" / "mine.yaml").write_text(YAML)
    done = evaluate(folder, "--config-dir", "conf", "policy=mine", *WHAT, "hydra.run.dir=yaml")
    assert done.returncode == 0, done.stderr
    run = read_run(folder / "yaml")
    assert {episode.policy for episode in run.episodes} == {"mine"}
    assert [e.actions_sha256 for e in run.episodes] == [
        e.actions_sha256 for e in read_run(folder / "whole").episodes
    ]
    cut(folder / "yaml", folder / "cut_yaml")
    refused = evaluate(folder, "resume=cut_yaml")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: policy=mine stands in the record")
    assert refused.stderr.count("\n") == 1
    resumed = evaluate(folder, "--config-dir", "conf", "resume=cut_yaml")
    assert resumed.returncode == 0, resumed.stderr
    assert results(read_run(folder / "cut_yaml")) == results(run)


SCRIPT = """
from my_pkg import MyPolicy
from eval.api import evaluate

run = evaluate(MyPolicy(3), "suite.tasks=[4]", "protocol.episodes=2", "suite.max_steps=12", folder="script")
print(run.success.finished, run.folder)
"""


def test_evaluate_in_a_script_writes_the_records_of_the_command_line(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    done = run_python(folder, "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 script\n"
    whole, script = (
        [re.sub(r'"wall_s": [^,]*', "", line) for line in (folder / name / "episodes.jsonl").open()]
        for name in ("whole", "script")
    )
    assert script == whole
    about, of_command = (read_run(folder / name).run["policy"] for name in ("script", "whole"))
    assert {**about, "args": {"size": 3}} == of_command


def test_runs_are_compared_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(folder / "whole", folder / "again")
    assert evaluate(folder, "resume=again", "policy._target_=my_pkg.MyPolicy").returncode == 0
    assert compare.main([str(folder / "whole"), str(folder / "again")]) == 1  # 2 episodes show nothing
    assert "my_pkg.MyPolicy | size 3 | no checkpoint" in capsys.readouterr().out
    page = folder / "page.html"
    assert report.main([str(folder / "whole"), str(folder / "again"), "--out", str(page)]) == 0
    assert "my_pkg.MyPolicy" in page.read_text()


def test_a_sweep_of_it_runs_and_resumes_where_the_command_line_names_it(folder: Path) -> None:
    begun = run_python(
        folder, "-m", "eval.sweep", *NAMED, *WHAT, "protocol.episodes=1", "seed=1,2", "--out", "s"
    )
    assert begun.returncode == 0, begun.stderr
    first, second = (folder / "s" / f"{i}_my_pkg.MyPolicy_steps10_seed={i + 1}" for i in range(2))
    before = [read_run(run).episodes for run in (first, second)]
    shutil.rmtree(second)
    refused = run_python(folder, "-m", "eval.sweep", "--resume", "s")
    assert refused.returncode == 1
    assert "policy._target_=my_pkg.MyPolicy stands in the record alone" in refused.stderr.splitlines()[-1]
    assert not second.exists()
    resumed = run_python(folder, "-m", "eval.sweep", "--resume", "s", "policy._target_=my_pkg.MyPolicy")
    assert resumed.returncode == 0, resumed.stderr
    assert [[e.actions_sha256 for e in run] for run in before] == [
        [e.actions_sha256 for e in read_run(run).episodes] for run in (first, second)
    ]


def test_a_sweep_over_a_yaml_of_ones_own_runs_and_resumes(folder: Path) -> None:
    (folder / "yamls" / "policy").mkdir(parents=True)
    (folder / "yamls" / "policy" / "other.yaml").write_text(YAML.replace("name: mine", "name: other"))
    flags = ["--config-dir", "yamls"]
    begun = run_python(
        folder, "-m", "eval.sweep", *flags, "policy=other", *WHAT, "protocol.episodes=2", "--out", "y"
    )
    assert begun.returncode == 0, begun.stderr
    run = folder / "y" / "0_other_steps10"
    whole = results(read_run(run))
    run.rename(folder / "y_whole")
    cut(folder / "y_whole", run)
    resumed = run_python(folder, "-m", "eval.sweep", "--resume", "y", *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert results(read_run(run)) == whole
