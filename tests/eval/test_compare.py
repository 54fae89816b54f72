"""The command that compares two runs: exit statuses, what is printed where, and what is refused."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eval.compare import main
from eval.records.writer import RunWriter

WriteRun = Callable[..., Path]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit status and what --json printed."""
    status = main([*map(str, arguments), "--json"])
    printed = capsys.readouterr().out
    return status, json.loads(printed, parse_constant=pytest.fail) if printed else {}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return str(line)


def test_the_status_is_0_only_for_what_is_shown_at_the_margin(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", count=100), write_run("new", count=100)
    status, result = outcome(capsys, base, new)
    assert (status, result["verdict"], result["passed"]) == (1, "not shown", False)
    status, result = outcome(capsys, base, new, "--margin", "4")
    assert (status, result["verdict"], result["passed"]) == (0, "non-inferior", True)


def test_the_status_is_1_for_a_damaged_policy_and_for_a_backend_that_missed(
    write_run: WriteRun, run_json: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base, worse = write_run("base"), write_run("worse", failures=range(40))
    status, result = outcome(capsys, base, worse)
    assert (status, result["verdict"], result["engaged"]) == (1, "inferior", True)
    missed = {**run_json["engagement"], "denoise": {"backend": "cuda_graph", "calls": 199, "misses": 1}}
    status, result = outcome(capsys, base, write_run("missed", run={"engagement": missed}))
    assert (status, result["verdict"], result["engaged"]) == (1, "non-inferior", False)


def test_json_holds_the_numbers_and_text_the_verdict(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", failures=[7]), write_run("new", failures=[7, *range(20, 60)])
    _, result = outcome(capsys, base, new)
    assert result["counts"] == {"both": 159, "lost": 40, "won": 0, "neither": 1}
    assert result["left_out"] == {"base_alone": 0, "new_alone": 0, "raised": 0}
    assert list(result["latency"]) == ["vision", "prefix", "denoise", "around the stages", "host to host"]
    assert len(result["lost"]) == 40
    assert main([str(base), str(new)]) == 1
    assert "INFERIOR: NEW loses more than 2 points of success" in capsys.readouterr().out


def test_a_report_is_written_beside_what_is_printed(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "reports" / "x.md"
    assert outcome(capsys, write_run("base"), write_run("new"), "--markdown", report)[0] == 0
    whole = report.read_text()
    assert "**NON-INFERIOR: NEW loses less than 2 points of success" in whole
    with pytest.MonkeyPatch.context() as full_disk:
        full_disk.setattr(Path, "write_bytes", _write_a_part)
        arguments = [str(tmp_path / "base"), str(tmp_path / "new"), "--markdown", str(report)]
        assert main(arguments) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert report.read_text() == whole


def _write_a_part(path: Path, content: bytes) -> int:
    with path.open("wb") as file:
        file.write(content[:10])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "seeding of the two runs must be the same, got paired and openpi"
    base, new = write_run("base", count=2), write_run("new", count=2, seeding="openpi")
    assert refusal(capsys, base, new) == f"error: {reason}"


def test_folders_without_records_or_with_damaged_ones_are_refused(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_run("base", count=2)
    assert "holds no records" in refusal(capsys, base, tmp_path / "nowhere")
    RunWriter(tmp_path / "empty").close()
    assert "NEW: the run holds no episode records" in refusal(capsys, base, tmp_path / "empty")
    broken = write_run("broken", count=2)
    (broken / "episodes.jsonl").write_text("{}\n")
    assert "BASE: " in refusal(capsys, broken, base)


@pytest.mark.parametrize("margin", ["0", "-1", "100", "nan", "two"])
def test_a_margin_that_means_nothing_is_refused(margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["base", "new", f"--margin={margin}"])
    assert stop.value.code == 64
    assert "--margin" in capsys.readouterr().err


def test_a_wrong_command_line_and_runs_that_cannot_be_compared_have_statuses_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(["base"])
    assert (wrong.value.code, main([str(tmp_path), str(tmp_path)])) == (64, 2)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 when the runs cannot be read or compared, 64 when the command line is wrong" in said


def test_the_sequential_test_is_read_beside_the_verdict_and_alone_judges_a_run_that_it_ended(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", count=300), write_run("new", count=300)
    assert outcome(capsys, base, new)[1]["sequential"] is None
    status, result = outcome(capsys, base, new, "--sequential")
    test = result["sequential"]
    assert (status, test["decision"], test["pairs"], test["stopped"]) == (0, "non-inferior", 206, False)
    assert main([str(base), str(new), "--sequential"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "SEQUENTIAL: NON-INFERIOR: NEW loses less than 2 points of success, decided after 206" in printed
    assert "NON-INFERIOR: NEW loses less than 2 points of success (95 % interval" in printed
    stop = {"decision": "undecided", "margin": 2.0, "pairs": 195, "planned": 300}
    stopped = write_run("stopped", count=195, run={"stop": stop})  # 189 would do, had it been fixed
    status, result = outcome(capsys, base, stopped)
    assert (result["verdict"], result["sequential"]["decision"]) == ("non-inferior", "undecided")
    assert (status, result["sequential"]["stopped"]) == (1, True)
    main([str(base), str(stopped)])
    assert "not to be read, since NEW was to stop by its outcome" in " ".join(capsys.readouterr().out.split())


def cases(file: Path) -> dict[str, str | None]:
    """The tests of a JUnit file, with why each failed; its counts are those of the tests."""
    [suite] = ElementTree.parse(file).getroot()
    tests = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(tests)
    for kind in ("failure", "error"):
        assert int(suite.attrib[f"{kind}s"]) == sum(test.find(kind) is not None for test in tests)
    return {test.attrib["name"]: next((bad.attrib["message"] for bad in test), None) for test in tests}


def test_a_junit_file_has_what_the_status_is_of(
    tmp_path: Path, write_run: WriteRun, run_json: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base, file = write_run("base"), tmp_path / "new folder" / "junit.xml"
    missed = {**run_json["engagement"], "denoise": {"backend": "a\x1b<b>", "calls": 199, "misses": 1}}
    new = write_run("new", failures=range(40), run={"engagement": missed})
    shown = "NEW loses less than 2 points of success"
    engaged = [f"{name}: every backend served every call" for name in ("BASE", "NEW")]
    assert main([str(base), str(base), "--junit", str(file)]) == 0
    assert cases(file) == dict.fromkeys([shown, *engaged])
    assert main([str(base), str(new), "--junit", str(file)]) == 1
    failed = cases(file)
    assert failed[shown] == "inferior: of 200 pairs NEW lost 40 and won 0"
    assert failed[engaged[0]] is None
    assert str(failed[engaged[1]]).startswith("denoise: 1 calls missed a\\x1b<b>; ")
    [output] = ElementTree.parse(file).getroot().iter("system-out")
    assert "| vision" in str(output.text)  # the whole comparison, in Markdown
    (new / "run.json").write_text("{")
    assert main([str(base), str(new), "--junit", str(file)]) == 2
    [(name, why)] = cases(file).items()
    assert name == "BASE and NEW can be compared"
    assert str(why).startswith(f"NEW: {new / 'run.json'}")
    assert "error: " in capsys.readouterr().err
