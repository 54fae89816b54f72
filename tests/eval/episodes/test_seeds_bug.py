"""The bug this project grew out of, end to end: an engine built for one length of prompt meets another."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import cli
from eval.episodes import capture
from eval.runners import open as open_module
from eval.sim.tasks import Task

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _engines_for_the_first_task_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    complete: Callable[..., Any] = capture.example_requests

    def incomplete(tasks: Sequence[Task], policy: Any, seed: int) -> Any:
        return complete(tasks[:1], policy, seed)

    monkeypatch.setattr(open_module, "example_requests", incomplete)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    """Evaluate two tasks whose prompts differ in length, two inferences each, and return the exit status."""
    words = [
        "checkpoint=random_small",
        "policy.device=cpu",
        "protocol=smoke",
        "suite.tasks=[0,1]",
        "suite.max_steps=6",
        "runner.warmup_inferences=0",
        "tracking=none",
        "optim/prefix=compile",
        f"hydra.run.dir={folder}",
        *overrides,
    ]
    monkeypatch.setattr("sys.argv", ["eval", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.usefixtures("simulator")
def test_another_length_is_an_error_that_names_both_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "run") == 1
    first, second = map(json.loads, (tmp_path / "run" / "episodes.jsonl").read_text().splitlines())
    assert (first["error_type"], second["error_type"]) == (None, "StageMismatch")
    assert (
        "prefix input 2 is (1, 17) int64 on cpu, the engine was built for (1, 23)" in second["error_message"]
    )
    prefix = json.loads((tmp_path / "run" / "run.json").read_text())["engagement"]["prefix"]
    assert (prefix["calls"], prefix["misses"], prefix["refused"]) == (2, 0, 1)
    assert "a backend did not engage: prefix: compile served 2 calls, missed 0 and refused 1" in (
        capsys.readouterr().err.replace("\n", " ")
    )


@pytest.mark.usefixtures("simulator")
def test_with_the_opt_out_eager_serves_it_and_counts_records_and_summary_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "run", "optim.on_mismatch=fallback") == 0
    prefix = json.loads((tmp_path / "run" / "run.json").read_text())["engagement"]["prefix"]
    assert (prefix["calls"], prefix["misses"], prefix["refused"]) == (2, 2, 0)
    lines = (tmp_path / "run" / "inferences.jsonl").read_text().splitlines()
    served = [json.loads(line)["backends"]["prefix"] for line in lines]
    assert served == ["compile", "compile", "eager (fallback)", "eager (fallback)"]
    printed = capsys.readouterr().out
    assert "prefix: 2 calls missed compile" in printed
    assert "prefix by eager" in printed
