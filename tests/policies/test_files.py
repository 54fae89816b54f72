"""A file or folder appears whole or not at all, what a killed process left goes; JSON is read or refused."""

import argparse
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from policies.files import (
    MAX_DEPTH,
    NotPlain,
    expand_home,
    new_folder,
    path_argument,
    read_json,
    write_atomic,
)


def fill_and_wait(path: Path) -> None:
    """Begin to fill a folder, and never end."""
    with new_folder(path) as temporary:
        (temporary / "begun").touch()
        time.sleep(60)


def begin(path: Path) -> tuple[multiprocessing.process.BaseProcess, Path]:
    """A process that fills the folder, and where."""
    process = multiprocessing.get_context("spawn").Process(target=fill_and_wait, args=(path,))
    process.start()
    while not (begun := list(path.parent.glob(".new.*.tmp/begun"))):
        assert process.is_alive()
        time.sleep(0.01)
    return process, begun[0].parent


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "new"
    process, left = begin(path)
    try:
        with new_folder(path) as temporary:
            (temporary / "file").touch()
        assert left.is_dir()  # its process lives
        (path / "file").unlink()
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert left.is_dir()
    kept = tmp_path / ".newer.0123abcd.tmp"
    kept.mkdir()
    with new_folder(path) as temporary:
        (temporary / "file").touch()
    assert sorted(found.name for found in tmp_path.iterdir()) == [kept.name, "new"]


def test_a_durable_folder_is_flushed_with_all_in_it_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []

    def record(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        flushed.append((name.split(".")[-1] if name.startswith(".") else name, (tmp_path / "new").exists()))

    monkeypatch.setattr("os.fsync", record)
    with new_folder(tmp_path / "new", durable=True) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").touch()
    assert sorted(flushed[:-1]) == [("file", False), ("inner", False), ("tmp", False)]
    assert flushed[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 10**5])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_json_that_nests_too_deep_is_refused_in_one_line(
    tmp_path: Path, depth: int, opening: str, closing: str
) -> None:
    path = tmp_path / "deep.json"
    path.write_text(f"{opening * depth}1{closing * depth}")
    with pytest.raises(
        ValueError, match=r"deep\.json must not nest .* deeper than 100; it is damaged"
    ) as refused:
        read_json(path)
    assert "\n" not in str(refused.value)


def test_json_may_nest_as_deep_as_any_program_writes_it(tmp_path: Path) -> None:
    content: object = 1
    for _ in range(MAX_DEPTH):
        content = [content]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json") == content


def test_json_is_read_through_a_link_up_to_its_size_and_from_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blob").write_text("[1, 2]")
    named = tmp_path / "config.json"
    named.symlink_to("blob")
    assert read_json(named) == [1, 2]
    monkeypatch.setattr("policies.files.MOST_JSON", 5)
    with pytest.raises(ValueError, match=r"config\.json must have at most 5 bytes, got 6$"):
        read_json(named)
    (tmp_path / "blob").unlink()
    os.mkfifo(tmp_path / "blob")
    with pytest.raises(NotPlain, match=r"config\.json must be a plain file, got a pipe; "):
        read_json(named)
    named.unlink()
    named.symlink_to("/dev/zero")
    with pytest.raises(NotPlain, match=r"config\.json must be a plain file, got a device; "):
        read_json(named)
    named.unlink()
    named.symlink_to("config.json")
    with pytest.raises(OSError, match=r"config\.json must be a plain file, got a link"):
        read_json(named)


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_what_is_no_file_is_not_replaced_by_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    before = os.lstat(path)
    with pytest.raises(NotPlain, match=r"report\.md must be the name of a file to write, got a "):
        write_atomic(path, "text")
    assert os.path.samestat(os.lstat(path), before)
    assert [left.name for left in tmp_path.iterdir()] == ["report.md"]


def test_the_home_of_nobody_is_refused_by_the_path() -> None:
    assert expand_home("~/weights") == Path.home() / "weights"
    with pytest.raises(
        FileNotFoundError, match=r"'~no.such.user/weights' begins with the home of a user who is not"
    ):
        expand_home("~no.such.user/weights")


def test_a_path_with_a_nul_is_none() -> None:
    with pytest.raises(ValueError, match=r"^'a\\x00b' cannot be a path: it holds a NUL$"):
        expand_home("a\0b")


def test_a_path_of_a_command_line_has_a_home_and_is_not_empty(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=path_argument)
    assert parser.parse_args(["--out=~/x"]).out == Path.home() / "x"
    for text, why in {
        "": "must be a path, got ''",
        "~no.such.user/x": "begins with the home of a user",
    }.items():
        with pytest.raises(SystemExit):
            parser.parse_args([f"--out={text}"])
        assert why in capsys.readouterr().err
