"""Evaluation from Python: in a training loop, in a notebook, with callbacks and a run of W&B's."""

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from nbclient import NotebookClient
from omegaconf import OmegaConf

from eval import compare
from eval.api import Evaluation, evaluate, load_policy
from eval.config.schema import ConfigError
from eval.records.reader import read_run
from eval.records.schema import EpisodeRecord
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from policies.files import ROOT

SHORT = ("suite.max_steps=6", "suite.tasks=[3]", "protocol.episodes=2")

pytestmark = pytest.mark.sim


class Still:
    """A policy that stands still, and keeps what it was asked."""

    cameras: tuple[str, ...] = ()
    needs_privileged = False
    replan_steps = 3

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        self.calls += len(requests)
        return [ActionChunk(np.zeros((3, 7))) for _ in requests]

    def provenance(self) -> dict[str, Any]:
        return {}

    def engagement(self) -> dict[str, Any]:
        return {}


class FakeWandbRun:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int | None]] = []

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.logged.append((data, step))


def test_a_training_loop_evaluates_and_keeps_its_own_global_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loop is a Hydra program with resolvers, a configuration and random generators of its own."""
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("repo", lambda path: f"of the loop: {path}", replace=True)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "loop.yaml").write_text("data: ${repo:images}\nrate: 3\n")
    policy, wandb_run, seen = Still(), FakeWandbRun(), list[EpisodeRecord]()
    with initialize_config_dir(config_dir=str(tmp_path / "conf"), version_base="1.3"):
        np.random.seed(3), random.seed(4), torch.manual_seed(5)
        expected = np.random.rand(), random.random(), torch.rand(1)
        np.random.seed(3), random.seed(4), torch.manual_seed(5)
        runs = []
        for step in (100, 200):
            run = evaluate(
                policy,
                *SHORT,
                folder=tmp_path / f"step{step}",
                name="still",
                on_episode=seen.append,
                progress=False,
                wandb_run=wandb_run,
                step=step,
            )
            runs.append(run)
        assert (np.random.rand(), random.random(), torch.rand(1)) == expected
        assert compose("loop").data == "of the loop: images"
    GlobalHydra.instance().clear()
    assert policy.calls == 2 * 2 * 2
    assert [record.key.episode for record in seen] == [0, 1, 0, 1]
    assert [asdict(e) for e in runs[0].records.episodes] == [asdict(e) for e in seen[:2]]
    assert [step for _, step in wandb_run.logged] == [100, 200]
    metrics = wandb_run.logged[0][0]
    assert metrics["eval/libero_spatial/success_rate"] == 0.0
    assert metrics["eval/libero_spatial/finished"] == 2
    assert runs[1].success.finished == 2
    assert runs[1].latency is not None
    comparison = runs[1].compare(runs[0])
    assert comparison.counts.n == 2
    assert (
        compare.main([str(tmp_path / "step100"), str(tmp_path / "step200")]) == 1
    )  # 2 episodes show nothing
    assert str(comparison) == capsys.readouterr().out
    assert "2 pairs could show a margin" in str(comparison)
    assert "still" in runs[1].report(runs[0], out=tmp_path / "page.html").read_text()
    assert "libero_spatial" in str(runs[1])
    assert Evaluation.read(tmp_path / "step100").records == runs[0].records


def test_what_a_callback_raises_ends_the_run_and_keeps_its_records(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(record: EpisodeRecord) -> None:
        raise Enough

    with pytest.raises(Enough):
        evaluate(Still(), *SHORT, folder=tmp_path / "run", on_episode=stop, progress=False)
    run = read_run(tmp_path / "run")
    assert len(run.episodes) == 1
    assert run.run["finished"] is False


def test_pandas_has_a_row_an_episode_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluate(Still(), *SHORT, folder=tmp_path / "run", progress=False)
    monkeypatch.setattr("eval.api.find_spec", lambda name: None)
    assert run.episodes == list(run.records.episodes)
    monkeypatch.setattr("eval.api.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("a frame of", rows)))
    what, rows = run.episodes
    assert what == "a frame of"
    assert [(row["episode"], row["success"]) for row in rows] == [(0, False), (1, False)]


def test_a_policy_of_the_configuration_is_loaded_once_and_evaluated_as_itself(tmp_path: Path) -> None:
    policy = load_policy("baseline", "checkpoint=random_small", "policy.device=cpu", "denoise.steps=1")
    [chunk] = policy.infer([_request(policy.policy.cameras)])
    assert chunk.actions_HJ.shape == (10, 7)
    by_object = evaluate(policy, *SHORT, folder=tmp_path / "object", progress=False)
    assert by_object.records.run["config"]["policy"]["_target_"] == "eval.specs.pi05.Pi05Spec"
    assert by_object.records.run["config"]["checkpoint"]["name"] == "random_small"
    by_name = evaluate("baseline", *policy.overrides[1:], *SHORT, folder=tmp_path / "name", progress=False)
    assert [e.actions_sha256 for e in by_name.records.episodes] == [
        e.actions_sha256 for e in by_object.records.episodes
    ]
    assert by_name.summary.random_weights


class OnSecondGpu(Still):
    """Chooses GPU 1 when it is built, as `policy.device=cuda:1` does, and acts where it was built."""

    def __init__(self) -> None:
        super().__init__()
        torch.cuda.set_device(1)

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        assert torch.cuda.current_device() == 1
        return super().infer(requests)


@pytest.fixture
def current_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch's current GPU, of two, as the last of a list."""
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_policy_on_another_gpu_acts_there_and_leaves_the_current_one(
    tmp_path: Path, current_gpu: list[int]
) -> None:
    target = f"policy._target_={__name__}.OnSecondGpu"
    policy = load_policy("custom", target)
    assert current_gpu == [0, 1, 0]
    policy.infer([_request(())])
    assert current_gpu == [0, 1, 0, 1, 0]
    assert evaluate(policy, *SHORT, folder=tmp_path / "object", progress=False).success.errors == 0
    assert current_gpu[5:] == [1, 0]
    assert evaluate("custom", target, *SHORT, folder=tmp_path / "name", progress=False).success.errors == 0
    assert current_gpu[7:] == [1, 0]
    current_gpu.append(1)
    policy.infer([_request(())])
    assert current_gpu[-1] == 1


