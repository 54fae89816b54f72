"""What a record holds is text on every output: no terminal obeys it, nobody takes it for markup."""

from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from eval.render.console import print_error, print_info
from eval.render.tables import Heading, Items, Sentence, Table, Written, banner, to_console, to_markdown
from policies.text import visible

HOSTILE = "a\x1b[2J\x9b31m\u202eb\x00\n\u2066\x7f\ud800<img src=x onerror=1>![x](http://example.com)|c"
SEEN = r"a\x1b[2J\x9b31m\u202eb\x00\n\u2066\x7f\ud800<img src=x onerror=1>![x](http://example.com)|c"
BLOCKS: list[Any] = [
    Heading(HOSTILE),
    Sentence(HOSTILE),
    Sentence(HOSTILE, strong=True),
    banner(HOSTILE),
    Items([HOSTILE]),
    Table(("column",), [(HOSTILE,)], HOSTILE),
    Table(("column",), [(Text(HOSTILE, style="bold"),)]),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_console_shows_escapes_and_obeys_none(block: Any) -> None:
    console = Console(width=300, force_terminal=False)
    with console.capture() as captured:
        console.print(to_console([block]))
    assert SEEN in captured.get()
    assert not set(captured.get()) & set("\x1b\x9b\u202e\x00\u2066\x7f\ud800")


@pytest.mark.parametrize("block", BLOCKS)
def test_markdown_holds_neither_html_nor_images_nor_control_characters(block: Any) -> None:
    text = to_markdown([block])
    assert r"a\x1b[2J\x9b31m\u202eb\x00\n\u2066\x7f\ud800&lt;img src=x onerror=1>!\[x](http:" in text
    assert "<" not in text
    assert "![" not in text


def test_what_the_project_itself_writes_stays_markdown() -> None:
    assert to_markdown([Sentence(Written("![plot](a.svg) <br>"))]) == "![plot](a.svg) <br>\n"


def test_messages_keep_their_lines_and_escape_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    print_info("two\nlines\x1b[2J")
    print_error(ValueError(f"name {HOSTILE!s}"))
    err = capsys.readouterr().err
    assert err.startswith("two\nlines\\x1b[2J\nerror: name a\\x1b[2J\\x9b31m\\u202eb")
    assert "\x1b" not in err


def test_ordinary_text_is_as_it_was() -> None:
    text = "libero_spatial, 97.2 to 99.9 %, Grüße, 日本語, 👋, a\\b"
    assert visible(text) == text
    assert visible("a\nb\r\x07", lines=True) == "a\nb\\r\\x07"
