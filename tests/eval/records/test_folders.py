"""Folders of runs below a folder: at any depth, each once, and none below another."""

from pathlib import Path

import pytest

from eval.records.folders import MOST_DEEP, WANDB, find_folders, refuse_full


def is_run(folder: Path) -> bool:
    return (folder / "run").exists()


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "run").touch()
    return folder


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["2026-11-22/10-00_a", "2026-11-23/09-00_a", "sweeps/s/9_a", "sweeps/s/10_a"]
    for name in reversed(names):
        make_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert find_folders(tmp_path, is_run) == [tmp_path / name for name in names]


def test_nothing_is_looked_for_in_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run_1")
    make_run(run / "copy")
    assert find_folders(tmp_path, is_run) == [run]
    assert find_folders(run, is_run) == [run]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "disk" / "run")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "here").symlink_to(elsewhere)
    (outputs / "here_too").symlink_to(elsewhere)
    (outputs / "up").symlink_to(outputs)
    assert find_folders(outputs, is_run) == [outputs / "here"]


def test_folders_too_deep_in_one_another_are_one_line(tmp_path: Path) -> None:
    at = make_run(tmp_path.joinpath(*["a"] * MOST_DEEP))
    assert find_folders(tmp_path, is_run) == [at]
    (at / "run").rename(at / "other")
    make_run(at / "b")
    with pytest.raises(OSError, match=rf"{at / 'b'} lies more than {MOST_DEEP} folders deep; name one "):
        find_folders(tmp_path, is_run)
    assert find_folders(tmp_path / "a", is_run) == [at / "b"]


def test_a_link_in_place_of_a_new_runs_wandb_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / WANDB).mkdir()
    refuse_full(tmp_path)
    (tmp_path / WANDB).rmdir()
    (tmp_path / WANDB).symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="is no new folder: it holds wandb; choose a new one"):
        refuse_full(tmp_path)


def test_what_is_no_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_folders(tmp_path / "nowhere", is_run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no run, nor does any folder below it"):
        find_folders(tmp_path / "empty", is_run)
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        find_folders(tmp_path / "file", is_run)
