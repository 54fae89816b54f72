"""A bucket of Google's and the Hugging Face hub, as far as their clients ask, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


class Handler(BaseHTTPRequestHandler):
    """Answers for one server; subclasses know its paths."""

    files: Mapping[str, bytes]
    seen: list[str]  # method, path and range of each request

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.seen.append(" ".join([self.command, unquote(url.path), self.headers.get("Range", "")]).strip())
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.answer(unquote(url.path), query)

    def answer(self, path: str, query: Mapping[str, str]) -> None:
        raise NotImplementedError

    def send(self, content: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            total = len(content)
            content = content[int(first) : int(last) + 1 if last else None]
            status = 206
            headers = {**(headers or {}), "Content-Range": f"bytes {first}-{last}/{total}"}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_object(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)


class Bucket(Handler):
    """The JSON interface of Google's storage, for one bucket `b`."""

    def answer(self, path: str, query: Mapping[str, str]) -> None:
        if path.endswith("/b/b/o"):
            prefix = query.get("prefix", "")
            names = sorted(name for name in self.files if name.startswith(prefix))
            return self.send_object({"items": [self._item(name) for name in names]})
        name = path.partition("/o/")[2]
        if name not in self.files:
            return self.send_object({"error": {"code": 404, "message": "no such object"}}, 404)
        if "/download/" in path or query.get("alt") == "media":
            return self.send(self.files[name])
        return self.send_object(self._item(name))

    def _item(self, name: str) -> dict[str, str]:
        from google_crc32c import Checksum

        content = self.files[name]
        crc32c = base64.b64encode(Checksum(content).digest()).decode()
        return {"bucket": "b", "name": name, "size": str(len(content)), "etag": crc32c, "crc32c": crc32c}


class Hub(Handler):
    """The hub, for one model `o/m` whose `*.safetensors` are large files."""

    def answer(self, path: str, query: Mapping[str, str]) -> None:
        if path.startswith("/api/models/o/m"):
            siblings = [self._sibling(name) for name in sorted(self.files)]
            return self.send_object({"_id": "1", "id": "o/m", "sha": COMMIT, "siblings": siblings})
        name = path.removeprefix(f"/o/m/resolve/{COMMIT}/")
        if name not in self.files:
            return self.send_object({"error": "not found"}, 404)
        content = self.files[name]
        etag = hashlib.sha256(content).hexdigest()
        return self.send(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        blob = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
        sibling = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return sibling


class Pages(Handler):
    """A plain web server, whose folder `copy/` is a page of links; it tells no hash."""

    def answer(self, path: str, query: Mapping[str, str]) -> None:
        if path == "/copy/":
            return self.send("".join(f'<a href="{name}">{name}</a>' for name in self.files).encode())
        if path.removeprefix("/copy/") not in self.files:
            return self.send(b"not found", status=404)
        return self.send(self.files[path.removeprefix("/copy/")], {"Accept-Ranges": "bytes"})


@contextmanager
def serving(kind: type[Handler], files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve files; yield the server's address, and the requests as they come."""
    seen: list[str] = []
    handler = type(kind.__name__, (kind,), {"files": files, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
