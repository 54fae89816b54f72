"""The table of docs/sensitivity.md is what the tool prints."""

from policies.files import ROOT
from tools.power_table import HARMS, PROTOCOLS, row

PAGE = (ROOT / "docs" / "sensitivity.md").read_text()


def test_rows_of_the_page_are_the_tools() -> None:
    assert row(*PROTOCOLS[0], HARMS[0]) in PAGE
    assert row(*PROTOCOLS[2], HARMS[4]) in PAGE
    assert sum(line.startswith("| ") and " %, " in line for line in PAGE.splitlines()) == 21
