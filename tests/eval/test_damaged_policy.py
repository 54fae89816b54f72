"""A policy that was damaged, end to end: real episodes with both, and what eval.compare says of them."""

import json
from pathlib import Path

import pytest

from eval import cli
from eval.compare import main

FP8_PREFIX = "optim.prefix._target_=tests.optim.fp8_on_cpu.Fp8OnCpu"


def evaluate(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    """Roll one episode of each of two tasks, shortened, with the reference weights."""
    words = [
        "checkpoint=reference",
        "policy.device=cpu",
        "policy.precision=float32",
        "denoise.steps=1",
        "protocol=smoke",
        "suite.tasks=[0,3]",
        "suite.max_steps=100",
        "runner.warmup_inferences=0",
        "tracking=none",
        f"hydra.run.dir={folder}",
        *overrides,
    ]
    monkeypatch.setattr("sys.argv", ["eval", *words])
    cli.main()


@pytest.mark.sim
@pytest.mark.usefixtures("simulator")
def test_fp8_that_is_scaled_back_by_twice_its_scale_is_inferior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = tmp_path / "base", tmp_path / "new"
    evaluate(monkeypatch, base)
    evaluate(monkeypatch, new, FP8_PREFIX, "+optim.prefix.disagreement=2")
    capsys.readouterr()
    assert main([str(base), str(new), "--json"]) == 1
    recorded = json.loads(capsys.readouterr().out)
    assert recorded["verdict"] == "inferior"
    assert recorded["counts"] == {"both": 0, "lost": 2, "won": 0, "neither": 0}
    [prefix] = [stage for stage in recorded["new"]["engagement"] if stage["stage"] == "prefix"]
    assert (prefix["backend"], prefix["misses"]) == ("fp8_on_cpu", 0)
