"""Where files lie that are to be fetched: buckets and mirrors through fsspec, the hub through its own client.

Non-obvious behaviors:
    * A short request goes to a server first: without a network gcsfs alone would try for more than a minute,
      and fsspec finds an empty page of links on a web server that does not answer.
    * The hub's files are read block by block, not by `hf_hub_download`: that begins a broken-off file anew,
      and moves one to its name before anybody has hashed it (huggingface_hub 2.4).
"""

import base64
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from policies.files import expand_home, real_path

TIMEOUT_S = 10.0
BLOCK = 64 * 2**20  # bytes that one request asks for
GOOGLE = "https://storage.googleapis.com"
BUCKET, HUB, WEB = "gs://", "hf://", ("http://", "https://")
SHA256, CRC32C, GIT = "sha256", "crc32c", "git-sha1"  # algorithms of `RemoteFile.digest`

Connect = Callable[[str], tuple[Any, str]]
"""Opens the file system of a URL; returns it with the path."""


class Unavailable(ValueError):
    """A server cannot be reached or does not have it; the message is one readable line."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as a server lists it."""

    path: str  # below the source, with slashes
    size: int
    etag: str  # the same one: the same content
    digest: str | None = None  # `sha256:<hex>`, `crc32c:<base64>` or `git-sha1:<hex>`, where the server tells


class Source(Protocol):
    """Files that can be listed and read."""

    url: str

    def list_files(self) -> list[RemoteFile]:
        """List all files; Unavailable where the server does not answer, or has no such place."""

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Read bytes `start` to `end` of a listed file; Unavailable where the server does not give them."""


def open_source(url: str) -> Source:
    """Choose the client: the hub's for hf://, fsspec's for all others; a path is a folder here."""
    if url.startswith(HUB):
        return HubSource(url)
    if url.startswith(BUCKET):
        return FsspecSource(url, connect_bucket, GOOGLE)
    if url.startswith(WEB):
        return FsspecSource(url, server=url)
    return FsspecSource(url if "://" in url else f"file://{real_path(expand_home(url))}")


def connect_any(url: str) -> tuple[Any, str]:
    """Open any file system that fsspec knows, with its own defaults."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url)
    return fs, path


def connect_bucket(url: str, endpoint: str | None = None) -> tuple[Any, str]:
    """Open a public bucket of Google's, without an account.

    Not by fsspec's registry: the class there asks for the bucket's kind over gRPC, for a minute where that
    is not allowed (gcsfs 2026.10).
    """
    from gcsfs.core import GCSFileSystem

    return GCSFileSystem(token="anon", endpoint_url=endpoint), url.removeprefix(BUCKET)


def local_folder(url: str) -> Path | None:
    """The folder of a source that lies on this machine, which needs no fetching; None for another."""
    return None if "://" in url else expand_home(url).absolute()


class FsspecSource:
    """A folder, or a single file, of any file system that fsspec knows.

    A folder of a web server ends with a slash: its page of links is a file for fsspec.

    Args:
        connect: opens the file system, and names the path in it.
        server: asked whether it can be reached, before anything is listed.
    """

    def __init__(self, url: str, connect: Connect | None = None, server: str | None = None) -> None:
        self.url = url
        self._connect, self._server = connect or connect_any, server
        self._opened: tuple[Any, str] | None = None
        self._is_file = False

    def list_files(self) -> list[RemoteFile]:
        if self._server is not None:
            refuse_unreachable(self._server)
        fs, root = self._open()
        try:
            if not self.url.endswith("/"):
                info = fs.info(root)
                self._is_file = info["type"] == "file"
                if self._is_file:
                    return [_remote(root.rpartition("/")[2], info)]
            listed = fs.find(f"{root}/" if self.url.endswith("/") else root, detail=True)
            for path, info in listed.items():
                if info.get("size") is None:  # a page of links tells no sizes
                    listed[path] = fs.info(path)
        except Exception as error:
            raise Unavailable(f"{self.url} cannot be listed: {_reason(error)}") from error
        return [
            _remote(path[len(root) :].lstrip("/"), info)
            for path, info in sorted(listed.items())
            if not path.endswith("/")  # a bucket's stand-in for a folder
        ]

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        fs, root = self._open()
        try:
            content: bytes = fs.cat_file(
                root if self._is_file else f"{root}/{file.path}", start=start, end=end
            )
        except Exception as error:
            raise Unavailable(f"{self.url}: {file.path} broke off: {_reason(error)}") from error
        return content

    def _open(self) -> tuple[Any, str]:
        """The file system and the path in it, connected once."""
        if self._opened is None:
            try:
                fs, root = self._connect(self.url)
            except (ImportError, ValueError) as error:
                raise Unavailable(
                    f"{self.url} cannot be opened: {_reason(error)}; gs:// needs pip install '.[published]'"
                ) from error
            self._opened = fs, root.rstrip("/")
        return self._opened


