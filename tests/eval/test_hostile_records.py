"""A received folder is data: it runs no code, reads no variable, speaks to nobody, writes nowhere else."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from eval.config.compose import compose_run, configure
from eval.config.origins import checkpoint_yaml
from eval.config.schema import ConfigError
from eval.config.targets import is_argument, refuse_recorded_targets, repeatable
from eval.records.folders import EPISODES_FILE, INFERENCES_FILE, PACKED_INFERENCES, RUN_FILE
from eval.records.foreign import DamagedRecords
from eval.records.sweep import SWEEP_FILE, read_job_records, read_jobs_to_run
from eval.replay.subjects import build, read_run_json
from eval.report import cli as report
from policies.files import ROOT, NotPlain

RUN = ROOT / "docs" / "results" / "data" / "2026-11-24_denoise_sweep" / "runs" / "realtime_1"
CANARY = "canary_of_a_record"  # a module that must not be imported
ALONE = "stands in the record alone"

CUSTOM = ("policy=custom", "policy._target_=eval.specs.oracle.OracleSpec")  # code that conf/ names

HOSTILE = {
    "target": ([f"optim.vision._target_={CANARY}.run", "+optim.vision.command=x"], ALONE),
    "target of a new key": ([f"+optim.vision.inner._target_={CANARY}.run"], ALONE),
    "target in a list": ([f"+optim.vision.inner=[[{{_target_:{CANARY}.run}}]]"], ALONE),
    "target in a dict": ([f"++optim.vision.inner={{a:{{_target_:{CANARY}.run}}}}"], ALONE),
    "policy": (["policy=custom", f"policy._target_={CANARY}.Policy"], ALONE),
    "args": (["+optim.vision._args_=[1]"], ALONE),
    "partial": (["+optim.vision._partial_=true"], ALONE),
    "Ray's head": (["runner=ray", "runner.address=ray://example.com:1"], ALONE),
    "a server": (["policy=remote", "policy.url=ws://example.com:1", "policy.label=x"], ALONE),
    "a key": (["policy=remote", "policy.label=x", "policy.api_key_env=HOME"], ALONE),
    "an argument": ([*CUSTOM, "+policy.args.path=evil/weights"], ALONE),
    "an argument in a mapping": ([*CUSTOM, "+policy.args.config.tokenizer=evil/code"], ALONE),
    "a mapping of arguments": ([*CUSTOM, "+policy.args={path:evil/weights}"], ALONE),
    "an argument in a list": ([*CUSTOM, "+policy.args.paths=[1,[evil/weights]]"], ALONE),
    "a switch": ([*CUSTOM, "+policy.args.trust_remote_code=true"], ALONE),
    "a number in a mapping": ([*CUSTOM, "+policy.args.config.trust_remote_code=1"], ALONE),
    "no guard": ([*CUSTOM, "+policy.args.guard=null"], ALONE),
    "a variable": (["checkpoint.path=${oc.env:CANARY}"], "may look up a value"),
    "braces escaped": (["checkpoint.path=$\\{oc.env:CANARY\\}"], "may look up a value"),
    "in a list": (["suite.tasks=[${oc.decode:${oc.env:CANARY}}]"], "may look up a value"),
    "Hydra": (["hydra.run.dir=/elsewhere"], "sets Hydra itself"),
    "more of Hydra": (["+hydra.job.env_set.PATH=/elsewhere"], "sets Hydra itself"),
    "a launcher": (["hydra/launcher=joblib"], "sets Hydra itself"),
    "without Hydra": (["~hydra.mode"], "sets Hydra itself"),
    "a flag": (["-cn=bench"], "is no key=value"),
    "a folder of YAML": (["--config-dir=/elsewhere"], "is no key=value"),
    "a package": (["+experiment@hydra=ablation"], "is no key=value"),
    "out of conf": (["checkpoint=../../elsewhere/evil"], "leads out of conf/"),
    "out of conf in a list": (["+experiment=[ablation,'../x']"], "leads out of conf/"),
    "brackets": (["+optim.vision.a=" + "[" * 2000], "brackets"),
    "length": (["seed=" + "7" * 10_000], "characters"),
    "another run": (["resume=/elsewhere"], "goes on with another run"),
    "another run with a plus": (["++resume=/elsewhere"], "goes on with another run"),
    "a line of its own": (["seed=7\nerror: all is well"], "has characters that a terminal does not show"),
    "nothing": ([""], "is no key=value"),
}
hostile = pytest.mark.parametrize(("overrides", "why"), HOSTILE.values(), ids=list(HOSTILE))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the module `CANARY` would make when somebody imports it."""
    trace = tmp_path / "was_imported"
    (tmp_path / f"{CANARY}.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CANARY", "a secret of the reader")
    return trace


