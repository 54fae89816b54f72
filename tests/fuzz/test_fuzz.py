"""Files of others, changed at random: read, or refused in one line; nothing imported, nothing else written.

`python -m tests.fuzz 600` does so for ten minutes; docs/security.md has the count.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, prepare, try_once

EXAMPLES = 25


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target, folder = TARGETS[name], tmp_path / "folder"
    valid = prepare(target, folder)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(st.integers(0, 2**32))
    def fuzz(seed: int) -> None:
        try_once(target, folder, valid, seed)

    fuzz()