class HubSource:
    """A model of the Hugging Face hub, at the commit that its main branch has when it is listed."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self.url = url
        self._endpoint = endpoint
        self._id = url.removeprefix(HUB)
        self._commit: str | None = None

    def list_files(self) -> list[RemoteFile]:
        from huggingface_hub import HfApi, constants

        refuse_unreachable(self._endpoint or constants.ENDPOINT)
        try:
            info = HfApi(self._endpoint).model_info(self._id, files_metadata=True, timeout=TIMEOUT_S)
        except Exception as error:
            raise Unavailable(f"{self.url} cannot be listed: {_reason(error)}") from error
        self._commit = info.sha
        return [
            RemoteFile(
                file.rfilename,
                file.size or 0,
                str(file.blob_id),
                f"{SHA256}:{file.lfs.sha256}" if file.lfs else f"{GIT}:{file.blob_id}",
            )
            for file in info.siblings or ()
        ]

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self._id, file.path, revision=self._commit, endpoint=self._endpoint)
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        try:
            answer = get_session().get(url, headers=headers, timeout=TIMEOUT_S)
            answer.raise_for_status()
        except Exception as error:
            raise Unavailable(f"{self.url}: {file.path} broke off: {_reason(error)}") from error
        return bytes(answer.content)


def refuse_unreachable(server: str) -> None:
    """Raise Unavailable unless a server answers, with whatever status."""
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        raise Unavailable(f"{server} cannot be reached: {_reason(error)}") from error


def file_digests(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Hash a file once for all algorithms, as servers write it: `sha256:<hex>`, `crc32c:<base64>`."""
    with path.open("rb") as file:
        return digests(iter(lambda: file.read(BLOCK), b""), path.stat().st_size, algorithms)


def digests(blocks: Iterable[bytes], size: int, algorithms: Iterable[str]) -> dict[str, str]:
    """Hash `size` bytes that come in blocks: algorithm to digest, as in `RemoteFile.digest`."""
    hashes = {algorithm: _new_hash(algorithm, size) for algorithm in algorithms}
    for block in blocks:
        for content_hash in hashes.values():
            content_hash.update(block)
    return {algorithm: f"{algorithm}:{_written(algorithm, each)}" for algorithm, each in hashes.items()}


def _new_hash(algorithm: str, size: int) -> Any:
    if algorithm == CRC32C:
        from google_crc32c import Checksum  # comes with gcsfs

        return Checksum()
    if algorithm == GIT:  # what git hashes of a file, and the hub where it is a small one
        return hashlib.sha1(b"blob %d\0" % size)
    return hashlib.new(algorithm)


def _written(algorithm: str, content_hash: Any) -> str:
    return (
        base64.b64encode(content_hash.digest()).decode() if algorithm == CRC32C else content_hash.hexdigest()
    )


def _remote(path: str, info: dict[str, Any]) -> RemoteFile:
    """A file of fsspec's; the file systems name what tells a content from another in their own ways."""
    etag = next((info[key] for key in ("etag", "ETag", "mtime", "created") if key in info), "")
    crc32c = info.get("crc32c")
    return RemoteFile(path, int(info["size"]), str(etag), f"{CRC32C}:{crc32c}" if crc32c else None)


def _reason(error: BaseException) -> str:
    """The first line of an error, or its class where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