@pytest.fixture
def received(tmp_path: Path) -> Callable[..., Path]:
    """An unpacked copy of a run that has not finished, with some keys of run.json changed."""

    def receive(overrides: Sequence[str] = (), **changes: Any) -> Path:
        folder = Path(shutil.copytree(RUN, tmp_path / "received"))
        packed = folder / PACKED_INFERENCES
        (folder / INFERENCES_FILE).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
        run = json.loads((folder / RUN_FILE).read_text())
        run["config"]["checkpoint"]["sha256"] = checkpoint_yaml("reference")["sha256"]  # today's weights
        run |= {"finished": False, **changes}
        run["overrides"] = [*run["overrides"], *overrides]
        (folder / RUN_FILE).write_text(json.dumps(run))
        return folder

    return receive


@hostile
def test_a_resume_refuses_what_a_record_may_not_choose(
    overrides: list[str], why: str, received: Callable[..., Path], canary: Path, refusal: Callable[..., str]
) -> None:
    folder = received(overrides)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert why in refusal(f"resume={folder}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not canary.exists()
    assert CANARY not in sys.modules


@hostile
def test_a_replay_refuses_it_too(
    overrides: list[str], why: str, received: Callable[..., Path], canary: Path
) -> None:
    run = read_run_json(received(overrides))
    with pytest.raises((ValueError, HydraException)) as refused:
        build(run, ["denoise.steps=3"], [])
    if not overrides[0].startswith(
        ("policy=", "runner=")
    ):  # a replay takes policies with stages, and no runner
        assert why in str(refused.value)
    assert not canary.exists()


@hostile
def test_jobs_of_a_received_sweep_are_held_to_the_same(
    overrides: list[str], why: str, tmp_path: Path, canary: Path
) -> None:
    job = {"folder": "0_a", "label": "a", "overrides": overrides}
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": [job]}))
    with pytest.raises(ValueError, match=why):
        configure(read_jobs_to_run(tmp_path / SWEEP_FILE)[0].overrides, typed=())
    assert not canary.exists()


@pytest.mark.parametrize("folder", ["../x", "/tmp/x", "..", "", "a/b", ".", "a\x1b[2J", "a\n"])
def test_a_job_of_a_sweep_lies_in_its_folder(folder: str, tmp_path: Path) -> None:
    job = {"folder": folder, "label": "a", "overrides": []}
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": [job]}))
    with pytest.raises(DamagedRecords, match=r"jobs\[0\]: folder must be the name of one in the sweep's"):
        read_job_records(tmp_path / SWEEP_FILE)


def test_two_jobs_of_a_sweep_share_no_folder(tmp_path: Path) -> None:
    job = {"folder": "0_a", "label": "a", "overrides": []}
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": [job, job]}))
    with pytest.raises(DamagedRecords, match=r"jobs\[1\]\.folder: 0_a is that of another job too"):
        read_job_records(tmp_path / SWEEP_FILE)


def test_this_command_line_may_name_what_the_record_may_not() -> None:
    recorded = ["policy=remote", "policy.label=x", "checkpoint.path=${oc.env:HOME}/x"]
    typed = ["policy.url=ws://127.0.0.1:1", "checkpoint.path=/there"]
    kept = repeatable(recorded, typed)
    assert kept == ["policy=remote", "policy.label=x"]
    assert configure([*kept, *typed], typed=typed).checkpoint.path == "/there"


def test_tracking_is_what_this_command_line_says() -> None:
    recorded = [
        *("tracking.mode=online", "+tracking.entity=them", "tracking.tags=['${oc.env:SECRET}']", "seed=8"),
        *("tracking=wandb", "tracking.project=x"),
    ]
    assert repeatable(recorded, []) == ["seed=8"]
    assert repeatable(["tracking=none"], []) == ["tracking=none"]


def test_a_value_of_conf_is_trusted_in_its_own_place() -> None:
    refuse_recorded_targets(compose_run(["policy=native_fp8", "policy.form=full"]), [])
    with pytest.raises(ConfigError, match=r"^runner\.address=auto stands in the record alone"):
        refuse_recorded_targets(compose_run(["runner=ray", "runner.address=auto"]), [])


def test_a_record_gives_a_policy_numbers_and_nothing_else() -> None:
    numbers = [*CUSTOM, "+policy.args.size=3", "+policy.args.scales=[0.5,[1,2e-3]]"]
    assert not any(map(is_argument, numbers))
    assert configure(repeatable(numbers, []), typed=[]).policy.args == {
        "size": 3,
        "scales": [0.5, [1, 0.002]],
    }
    with pytest.raises(ConfigError) as refused:
        configure([*CUSTOM, "+policy.args.path=evil/x", "+policy.args.fast='3'", "seed=8"], typed=["seed=8"])
    assert str(refused.value) == (
        "+policy.args.path=evil/x, +policy.args.fast='3' stand in the record alone, and a record gives a "
        "policy no arguments but numbers: others may name weights or code; if you trust it, name it on this "
        "command line: policy=custom +policy.args.path=evil/x '+policy.args.fast='\"'\"'3'\"'\"''"
    )


def test_an_argument_that_is_typed_replaces_the_records_and_is_not_merged_with_it() -> None:
    recorded = [*CUSTOM, "+policy.args.config={a:evil/x,b:evil/y}", "+policy.args.config.c=evil/z"]
    typed = ["+policy.args.config={a:mine}"]
    with pytest.raises(ConfigError, match=r"^\+policy\.args\.config\.c=evil/z stands in the record alone"):
        configure([*repeatable(recorded, typed), *typed], typed=typed)
    config = configure([*repeatable(recorded[:-1], typed), *typed], typed=typed)
    assert config.policy.args == {"config": {"a": "mine"}}


def test_a_recorded_keyword_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    yaml = "name: mine\n_target_: eval.specs.oracle.OracleSpec\nargs: {guard: strict}\n"
    (tmp_path / "policy" / "mine.yaml").write_text(yaml)
    assert configure(["policy=mine"], typed=[], folders=[tmp_path]).policy.args == {"guard": "strict"}
    with pytest.raises(ConfigError, match=r"^~policy\.args\.guard stands in the record alone"):
        configure(["policy=mine", "~policy.args.guard"], typed=[], folders=[tmp_path])


@pytest.mark.parametrize("name", [RUN_FILE, EPISODES_FILE, INFERENCES_FILE, "videos", "more/below"])
@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_what_is_no_plain_file_is_refused_and_what_it_leads_to_stays(
    name: str, kind: str, received: Callable[..., Path], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    if kind == "hard link" and name not in (EPISODES_FILE, INFERENCES_FILE):
        pytest.skip("is read, or replaced by a new file")
    folder = received()
    precious = tmp_path / "precious"
    path = folder / name
    precious.write_bytes(path.read_bytes() if path.exists() else b"precious\n")
    content = precious.read_bytes()
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "hard link":
        path.hardlink_to(precious)
    else:
        os.mkfifo(path)
    line = refusal(f"resume={folder}", "tracking=none", "runner=local")
    assert {"link": "a link", "pipe": "pipe", "hard link": "2 hard links"}[kind] in line or "missing" in line
    assert str(path) in line or path.name in line
    assert precious.read_bytes() == content


@pytest.mark.parametrize("name", ["0_a", "0_a/job.log", "0_a/videos"])
def test_a_sweep_with_a_link_is_not_gone_on_with(name: str, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    link = sweep / name
    link.parent.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    link.symlink_to(tmp_path / "precious")
    job = {"folder": "0_a", "label": "a", "overrides": []}
    (sweep / SWEEP_FILE).write_text(json.dumps({"jobs": [job]}))
    with pytest.raises(NotPlain, match=f"{name} must be a plain file, got a link"):
        read_jobs_to_run(sweep / SWEEP_FILE)


def test_a_report_replaces_a_link_and_leaves_what_it_led_to(
    received: Callable[..., Path], tmp_path: Path
) -> None:
    folder = received()
    (tmp_path / "precious").write_text("precious")
    (folder / "report.html").symlink_to(tmp_path / "precious")
    assert report.main([str(folder)]) == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert (folder / "report.html").read_text().startswith("<!")
