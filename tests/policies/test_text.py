"""A message names a few things and says how many more there are."""

from pathlib import Path

import pytest

from policies.pi05.checkpoint_files import find_weights
from policies.text import SHOWN, shorten


def test_up_to_ten_names_are_all_shown_and_of_more_the_first_ten() -> None:
    assert shorten([]) == ""
    assert shorten(range(SHOWN)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shorten(range(SHOWN + 2), "; ") == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9 and 2 more"


def test_a_folder_of_many_files_that_is_no_checkpoint_is_named_in_a_short_line(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i:03}.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"the folder has 000\.txt, .*, 009\.txt and 290 more; save"):
        find_weights(tmp_path)


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder has nothing in it; save"):
        find_weights(tmp_path)
