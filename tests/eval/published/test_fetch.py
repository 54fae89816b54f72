"""Fetching: what is wanted arrives whole, once, and from one version of the source."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from eval.published import fetch as fetch_module
from eval.published.fetch import (
    PARTIAL,
    Listing,
    Refused,
    fetch,
    list_wanted,
    refuse_too_large,
    write_bytes,
)
from eval.published.sources import (
    RemoteFile,
    Unavailable,
    file_digests,
    open_source,
)
from tests.eval.published.conftest import FILES, Mirror, arrived


def listing(url: str, folder: Path, needed: str = "a/one") -> Listing:
    return list_wanted(open_source(url), folder / "source", folder / "source.json", ("a/*",), (needed,))


CONTENT = b"content"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Fake:
    """Lists a file; gives `content` for it, two bytes at a time, up to where `stop` raises."""

    url = "fake://source"

    def __init__(self, file: RemoteFile, content: bytes = CONTENT) -> None:
        self.file, self.content = file, content
        self.stop: Callable[[int], None] = lambda start: None
        self.starts: list[int] = []

    def list_files(self) -> list[RemoteFile]:
        return [self.file]

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        self.stop(start)
        self.starts.append(start)
        return self.content[start : min(end, start + 2)]

    def listing(self, folder: Path) -> Listing:
        return list_wanted(self, folder / "source", folder / "source.json", ("*",), ())


def interrupt_at(start: int) -> Callable[[int], None]:
    def stop(here: int) -> None:
        if here == start:
            raise KeyboardInterrupt

    return stop


def test_wanted_files_arrive_and_others_do_not(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror(FILES)
    listed = listing(url, tmp_path)
    assert listed.missing_bytes == 2501
    assert arrived(tmp_path) == {}  # listing fetches nothing
    fetch(open_source(url), listed)
    assert arrived(tmp_path) == {"a/one": FILES["a/one"], "a/two": FILES["a/two"]}
    assert listing(url, tmp_path).missing == []


def test_a_download_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    source.stop = interrupt_at(4)
    with pytest.raises(KeyboardInterrupt):
        fetch(source, source.listing(tmp_path))
    assert arrived(tmp_path) == {f"file{PARTIAL}": b"cont"}
    source.stop = interrupt_at(-1)
    listed = source.listing(tmp_path)
    assert listed.missing_bytes == 3
    fetch(source, listed)
    assert arrived(tmp_path) == {"file": CONTENT}
    assert source.starts == [0, 2, 4, 6]


def test_without_a_published_hash_a_download_that_broke_off_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Fake(RemoteFile("file", 7, ""))
    source.stop = interrupt_at(4)
    with pytest.raises(KeyboardInterrupt):
        fetch(source, source.listing(tmp_path))
    (tmp_path / "source" / f"file{PARTIAL}").write_bytes(b"XXXX")  # what a loss of power may leave
    source.stop = interrupt_at(-1)
    listed = source.listing(tmp_path)
    assert listed.missing_bytes == 7
    fetch(source, listed)
    assert arrived(tmp_path) == {"file": CONTENT}
    said = capsys.readouterr().err
    assert "fake://source publishes no hash of 1 file (file): size alone can be checked" in said
    record = json.loads((tmp_path / "source.json").read_text())
    assert record["checked"]["file"]["sha256"] == SHA256


def test_a_damaged_part_does_not_get_the_files_name(tmp_path: Path) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    source.stop = interrupt_at(4)
    with pytest.raises(KeyboardInterrupt):
        fetch(source, source.listing(tmp_path))
    (tmp_path / "source" / f"file{PARTIAL}").write_bytes(b"XXXX")
    source.stop = interrupt_at(-1)
    with pytest.raises(Refused, match=r"file arrived damaged, with sha256:.* instead of sha256:"):
        fetch(source, source.listing(tmp_path))
    assert arrived(tmp_path) == {}
    fetch(source, source.listing(tmp_path))
    assert arrived(tmp_path) == {"file": CONTENT}


def test_a_part_of_another_version_is_dropped(tmp_path: Path) -> None:
    old, new = Fake(RemoteFile("file", 7, "1", SHA256)), Fake(RemoteFile("file", 7, "2", SHA256))
    old.content = b"CONTENT"
    old.stop = interrupt_at(6)
    with pytest.raises(KeyboardInterrupt):
        fetch(old, old.listing(tmp_path))
    fetch(new, new.listing(tmp_path))
    assert arrived(tmp_path) == {"file": CONTENT}


@pytest.mark.parametrize("step", ["hash", "rename"])
def test_a_file_whose_check_was_interrupted_is_checked_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    listed, rename = source.listing(tmp_path), Path.replace

    def interrupt(path: Path, argument: object) -> Path:
        if step == "rename" and path.suffix != PARTIAL:
            return rename(path, str(argument))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "hash":
            patched.setattr(fetch_module, "file_digests", interrupt)
        else:
            patched.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(source, listed)
    partial = tmp_path / "source" / f"file{PARTIAL}"
    assert partial.is_file()
    partial.write_bytes(b"damaged")
    listed = source.listing(tmp_path)
    assert listed.missing == [source.file]
    with pytest.raises(Refused, match="file arrived damaged"):
        fetch(source, listed)


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    rename = Path.replace
    monkeypatch.setattr(fetch_module, "sync", lambda path: events.append(f"sync {path.name}"))

    def replace_path(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name}")
        return rename(path, target)

    source = Fake(RemoteFile("file", 7, "", SHA256))
    listed = source.listing(tmp_path)
    monkeypatch.setattr(Path, "replace", replace_path)
    fetch(source, listed)
    of_the_file = [event for event in events if not event.endswith(".tmp")]
    assert of_the_file == [*["sync file.partial"] * 4, "rename file.partial", "sync source"]


@pytest.mark.parametrize("digest", [None, SHA256])
def test_a_file_of_the_right_size_that_nobody_checked_is_not_trusted(
    tmp_path: Path, digest: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Fake(RemoteFile("file", 7, "", digest))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"damaged")
    listed = source.listing(tmp_path)
    assert listed.missing == [source.file]
    assert "is not known to be what fake://source holds: it is fetched again" in capsys.readouterr().err
    fetch(source, listed)
    assert arrived(tmp_path) == {"file": CONTENT}


def test_a_file_that_was_written_to_since_it_was_checked_is_fetched_again(tmp_path: Path) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    fetch(source, source.listing(tmp_path))
    path = tmp_path / "source" / "file"
    os.utime(path, (1, 1))
    assert source.listing(tmp_path).missing == []  # touched, and hashed again
    path.write_bytes(b"damaged")
    assert source.listing(tmp_path).missing == [source.file]


@pytest.mark.parametrize("content", [b"", b"ten bytes!"])
def test_a_source_that_gives_another_size_than_it_lists_is_one_line(tmp_path: Path, content: bytes) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    source.read = lambda file, start, end: content  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=rf"file gave {len(content)} of 7 bytes at 0 of 7"):
        fetch(source, source.listing(tmp_path))


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


@pytest.mark.parametrize("algorithm", ["sha256", "crc32c", "git-sha1"])
def test_a_file_that_arrives_damaged_is_refused_and_removed(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "other").write_bytes(b"damaged")
    digest = file_digests(tmp_path / "other", [algorithm])[algorithm]
    source = Fake(RemoteFile("file", 7, "", digest))
    with pytest.raises(Refused, match=f"file arrived damaged, with {algorithm}:.* instead of {algorithm}:"):
        fetch(source, source.listing(tmp_path))
    assert arrived(tmp_path) == {}
    source.content = b"damaged"
    fetch(source, source.listing(tmp_path))
    assert arrived(tmp_path) == {"file": b"damaged"}


OUTSIDE = ["a/../../file", "..", "/etc/file", "//file", "", ".", "a\0b"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_files_outside_of_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused, match="fake://source lists files outside of itself: "):
        Fake(RemoteFile(path, 7, "")).listing(tmp_path)
    assert not (tmp_path / "source.json").exists()


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_record_of_files_outside_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    source = Fake(RemoteFile("file", 7, "", SHA256))
    fetch(source, source.listing(tmp_path))
    record = tmp_path / "source.json"
    content = json.loads(record.read_text())
    content["files"][0]["path"] = path
    record.write_text(json.dumps(content))
    with pytest.raises(Refused, match="lists files outside of itself"):
        source.listing(tmp_path)


def test_a_copy_that_was_only_touched_is_the_same_and_one_of_the_same_size_is_not(tmp_path: Path) -> None:
    source, folder = tmp_path / "copy", tmp_path / "p"
    source.mkdir()
    (source / "file").write_bytes(CONTENT)
    for in_place, place in ((True, source), (False, folder / "source")):
        record = folder / f"{in_place}.json"

        def again(place: Path = place, record: Path = record, in_place: bool = in_place) -> Listing:
            client = open_source(f"file://{source}")
            listed = list_wanted(client, place, record, ("*",), (), in_place=in_place)
            fetch(client, listed)
            return listed

        again()
        (folder / "run").mkdir(exist_ok=True)
        os.utime(source / "file", (1, 1))
        assert again().missing == []
        (source / "file").write_bytes(b"CONTENT")
        with pytest.raises(Refused, match=r"has changed since .* \(file\); give another --folder"):
            again()
        assert (source / "file").read_bytes() == b"CONTENT"
        (source / "file").write_bytes(CONTENT)


def test_a_copy_that_is_being_written_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"cont")
    source, record = Fake(RemoteFile("file", 7, "")), tmp_path / "source.json"
    with pytest.raises(Refused, match="file has 4 bytes, listed are 7; is it being written"):
        list_wanted(source, tmp_path, record, ("*",), (), in_place=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_hash_tells_a_new_content_where_the_tag_does_not(tmp_path: Path) -> None:
    source = Fake(RemoteFile("file", 7, "tag", SHA256))
    fetch(source, source.listing(tmp_path))
    file = source.file
    source.file = replace(file, etag="another")
    assert source.listing(tmp_path).missing == []
    source.file = replace(file, digest=f"sha256:{'0' * 64}")
    with pytest.raises(Refused, match="has changed since"):
        source.listing(tmp_path)


def test_a_disk_without_room_is_refused_with_the_sizes(tmp_path: Path) -> None:
    files = (RemoteFile("one", 10**18, ""), RemoteFile("two", 1, ""))
    with pytest.raises(Refused) as refused:
        refuse_too_large([Listing("fake://", tmp_path, tmp_path / "r.json", files)], tmp_path, 10**9)
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
