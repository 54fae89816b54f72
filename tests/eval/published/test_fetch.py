"""Fetching: what is wanted arrives whole, once, and from one version of the source."""

from pathlib import Path

import fsspec
import pytest

from eval.published import sources
from eval.published.fetch import Listing, Refused, fetch, list_wanted, refuse_too_large, write_bytes
from eval.published.sources import (
    PARTIAL,
    Advance,
    FsspecSource,
    HubSource,
    RemoteFile,
    Unavailable,
    connect_bucket,
    file_digest,
    open_source,
    refuse_unreachable,
)
from tests.eval.published.conftest import Mirror
from tests.eval.published.servers import Bucket, Hub, serving

FILES = {"a/one": b"1" * 2500, "a/two": b"2", "b/three": b"333"}


def listing(url: str, folder: Path, needed: str = "a/one") -> Listing:
    return list_wanted(open_source(url), folder / "source", folder / "source.json", ("a/*",), (needed,))


def arrived(folder: Path) -> dict[str, bytes]:
    source = folder / "source"
    paths = [path for path in source.rglob("*") if path.is_file()]
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}


class Damaged:
    """Lists a file with the SHA-256 of another content, or a size that does not arrive."""

    url = "fake://damaged"

    def __init__(self, file: RemoteFile) -> None:
        self.file = file

    def list_files(self) -> list[RemoteFile]:
        return [self.file]

    def download(self, file: RemoteFile, folder: Path, advance: Advance) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(b"content")


def test_wanted_files_arrive_and_others_do_not(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror(FILES)
    listed = listing(url, tmp_path)
    assert listed.missing_bytes == 2501
    assert arrived(tmp_path) == {}  # listing fetches nothing
    fetch(open_source(url), listed)
    assert arrived(tmp_path) == {"a/one": FILES["a/one"], "a/two": FILES["a/two"]}
    assert listing(url, tmp_path).missing == []


def test_a_download_that_broke_off_goes_on_where_it_was(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror(FILES)
    listed = listing(url, tmp_path)
    partial = tmp_path / "source" / f"a/one{PARTIAL}"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 2400)
    assert listed.missing_bytes == 101
    fetch(open_source(url), listed)
    assert arrived(tmp_path)["a/one"] == b"x" * 2400 + b"1" * 100


def test_a_source_that_changed_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror(FILES)
    fetch(open_source(url), listing(url, tmp_path))
    mirror({"a/two": b"22"})
    with pytest.raises(Refused, match=r"has changed since .* \(a/two\); give another --folder"):
        listing(url, tmp_path)


def test_a_folder_of_another_source_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror(FILES)
    fetch(open_source(url), listing(url, tmp_path))
    with pytest.raises(Refused, match="was filled from memory://mirror, not from memory://mirror/a"):
        list_wanted(
            open_source("memory://mirror/a"), tmp_path / "source", tmp_path / "source.json", ("*",), ()
        )


def test_a_folder_that_was_never_filled_takes_any_source(mirror: Mirror, tmp_path: Path) -> None:
    listing(mirror(FILES), tmp_path)
    everything = ("*",)
    again = list_wanted(
        open_source("memory://mirror/a"), tmp_path / "source", tmp_path / "source.json", everything, ()
    )
    assert [file.path for file in again.files] == ["one", "two"]


def test_a_source_without_a_needed_file_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"lacks a/four; it holds a/one, a/two, b/three"):
        listing(mirror(FILES), tmp_path, "a/four")


def test_what_is_here_already_needs_no_server(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = mirror(FILES)
    fetch(open_source(url), listing(url, tmp_path))
    fsspec.filesystem("memory").rm("/mirror", recursive=True)
    assert listing(url, tmp_path).missing == []
    assert "all 2 files of memory://mirror are here already" in capsys.readouterr().err
    (tmp_path / "source" / "a/two").unlink()
    with pytest.raises(Unavailable, match="memory://mirror cannot be listed"):
        listing(url, tmp_path)


@pytest.mark.parametrize(
    ("size", "digest", "problem"),
    [(7, f"sha256:{'0' * 64}", "instead of sha256:000"), (8, None, "7 bytes instead of 8")],
)
def test_a_file_that_arrives_damaged_is_refused_and_removed(
    tmp_path: Path, size: int, digest: str | None, problem: str
) -> None:
    source = Damaged(RemoteFile("file", size, "", digest))
    listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("*",), ())
    with pytest.raises(Refused, match=f"file arrived damaged, with .*{problem}"):
        fetch(source, listed)
    assert arrived(tmp_path) == {}


