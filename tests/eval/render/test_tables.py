"""Blocks on a console and in Markdown: the same cells, each in its own form."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from eval.render.console import print_words
from eval.render.tables import (
    LINE,
    Block,
    Heading,
    Items,
    Sentence,
    Table,
    part_groups,
    percent_interval,
    to_console,
    to_markdown,
)

STAGES = Table(
    ("policy", "stage", "ms"),
    [("a|b", "vision", "1.00"), ("a|b", "prefix", "2.00"), LINE, ("[red]c", "vision", Text("3.00", "bold"))],
    caption="Latency",
    texts=2,
    blank_repeats=True,
)


def printed(*blocks: Block, width: int = 80, terminal: bool = False) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal).print(to_console(blocks))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_console_blanks_repeated_first_cells_and_draws_the_lines_between_groups() -> None:
    title, _, head, rule, *rows = printed(STAGES)
    assert (title, head.split()) == ("Latency", ["policy", "stage", "ms"])
    assert set(rule.strip()) == {"─"}
    assert [row.split() for row in rows] == [
        ["a|b", "vision", "1.00"],
        ["prefix", "2.00"],
        [],
        ["[red]c", "vision", "3.00"],
        [],
    ]


def test_texts_are_on_the_left_and_numbers_on_the_right_and_whole_on_a_narrow_console() -> None:
    table = Table(("name", "long number"), [("a name that is too long", "1"), ("b", "123456")])
    lines = printed(table, width=26)
    assert any(line.endswith("         1") for line in lines)
    assert any(line.endswith("123456") and line.startswith(" b ") for line in lines)


def test_markdown_has_every_cell_and_escapes_bars() -> None:
    assert STAGES.markdown() == [
        "Latency:",
        "",
        "| policy | stage | ms |",
        "| --- | --- | ---: |",
        r"| a\|b | vision | 1.00 |",
        r"| a\|b | prefix | 2.00 |",
        "| [red]c | vision | 3.00 |",
    ]
    assert Table(("n", "m", "why"), [], last_is_text=True).markdown()[1] == "| --- | ---: | --- |"


def test_blocks_of_a_document_are_apart_and_empty_ones_are_not_there() -> None:
    blocks = [
        Heading("Title", 2),
        Sentence("Passed", strong=True, style="green"),
        Items([]),
        Items(["one", "[two]"], style="yellow"),
        Table(("n",), [("1",)]),
    ]
    assert to_markdown(blocks) == "## Title\n\n**Passed**\n\n- one\n- [two]\n\n| n |\n| --- |\n| 1 |\n"
    assert printed(*blocks)[:4] == ["Title", "Passed", "one", "[two]"]
    assert printed(blocks[1], terminal=True) == ["\x1b[1;32mPassed\x1b[0m"]


def test_a_line_parts_rows_whose_first_cells_differ() -> None:
    rows = [("a", "1"), ("a", "2"), ("b", "3")]
    assert list(part_groups(rows)) == [("a", "1"), ("a", "2"), LINE, ("b", "3")]


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.9721, 0.9993, "97.2 to 99.9 %"), (0, 1, "0.0 to 100.0 %"), (None, None, "-")]
)
def test_an_interval_of_success_is_in_percent(low: float | None, high: float | None, text: str) -> None:
    assert percent_interval(low, high) == text


def test_a_sentence_on_a_terminal_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(terminal: bool) -> list[str]:
        for name in ("FORCE_COLOR", "NO_COLOR", "CI", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        if terminal:
            monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", "20")
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        print_words("nine episodes of libero_spatial")
        return [line.rstrip() for line in out.getvalue().splitlines()]

    assert shown(terminal=True) == ["nine episodes of", "libero_spatial"]
    assert shown(terminal=False) == ["nine episodes of libero_spatial"]
