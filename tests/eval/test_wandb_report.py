"""The W&B Report: its panels and their names, without the service; and what is said without a login."""

import sys
from typing import Any

import pytest

from eval.wandb_report import build, main

ENTITY = ["--entity", "team"]


@pytest.fixture
def report() -> Any:
    pytest.importorskip("wandb_workspaces.reports.v2")
    return build("2026-11-23_10-00-00", "libero-vla-eval", "team")


def grids(report: Any) -> list[Any]:
    return [block for block in report.blocks if hasattr(block, "panels")]


def test_every_panel_shows_the_runs_of_the_group(report: Any) -> None:
    assert len(grids(report)) == 3
    for grid in grids(report):
        [runs] = grid.runsets
        assert (runs.project, runs.entity) == ("libero-vla-eval", "team")
        assert "2026-11-23_10-00-00" in str(runs.filters)


def test_the_panels_are_built_on_names_that_the_tracker_logs(report: Any) -> None:
    text = repr(report)
    for name in (
        *("summary/success_rate", "summary/success_rate_low", "summary/infer_ms_p50", "summary/infer_ms_p95"),
        *("inference/vision_ms", "inference/prefix_ms", "inference/denoise_ms", "inference/infer_ms"),
        *("episode/success_rate", "episode/video", "episodes", "inference/index", "episode/index"),
    ):
        assert f"'{name}'" in text, name


@pytest.mark.usefixtures("home")
def test_without_a_login_nothing_is_sent_and_the_way_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces.reports.v2")
    assert main(["group", *ENTITY], save=lambda report: pytest.fail("sent")) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "set WANDB_API_KEY or run `wandb login`" in line


def test_without_wandb_workspaces_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["group", *ENTITY]) == 1
    assert 'pip install -c constraints.txt -e ".[report]"' in capsys.readouterr().err


def test_the_address_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces.reports.v2")
    monkeypatch.setattr("eval.wandb_report.require_login", lambda: None)
    assert main(["group", *ENTITY], save=lambda report: "https://wandb.example/r") == 0
    assert capsys.readouterr().out.strip() == "report: https://wandb.example/r"
