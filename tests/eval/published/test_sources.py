"""Sources: a bucket, the hub and other servers are listed and read as they are, or named in one line."""

from pathlib import Path

import pytest

from eval.published import fetch as fetch_module
from eval.published.fetch import fetch, list_wanted
from eval.published.sources import (
    FsspecSource,
    HubSource,
    Unavailable,
    connect_bucket,
    file_digests,
    open_source,
    refuse_unreachable,
)
from tests.eval.published.conftest import FILES, Mirror, arrived
from tests.eval.published.servers import COMMIT, Bucket, Hub, Pages, serving


def test_a_server_that_does_not_answer_is_named() -> None:
    with serving(Hub, {}) as (url, _):
        refuse_unreachable(f"{url}/nothing")  # an error is an answer
    with pytest.raises(Unavailable, match=f"{url} cannot be reached"):
        refuse_unreachable(url)


@pytest.mark.parametrize("url", ["nothing://x", "memory://nowhere", "hf://o/m", "http://127.0.0.1:9/x/"])
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
    monkeypatch.setattr(fetch_module, "BLOCK", 1000)
    with serving(Bucket, {f"folder/{name}": content for name, content in FILES.items()}) as (url, seen):
        source = FsspecSource("gs://b/folder", lambda name: connect_bucket(name, url), url)
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("a/*",), ())
        fetch(source, listed)
    assert arrived(tmp_path) == {"a/one": FILES["a/one"], "a/two": FILES["a/two"]}
    crc32c = file_digests(tmp_path / "source" / "a/one", ["crc32c"])
    assert listed.files[0].digest == crc32c["crc32c"]
    assert [
        line.rpartition("=")[2] for line in seen if line.endswith(tuple("0123456789")) and "a/one" in line
    ] == [
        "0-999",
        "1000-1999",
        "2000-2499",
    ]


def test_a_folder_of_a_web_server_ends_with_a_slash(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    files = {"one": b"1" * 2500, "two": b"2"}
    with serving(Pages, files) as (url, _):
        source = open_source(f"{url}/copy/")
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("*",), ())
        assert [(file.path, file.size, file.digest) for file in listed.files] == [
            ("one", 2500, None),
            ("two", 1, None),
        ]
        fetch(source, listed)
    assert arrived(tmp_path) == files


def test_the_hub_is_asked_for_one_commit_in_blocks_and_each_file_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "BLOCK", 1000)
    files = {"config.json": b"{}", "model.safetensors": b"1" * 2500, "README.md": b"#"}
    with serving(Hub, files) as (url, seen):
        source = HubSource("hf://o/m", url)
        wanted = ("config.json", "*.safetensors")
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", wanted, wanted)
        fetch(source, listed)
    assert [(tmp_path / "source" / name).read_bytes() for name in wanted[:1]] == [b"{}"]
    for file, algorithm in zip(listed.files, ("git-sha1", "sha256"), strict=True):
        assert file.digest == file_digests(tmp_path / "source" / file.path, [algorithm])[algorithm]
    assert [line.rpartition("=")[2] for line in seen if line.startswith("GET") and "safetensors" in line] == [
        "0-999",
        "1000-1999",
        "2000-2499",
    ]
    assert not any("README" in line for line in seen)


def test_a_hub_that_breaks_off_is_one_line_and_what_arrived_is_kept(tmp_path: Path) -> None:
    files = {"model.safetensors": b"1" * 2500}
    with serving(Hub, files) as (url, _):
        source = HubSource("hf://o/m", url)
        listed = list_wanted(source, tmp_path / "source", tmp_path / "source.json", ("*",), ())
        listed.partial(listed.files[0]).parent.mkdir()
        listed.partial(listed.files[0]).write_bytes(b"1" * 2000)
        assert listed.missing_bytes == 500
    with pytest.raises(Unavailable, match=r"hf://o/m: model\.safetensors broke off: ") as broken:
        fetch(source, listed)
    assert len(str(broken.value).splitlines()) == 1
    with serving(Hub, files) as (url, seen):
        source = HubSource("hf://o/m", url)
        assert tuple(source.list_files()) == listed.files
        fetch(source, listed)
        assert [line for line in seen if "resolve" in line] == [
            f"GET /o/m/resolve/{COMMIT}/model.safetensors bytes=2000-2499"
        ]
    assert arrived(tmp_path) == files