def test_backends_are_built_for_every_task_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def example_requests(tasks: Sequence[Any], policy: Any, seed: int) -> None:
        raise Seen([task.task_id for task in tasks])

    monkeypatch.setattr("eval.api.example_requests", example_requests)
    backend = "optim.prefix._target_=tests.eval.runners.ray.test_serving.Batches"
    with pytest.raises(Seen) as seen:
        load_policy("baseline", "checkpoint=random_small", "policy.device=cpu", backend, suite="libero_goal")
    assert seen.value.args == (list(range(10)),)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=random_small"], "the policy is an object and stays as it is"),
        (["+policy.args.size=3"], "the policy is an object and stays as it is"),
        (["denoise.steps=3"], "the policy is an object and stays as it is"),
        (["runner=ray"], "runner=ray builds policies in processes of its own"),
        (["suite.tasks=[99]"], "suite.tasks must be 0 to 9"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_done_is_refused(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        evaluate(Still(), *overrides, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_records_is_not_written_over(tmp_path: Path) -> None:
    evaluate(Still(), *SHORT, folder=tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "episodes.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="already holds records"):
        evaluate(Still(), *SHORT, folder=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "episodes.jsonl").read_bytes() == before


NOTEBOOK = [
    """
import sys
sys.path.append({root!r})
import numpy as np
from eval.api import evaluate
from policies.base import ActionChunk

class Still:
    cameras, needs_privileged, replan_steps = ("agentview_image",), False, 3
    def infer(self, requests):
        return [ActionChunk(np.zeros((3, 7))) for _ in requests]
    def provenance(self):
        return {{}}
    def engagement(self):
        return {{}}
""",
    "run = evaluate(Still(), *{short!r}, folder='run')",
    "about = run.records.run['policy']; print(run.success.finished, about['target'], about['source_sha256'])",
]


def test_a_notebook_evaluates_a_class_that_it_defines_and_shows_progress(tmp_path: Path) -> None:
    cells = [
        nbformat.v4.new_code_cell(cell.format(root=str(ROOT), short=SHORT) if "{" in cell else cell)
        for cell in NOTEBOOK
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "2 __main__.Still None" in notebook.cells[2].outputs[0].text
    shown = [str(output.get("text", output.get("data", ""))) for output in notebook.cells[1].outputs]
    assert "episodes 2/2" in "".join(shown)
    assert len(read_run(tmp_path / "run").episodes) == 2


def _request(cameras: Sequence[str]) -> Request:
    images = {name: np.zeros((256, 256, 3), np.uint8) for name in cameras}
    return Request(Observation(images, np.zeros(8), "go"), EpisodeKey("libero_spatial", 0, 0, 7), 0)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (["resume=run"], {}, "resume=run is not read here; a run is resumed by the command line"),
        (["hydra.run.dir=x"], {}, "hydra.run.dir=x is not read here; give folder=PATH as a keyword"),
        (["tracking.mode=online"], {}, "tracking.mode=online is not read here; give wandb_run=RUN"),
        (["suite=libero_goal"], {}, "suite=libero_goal is not read here; give suite=NAME as a keyword"),
        ([{"seed": 8}], {}, "an override must be text like 'seed=8', got {'seed': 8}"),
        (["sede=3"], {}, "unknown key sede; did you mean seed?"),
        ([], {"protocol": "smokee"}, "protocol must be one of full, official, plus, quick, smoke, got"),
    ],
)
def test_what_evaluate_does_not_take_is_one_line(
    arguments: list[Any], keywords: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluate(Still(), *arguments, folder=tmp_path / "run", **keywords)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (
            "oracle",
            "resume=/nowhere",
            "resume=/nowhere is not read here; a run is resumed by the command line",
        ),
        ("oracle", "suite=libero_10", "suite=libero_10 is not read here; give suite=NAME as a keyword"),
        ("oracle", "protocol=full", "protocol=full is not read here"),
        *(
            ("oracle", text, f"{text} is not read here; it makes a run and no policy")
            for text in (
                *("tracking=wandb", "tracking.mode=online", "runner=ray", "runner.workers=2", "video=all"),
                *("hydra.run.dir=x", "shard=1/2", "against=/x", "stop=decided", "margin=3"),
                "record_observations=1",
            )
        ),
        ("oracle", "bogus", "an override must be text like 'seed=8', got 'bogus'"),
        ("oracle", 5, "an override must be text like 'seed=8', got 5"),
        ("oracle", None, "an override must be text like 'seed=8', got None"),
    ],
)
def test_what_load_policy_does_not_take_is_one_line(name: str, override: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_policy(name, override)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("oracle", "policy=baseline", "policy=baseline is not read here; the policy's name is the first"),
        (
            "custom",
            "policy=oracle",
            "policy=oracle is not read here; the policy's name is the first argument",
        ),
        ("oracle", "policy._target_=a.B", "policy._target_=a.B is not read here; policy=oracle has its own"),
    ],
)
def test_a_policy_that_has_a_name_is_no_other(name: str, override: str, message: str, tmp_path: Path) -> None:
    for start in (load_policy, partial(evaluate, folder=tmp_path / "run")):
        with pytest.raises(ConfigError) as refused:
            start(name, override)
        assert str(refused.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_class_in_place_of_an_object_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^policy must be an object, got the class Still: Still\(\)$"):
        evaluate(Still)  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^policy must be one of auto, baseline, .*, got 'baselin'$"):
        load_policy("baselin")
