"""Cells of a checkpoint's table: all episodes once, every task early; parts become a run and its table."""

import multiprocessing
from pathlib import Path

from eval.records.reader import read_run
from tests.eval.fake_run import plan_of, results, run
from tools.cells import take
from tools.checkpoint_table import merge_suites, plan_cells

NUM_TASKS = {"libero_spatial": 3, "libero_goal": 2}


def test_cells_hold_every_state_once_and_begin_with_every_task() -> None:
    cells = plan_cells(NUM_TASKS, states=12, states_a_cell=5)
    states = [(cell.of, cell.first + i) for cell in cells for i in range(cell.count)]
    assert len(states) == len(set(states)) == 5 * 12
    assert {cell.of for cell in cells[:5]} == {cell.of for cell in cells}
    assert len({cell.folder for cell in cells}) == len(cells)


def test_a_process_keeps_to_its_task_then_helps_where_most_is_left() -> None:
    cells = plan_cells(NUM_TASKS, states=9, states_a_cell=3)
    taken = multiprocessing.get_context("spawn").Array("b", len(cells))
    first = take(cells, taken, None)
    assert first is not None
    own = [take(cells, taken, first.of) for _ in range(2)]
    assert [(cell.of, cell.first) for cell in own if cell] == [(first.of, 3), (first.of, 6)]
    other = take(cells, taken, ("libero_goal", 1))
    assert other is not None
    helped = take(cells, taken, first.of)  # its own is done: not the one that another has begun
    assert helped is not None
    assert helped.of not in (first.of, other.of)
    rest = [take(cells, taken, None) for _ in range(len(cells) - 5)]
    everything = [first, *own, other, helped, *rest]
    assert {cell.folder for cell in everything if cell} == {cell.folder for cell in cells}
    assert take(cells, taken, first.of) is None


def test_parts_become_one_run_and_a_table_by_task(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    for i in (1, 2, 3):
        run(tmp_path / "out" / "parts" / "libero_spatial" / f"task{i}", plan_of(shard=f"{i}/3"))
    text = merge_suites(tmp_path / "out")
    assert results(read_run(tmp_path / "out" / "libero_spatial")) == results(whole)
    assert (tmp_path / "out" / "table.md").read_text() == text
    won = {
        task: sum(bool(e.success) for e in whole.episodes if e.task_id == task)
        for task in {e.task_id for e in whole.episodes}
    }
    rows = text.splitlines()[2:]
    assert len(rows) == len(won) + 1
    for task, row in zip(sorted(won), rows, strict=False):
        assert row.startswith(f"| libero_spatial {task} ")
        assert f"| {won[task]} / 4 |" in row
    assert f"| **libero_spatial** | {sum(won.values())} / 12 |" in rows[-1]
    assert merge_suites(tmp_path / "out") == text  # again, over what is there