def test_files_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    source = Damaged(RemoteFile("a/../../file", 7, ""))
    with pytest.raises(Refused, match=r"lists files outside of itself: a/\.\./\.\./file"):
        list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("*",), ())


def test_a_disk_without_room_is_refused_with_the_sizes(tmp_path: Path) -> None:
    files = (RemoteFile("one", 10**18, ""), RemoteFile("two", 1, ""))
    with pytest.raises(Refused) as refused:
        refuse_too_large([Listing("fake://", tmp_path, files)], tmp_path, 10**9)
    said = str(refused.value)
    assert said.startswith(
        f"2 files, 1000000000.0 GB to fetch into {tmp_path}, 1.0 GB more to convert them, but"
    )
    assert said.endswith("are free; give --folder on a larger disk")


def test_bytes_are_written_as_disks_count_them() -> None:
    assert [write_bytes(n) for n in (12, 7_800, 4_264_023, 13_400_000_000)] == [
        "12 B",
        "7.8 kB",
        "4.3 MB",
        "13.4 GB",
    ]


def test_a_damaged_record_is_one_line(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source.json").write_text('{"files": 3}')
    with pytest.raises(Refused, match=r"source\.json is damaged .*; give another --folder"):
        listing(mirror(FILES), tmp_path)


def test_a_server_that_does_not_answer_is_named() -> None:
    with serving(Hub, {}) as (url, _):
        refuse_unreachable(f"{url}/nothing")  # an error is an answer
    with pytest.raises(Unavailable, match=f"{url} cannot be reached"):
        refuse_unreachable(url)


@pytest.mark.parametrize("url", ["nothing://x", "memory://nowhere", "hf://o/m"])
def test_a_source_that_cannot_be_listed_is_one_line(url: str) -> None:
    source = HubSource(url, "http://127.0.0.1:9") if url.startswith("hf:") else open_source(url)
    with pytest.raises(Unavailable) as refused:
        source.list_files()
    assert len(str(refused.value).splitlines()) == 1


def test_a_single_file_is_a_source_too(mirror: Mirror, tmp_path: Path) -> None:
    mirror(FILES)
    source = open_source("memory://mirror/a/one")
    listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("*",), ("*",))
    fetch(source, listed)
    assert arrived(tmp_path) == {"one": FILES["a/one"]}
    assert listed.paths == [tmp_path / "source" / "one"]


def test_a_bucket_is_read_without_an_account_and_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gcsfs")
    monkeypatch.setattr(sources, "BLOCK", 1000)
    with serving(Bucket, {f"folder/{name}": content for name, content in FILES.items()}) as (url, seen):
        source = FsspecSource("gs://b/folder", lambda name: connect_bucket(name, url), url)
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("a/*",), ())
        fetch(source, listed)
    assert arrived(tmp_path) == {"a/one": FILES["a/one"], "a/two": FILES["a/two"]}
    assert listed.files[0].digest == file_digest(tmp_path / "source" / "a/one", "crc32c")
    assert [
        line.rpartition("=")[2] for line in seen if line.endswith(tuple("0123456789")) and "a/one" in line
    ] == [
        "0-999",
        "1000-1999",
        "2000-2499",
    ]


def test_the_hub_is_asked_for_one_commit_and_the_hash_is_checked(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"1" * 2500, "README.md": b"#"}
    with serving(Hub, files) as (url, seen):
        source = HubSource("hf://o/m", url)
        wanted = ("config.json", "*.safetensors")
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", wanted, wanted)
        fetch(source, listed)
    assert [(tmp_path / "source" / name).read_bytes() for name in wanted[:1]] == [b"{}"]
    weights = tmp_path / "source" / "model.safetensors"
    assert listed.files[1].digest == file_digest(weights, "sha256")
    assert not any("README" in line for line in seen)
