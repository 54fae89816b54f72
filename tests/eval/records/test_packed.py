"""A run whose inferences `gzip` packed is read as before, and is neither continued nor joined."""

import gzip
from pathlib import Path

import pytest

from eval import merge
from eval.records import foreign
from eval.records.episodes import Episodes
from eval.records.reader import read_run
from eval.records.writer import RunWriter
from tests.eval.written_runs import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = Episodes("libero_spatial", tuple(range(10)), 0, 20, 7).to_dict()
    return write_run(tmp_path / "run", run={"episodes": [plan]})


def pack(folder: Path, content: bytes | None = None) -> Path:
    plain = folder / "inferences.jsonl"
    packed = plain.with_name("inferences.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()) if content is None else content)
    plain.unlink()
    return packed


def test_the_same_records_are_read(folder: Path) -> None:
    before = read_run(folder)
    assert before.inferences
    pack(folder)
    assert read_run(folder) == before


def test_it_is_neither_continued_nor_joined(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = pack(folder)
    with pytest.raises(ValueError, match=r"packed: to continue or join the run, unpack it with gunzip"):
        RunWriter(folder, resume=True)
    assert merge.main([str(folder), "--out", str(folder.parent / "whole")]) == 1
    assert "unpack it with gunzip" in capsys.readouterr().err
    packed.unlink()
    with pytest.raises(FileNotFoundError, match=r"inferences\.jsonl is missing"):
        read_run(folder)


def test_packed_beside_unpacked_is_refused(folder: Path) -> None:
    plain = folder / "inferences.jsonl"
    plain.with_name("inferences.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(foreign.DamagedRecords, match=r"lies beside inferences\.jsonl; keep one"):
        read_run(folder)


@pytest.mark.parametrize("harm", ["text", "cut", "more", "bomb"])
def test_damage_is_named(folder: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip.compress((folder / "inferences.jsonl").read_bytes())
    bomb = gzip.compress(bytes(300_000))
    pack(folder, {"text": b"{}\n", "cut": whole[:-9], "more": whole + b"x", "bomb": bomb}[harm])
    if harm == "bomb":
        monkeypatch.setattr(foreign, "MOST_LINES", 200_000)
    with pytest.raises(foreign.DamagedRecords, match=r"inferences\.jsonl\.gz (is damaged|has more than)"):
        read_run(folder)
