"""A message names a few things and says how many more there are; a printed command means what it says."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from policies.pi05.checkpoint_files import find_weights
from policies.text import SHOWN, brief, crop, distinct, quoted, shell_command, shell_override, shorten


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


def test_a_printed_command_runs_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = tmp_path / "my env=1" / "python"
    strange.parent.mkdir()
    strange.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(strange))
    command = shell_command("this", "a=1")
    assert subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert shlex.split(command) == [str(strange), "-m", "this", "a=1"]
    monkeypatch.setenv("PATH", str(strange.parent))
    assert shell_command("this") == "python -m this"
    other = tmp_path / "other"
    other.mkdir()
    (other / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(other))
    assert shell_command("this") == f"{shlex.quote(str(strange))} -m this"


def test_a_value_in_a_message_is_one_short_line() -> None:
    assert brief("a text") == "a text"
    assert brief("two\nlines") == '"two\\nlines"'
    assert brief("\ud800") == '"\\ud800"'
    assert brief({"a": [1.5, None]}) == '{"a": [1.5, null]}'
    assert brief(10**4000) == f"1{'0' * 99}..."


TEXTS = [
    *(
        "/data/weights",
        "tokenizer.model",
        "openpi/pi05",
        "main",
        "null",
        "2026_11",
        "1e5",
        "true",
        "NaN",
        "inf",
    ),
    *("/data/my weights", "a,b", "it's", "'", '"', "a=b", "~/x", "$HOME", "${oc.env:HOME}", "`id`", "; id"),
    *(
        "back\\slash",
        "ends in \\",
        "\\'",
        "\\${x}",
        "(a)",
        "[1]",
        "{a: 1}",
        "é",
        "",
        " ",
        "-/x",
        "#",
        "two\nlines",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_printed_override_reaches_the_configuration_as_it_is(text: str) -> None:
    [word] = shlex.split(shell_override("checkpoint.path", text))
    for override in (word, quoted("checkpoint.path", text)):
        [parsed] = OverridesParser.create().parse_overrides([override])
        assert not parsed.is_sweep_override()
        value = parsed.value()
        assert OmegaConf.create({"path": getattr(value, "text", value)}).path == text


def test_an_ordinary_path_is_printed_as_it_is() -> None:
    assert shell_override("checkpoint.path", "/data/a-b_1/last.d") == "checkpoint.path=/data/a-b_1/last.d"


def test_words_that_all_texts_share_at_their_ends_are_left_out() -> None:
    texts = [
        "pick up the bowl on the plate",
        "pick up the bowl next to it on the plate",
        "pick up the cup on the plate",
    ]
    assert distinct(texts) == ["bowl", "bowl next to it", "cup"]
    assert distinct(["the same", "the same"]) == ["same", "same"]  # a word is left
    assert distinct(["a b", "a b c", "a b d"]) == ["b", "b c", "b d"]
    assert distinct(["only one"]) == ["only one"]
    assert distinct([]) == []


def test_a_long_text_loses_its_middle() -> None:
    assert crop("abcdefghij", 10) == "abcdefghij"
    assert crop("abcdefghijk", 10) == "abcd..hijk"
    assert len(crop("x" * 100, 33)) == 33
