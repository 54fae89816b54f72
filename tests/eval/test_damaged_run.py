"""A damaged field is one line with file, line and field, whatever command reads it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import compare, summary
from eval.records import foreign
from eval.records.folders import EPISODES_FILE, INFERENCES_FILE, RUN_FILE
from eval.records.foreign import DamagedRecords
from eval.records.reader import read_run
from eval.records.run_json import FORMAT
from eval.report import cli as report

EPISODE_FIELDS = {
    "success": ("yes", "Input should be a valid boolean, got 'yes'"),
    "steps": (-5, "Input should be greater than or equal to 0, got -5"),
    "wall_s": (None, "Input should be a valid number, got None"),
    "task_id": ([1], "Input should be a valid integer, got [1]"),
    "seed": (2**65, "Input should be less than or equal to"),
    "episode": ("0", "Input should be a valid integer, got '0'"),
    "suite": ("../../etc", "suite must be letters, digits and _.- alone, got '../../etc'"),
    "inferences": (1.5, "Input should be a valid integer, got 1.5"),
    "new": (1, "Unexpected keyword argument, got 1"),
}
INFERENCE_FIELDS = {
    "infer_ms": (True, "Input should be a valid number, got True"),
    "batch": (0, "Input should be greater than or equal to 1, got 0"),
    "stage_ms": ({"vision": "4"}, "Input should be a valid number, got '4'"),
    "backends": ({"vision": 4}, "Input should be a valid string, got 4"),
    "warmup": (0, "Input should be a valid boolean, got 0"),
}
RUN_FIELDS: dict[str, tuple[Any, str]] = {
    "notes": (None, "notes: Input should be a valid list, got None"),
    "engagement": (5, "engagement: Input should be a valid dictionary, got 5"),
    "config": ([], "config: Input should be a valid dictionary, got []"),
    "planned_episodes": ("all", "planned_episodes: Input should be a valid integer, got 'all'"),
    "finished": ("yes", "finished: Input should be a valid boolean, got 'yes'"),
    "provenance": ({"git": []}, "provenance.git: Input should be a valid dictionary, got []"),
    "policy": ({"dtype": "float32"}, "policy has a dtype, and must have device, form, denoise_steps, replan"),
    "episodes": ([{"suite": 1}], "episodes[0].suite: Input should be a valid string, got 1"),
    "format": ("2", "format must be a whole number from 1, got '2'"),
}


@pytest.fixture
def folder(write_run: Callable[..., Path]) -> Path:
    return write_run("run", count=3)


def _line(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that summary, comparison and report print."""
    lines = set()
    for command in (
        lambda: summary.main([str(folder)]),
        lambda: compare.main([str(folder), str(folder)]),
        lambda: report.main([str(folder)]),
    ):
        assert command() != 0
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        lines.add(line.replace("error: BASE: ", "error: "))
    (line,) = lines
    return line


@pytest.mark.parametrize(
    ("name", "field", "value", "why"),
    [(EPISODES_FILE, field, *damage) for field, damage in EPISODE_FIELDS.items()]
    + [(INFERENCES_FILE, field, *damage) for field, damage in INFERENCE_FIELDS.items()],
)
def test_a_damaged_field_of_a_line_is_named(
    name: str, field: str, value: Any, why: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {field: value})
    (folder / name).write_text("\n".join(lines) + "\n")
    line = _line(folder, capsys)
    assert line.startswith(f"error: {folder / name}:2: corrupt: {field}" if field != "suite" else "error: ")
    assert why in line


@pytest.mark.parametrize(("field", "value", "why"), [(f, *damage) for f, damage in RUN_FIELDS.items()])
def test_a_damaged_field_of_run_json_is_named(
    field: str, value: Any, why: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps(run | {field: value}))
    assert f"error: {folder / RUN_FILE} is damaged: {why}" in _line(folder, capsys)


def test_a_tree_that_is_no_id_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((folder / RUN_FILE).read_text())
    run["provenance"]["trees"] = {"conf": "zz"}
    (folder / RUN_FILE).write_text(json.dumps(run))
    line = _line(folder, capsys)
    assert "is damaged: provenance.trees.conf: " in line
    assert line.endswith("got 'zz'")


def test_a_newer_version_is_refused_by_its_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((folder / RUN_FILE).read_text())
    assert run["format"] == FORMAT
    (folder / RUN_FILE).write_text(json.dumps(run | {"format": FORMAT + 1, "engagement": "of another type"}))
    assert f": format {FORMAT + 1} is newer than {FORMAT}, the newest that this" in _line(folder, capsys)


def test_a_key_that_nobody_knows_is_a_warning(folder: Path) -> None:
    run = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps(run | {"b": 1, "a": 2}))
    assert "run.json has keys that this version does not know: a, b" in read_run(folder).warnings


@pytest.mark.parametrize("name", [RUN_FILE, EPISODES_FILE, INFERENCES_FILE])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "a link"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "a link"),
        (os.mkfifo, "a pipe"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    name: str, make: Callable[[Path], None], kind: str, folder: Path
) -> None:
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises((DamagedRecords, FileNotFoundError), match=f"{kind}|is missing"):
        read_run(folder)


def test_a_line_and_a_file_have_a_longest_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / EPISODES_FILE).write_text('{"suite": "' + "a" * 2**21 + '"}\n')
    with pytest.raises(DamagedRecords, match=r"episodes\.jsonl:1: corrupt: a line must have at most 1048576"):
        read_run(folder)
    monkeypatch.setattr(foreign, "MOST_LINES", 2**20)
    with pytest.raises(DamagedRecords, match=r"episodes\.jsonl must have at most 1048576 bytes, got 2097"):
        read_run(folder)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": 1e999}', '{"a": NaN}', '{"a": "\\ud800"}', "", "[]"]
)
def test_run_json_that_is_no_json_object_is_one_line(
    content: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / RUN_FILE).write_text(content)
    assert _line(folder, capsys).startswith(f"error: {folder / RUN_FILE} is ")
