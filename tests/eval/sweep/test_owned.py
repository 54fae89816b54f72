"""A sweep owns its folder and its jobs: it takes no other's run for its own, and its record names no code."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from eval.app.jobs.check import reason_against
from eval.app.jobs.folder import owned
from eval.app.jobs.typed import Typed
from eval.records.sweep import SWEEP_FILE
from tests.eval.sweep.sweeps import COMMAND, Jobs, parse, sweep, sweep_file

OWN = ["policy=custom", "policy._target_=my_pkg.MyPolicy", "denoise.steps=10,3"]
YAML = "name: mine\n_target_: my_pkg.MyPolicy\nargs: {size: 3}\n"


def change_run(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_jobs(folder: Path, **changes: Any) -> None:
    jobs = [{**job, **changes} for job in sweep_file(folder)]
    (folder / SWEEP_FILE).write_text(json.dumps({"jobs": jobs}))


def test_a_folder_with_anything_in_it_is_no_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0_baseline_steps10").mkdir()
    jobs = Jobs()
    assert sweep([*COMMAND, "--out", str(tmp_path)], jobs) == 1
    assert f"--out {tmp_path} must be a new or an empty folder; " in capsys.readouterr().err
    assert jobs.seen == []
    assert not (tmp_path / SWEEP_FILE).exists()


def test_two_sweeps_of_one_second_have_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert sweep(["denoise.steps=3", "policy=baseline"], Jobs()) == 0
    names = [path.name for path in (tmp_path / "outputs" / "sweeps").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", name) for name in names)


def test_one_command_at_a_time_works_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, jobs = tmp_path / "s", Jobs()
    assert sweep([*COMMAND, "--out", str(folder)], Jobs(interrupted="trt_fp8")) == 130
    with owned(folder):
        for arguments in (["--resume", str(folder)], [*COMMAND, "--out", str(folder)]):
            assert sweep(arguments, jobs) == 1
    assert f"{folder} is in use by another process" in capsys.readouterr().err
    assert jobs.seen == []
    assert sweep(["--resume", str(folder)], jobs) == 0


def test_a_folder_in_which_nothing_was_recorded_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), owned(tmp_path / "new"):
        raise ValueError("no")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("status", [0, None], ids=["finished", "interrupted"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": ["policy=baseline", "denoise.steps=10", "seed=5"]}, "it was begun with seed=5"),
        ({"overrides": ["policy=baseline"]}, "it was begun without denoise.steps=10"),
        ({"overrides": None}, "is damaged"),
    ],
    ids=["more", "less", "none"],
)
def test_a_foreign_run_in_a_jobs_folder_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: int | None,
    changes: dict[str, Any],
    said: str,
) -> None:
    assert sweep(["policy=baseline,trt_fp8", "denoise.steps=10", "--out", str(tmp_path / "s")], Jobs()) == 0
    run = tmp_path / "s" / "0_baseline_steps10"
    change_run(run, **changes, finished=status == 0)
    change_jobs(tmp_path / "s", status=status)
    before, jobs = (run / "run.json").read_bytes(), Jobs()
    assert sweep(["--resume", str(tmp_path / "s")], jobs) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(run) in line
    assert said in line
    assert jobs.seen == []
    assert (run / "run.json").read_bytes() == before


def test_a_run_of_another_plan_is_foreign_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["policy=baseline", "denoise.steps=10", "--out", str(tmp_path / "s")], Jobs()) == 0
    run = tmp_path / "s" / "0_baseline_steps10"
    config = json.loads((run / "run.json").read_text())["config"]
    change_run(run, config={**config, "protocol": {**config["protocol"], "episodes": 1}})
    assert sweep(["--resume", str(tmp_path / "s")], Jobs()) == 1
    assert "protocol.episodes was 1, is 3" in capsys.readouterr().err


def test_a_jobs_folder_that_leads_elsewhere_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    assert sweep([*COMMAND, "--out", str(folder)], Jobs(interrupted="baseline")) == 130
    (folder / "0_baseline_steps10").rename(elsewhere)
    (folder / "0_baseline_steps10").symlink_to(elsewhere)
    before, jobs = sorted(elsewhere.iterdir()), Jobs()
    assert sweep(["--resume", str(folder)], jobs) == 1
    assert "must be a plain file, got a link" in capsys.readouterr().err
    assert jobs.seen == []
    assert sorted(elsewhere.iterdir()) == before


def test_a_record_names_no_code_but_the_command_line_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = tmp_path / "my $(sweep)=1, 'a'", Jobs()
    assert sweep([*OWN, "--out", str(folder)], Jobs(interrupted="custom")) == 130
    go_on = capsys.readouterr().err.partition("go on with it: ")[2].splitlines()[0]
    assert sweep(["--resume", str(folder)], jobs) == 1
    said = capsys.readouterr().err
    assert "policy._target_=my_pkg.MyPolicy stands in the record alone" in said
    assert sweep(["--resume", str(folder), "policy._target_=my_pkg.Other"], jobs) == 1
    assert "no recorded job has policy._target_=my_pkg.Other; they name policy._target_=my_pkg.MyPolicy" in (
        capsys.readouterr().err
    )
    assert sweep(["--resume", str(folder), "policy._target_=my_pkg.MyPolicy", "seed=3"], jobs) == 1
    assert "seed=3 would change recorded jobs; " in capsys.readouterr().err
    assert jobs.seen == []
    words = shlex.split(go_on)
    assert words[1:3] == ["-m", "eval.sweep"]
    assert sweep(words[3:], jobs) == 0
    resumed, new = (parse(arguments) for arguments in jobs.seen)
    assert resumed["resume"] == str(folder / "0_my_pkg.MyPolicy_steps10")
    assert resumed["policy._target_"] == new["policy._target_"] == "my_pkg.MyPolicy"


def test_a_record_gives_a_policy_no_weights_but_the_command_line_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = tmp_path / "s", Jobs()
    own = [*OWN[:2], "denoise.steps=10", "+policy.args.path=a,b", "+policy.args.size=3"]
    assert sweep([*own, "--out", str(folder)], Jobs(interrupted="custom")) == 130
    go_on = capsys.readouterr().err.partition("go on with it: ")[2].splitlines()[0]
    assert sweep(["--resume", str(folder), OWN[1]], jobs) == 1
    assert "+policy.args.path=a stands in the record alone" in capsys.readouterr().err
    assert sweep(["--resume", str(folder), OWN[1], "+policy.args.size=3"], jobs) == 1
    assert "+policy.args.size=3 would change recorded jobs; " in capsys.readouterr().err
    assert jobs.seen == []
    words = shlex.split(go_on)
    assert words[5:] == [OWN[1], "+policy.args.path=a", "+policy.args.path=b"]
    assert sweep(words[3:], jobs) == 0
    assert [parse(arguments)["+policy.args.path"] for arguments in jobs.seen] == ["a", "b"]


def test_tracking_of_a_record_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, jobs = tmp_path / "s", Jobs()
    online = ["tracking.mode=online", "tracking.entity=somebody"]
    assert sweep([*COMMAND, *online, "--out", str(folder)], Jobs(interrupted="baseline")) == 130
    assert "tracking.entity=somebody" in capsys.readouterr().err.partition("go on with it: ")[2]
    assert sweep(["--resume", str(folder)], jobs) == 0
    assert "without the sweep's tracking.mode=online, tracking.entity=somebody" in capsys.readouterr().err
    assert not any("entity" in text or "mode" in text for arguments in jobs.seen for text in arguments)
    again = tmp_path / "again"
    assert sweep([*COMMAND, *online, "--out", str(again)], Jobs(interrupted="baseline")) == 130
    typed = Jobs()
    assert sweep(["--resume", str(again), *online], typed) == 0
    assert all(parse(arguments)["tracking.entity"] == "somebody" for arguments in typed.seen)


def test_yaml_of_ones_own_is_composed_checked_and_handed_to_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf, folder = tmp_path / "my conf=1", tmp_path / "s"
    (conf / "policy").mkdir(parents=True)
    (conf / "policy" / "mine.yaml").write_text(YAML)
    flags = ["--config-dir", str(conf)]
    seen: list[list[str]] = []

    def interrupted(arguments: list[str], log: Path) -> int:
        seen.append(arguments)
        raise KeyboardInterrupt

    assert sweep(["policy=mine", "seed=1,2", *flags, "--out", str(folder)], interrupted) == 130
    assert shlex.join(flags) in capsys.readouterr().err.partition("go on with it: ")[2]
    assert sweep(["--resume", str(folder), *flags], interrupted) == 130
    assert [arguments[:2] for arguments in seen] == [flags, flags]
    assert sweep(["--resume", str(folder)], interrupted) == 1
    assert "eval.sweep take --config-dir FOLDER, with the folder that has it" in capsys.readouterr().err
    assert sweep(["policy=mine", "--config-dir", str(tmp_path / "nowhere")], interrupted) == 1
    assert f"--config-dir: no folder '{tmp_path / 'nowhere'}'" in capsys.readouterr().err

    (tmp_path / "my_pkg.py").write_text("class MyPolicy:\n    def __init__(self, size): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = ["policy=mine", "tracking=none"]
    assert reason_against(job, Typed(config_dir=conf)) is None
    assert reason_against(job) is not None
    assert reason_against(job, Typed((), conf)) is None


def test_a_key_that_is_unknown_or_removed_is_refused_before_the_first_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argument, said in {
        "+suite.max_step=5": "unknown key suite.max_step; did you mean suite.max_steps?",
        "~seed": "~seed would remove a key that is needed",
        "runner.max_wait_ms=nan": "runner.max_wait_ms must be a finite number, got nan",
    }.items():
        assert sweep(["policy=baseline", argument, "--out", str(tmp_path / "s")], Jobs()) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_texts_of_a_sweep_stay_texts(tmp_path: Path) -> None:
    jobs = Jobs()
    arguments = ["policy=baseline", "denoise.steps=10", "policy.name=1e5,2_0", "--out", str(tmp_path / "s")]
    assert sweep(arguments, jobs) == 0
    assert [parse(seen)["policy.name"] for seen in jobs.seen] == ["1e5", "2_0"]
