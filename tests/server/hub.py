"""A small hub on loopback: what huggingface_hub asks of huggingface.co, and the ways in which it goes wrong.

Repositories are folders. Large files answer as on the real hub: metadata at `/resolve/`, which redirects to an address
of storage with ranges, where no token is wanted. `python -m tests.server.hub ADDRESS PORT ORG/NAME=FOLDER...` is one.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
LFS_BYTES = 2**20
BLOCK = 64 * 1024


class Repo:
    """One model. Its switches may be turned while it is being fetched."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        self.token = ""  # who may have the files; "": anybody
        self.private = False  # nobody without the token may even know of it
        self.bytes_per_s = 0.0  # 0: as fast as it goes
        self.cuts: dict[str, list[int]] = {}  # by file: bytes after which its next answers break off
        self.hold = threading.Event()  # cleared: storage sends its first block and waits
        self.hold.set()
        self.wrong_length: set[str] = set()  # these say one length at first, and send another
        self.damaged: set[str] = set()  # these have the right length and other bytes
        self.ranges = True
        self.down = False  # 503 for everything
        self._etags: dict[str, str] = {}

    def lfs(self, name: str) -> bool:
        return self.files[name].stat().st_size >= LFS_BYTES

    def etag(self, name: str) -> str:
        """As git and the hub make it."""
        if name not in self._etags:
            data = self.files[name].read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            self._etags[name] = (hashlib.sha256(data) if self.lfs(name) else blob).hexdigest()
        return self._etags[name]


class Hub:
    """The server. `asked` are its requests in order: method, path, range; `sent` bytes of storage by file."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.tokens: list[str] = []  # of all requests to storage: none may have one
        self.sent: dict[str, int] = {}
        hub = self

        class Handler(_Handler):
            of = hub

        self._server = _Server((address, port), Handler)
        self.url = f"http://{address}:{self._server.server_address[1]}"

    def add(self, name: str, folder: Path) -> Repo:
        self.repos[name] = Repo(folder)
        return self.repos[name]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """What a daemon (or its child) is told, so that it asks here and keeps all below `home`."""
        patient = {"HF_HUB_DOWNLOAD_TIMEOUT": "600"}  # who is held is held for as long as the test takes
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **patient, **more}

    @contextmanager
    def running(self) -> Iterator[Hub]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for repo in self.repos.values():
                repo.hold.set()
                repo.bytes_per_s = 0.0
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Callers that are killed reset their connections: nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    of: Hub

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.of.asked.append((self.command, url.path, self.headers.get("range", "")))
        with suppress(BrokenPipeError, ConnectionResetError):
            if match := re.fullmatch(r"/storage/(.+)", url.path):
                self._storage(match[1], parse_qs(url.query))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/[^/]+.*|/revision/.+)?", url.path):
                self._api(match[1], match[2] or "")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
                self._resolve(match[1], match[3])
            else:
                self._say(404, {"error": "no such page"})

    def _repo(self, name: str, *, files: bool = False) -> Repo | None:
        repo = self.of.repos.get(name)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.private and token != repo.token):
            self._say(404 if token else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif repo.down:
            self._say(503, {"error": "we are down"})
        elif files and repo.token and token != repo.token:
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."}
            self._say(403 if token else 401, {"error": "gated"}, said)
        else:
            return repo
        return None

    def _api(self, name: str, rest: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if not rest.startswith("/tree"):
            self._say(200, {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": repo.private,
                            "gated": "auto" if repo.token else False, "tags": [], "downloads": 0,
                            "siblings": [{"rfilename": f} for f in repo.files]})  # fmt: skip
            return
        tree: list[dict[str, Any]] = []
        for file, path in repo.files.items():
            entry: dict[str, Any] = {"type": "file", "path": file, "size": path.stat().st_size, "oid": repo.etag(file)}
            if repo.lfs(file):
                entry["lfs"] = {"oid": repo.etag(file), "size": path.stat().st_size, "pointerSize": 134}
            tree.append(entry)
        self._say(200, tree)

    def _resolve(self, name: str, file: str) -> None:
        repo = self._repo(name, files=True)
        if repo is None:
            return
        about = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if file not in repo.files:
            self._say(404, {"error": "no such file"}, {**about, "X-Error-Code": "EntryNotFound"})
            return
        etag, size = repo.etag(file), repo.files[file].stat().st_size
        if not repo.lfs(file):
            self._send(repo, file, {**about, "ETag": f'"{etag}"'})
            return
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        # Another host name, as on the real hub: the token must not go there.
        where = f"{self.of.url.replace('127.0.0.1', 'localhost')}/storage/{name}/{file}?signature=secret"
        self._head(302, {**about, **linked, "Location": where, "Content-Length": "0"})

    def _storage(self, path: str, query: Mapping[str, list[str]]) -> None:
        self.of.tokens.append(self.headers.get("authorization", ""))
        org, name, file = path.split("/", 2)
        repo = self.of.repos[f"{org}/{name}"]
        if query.get("signature") != ["secret"]:
            self._say(403, {"error": "not signed"})
            return
        about = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{repo.etag(file)}"', "ETag": '"storage"'}
        self._send(repo, file, about)

    def _send(self, repo: Repo, file: str, about: Mapping[str, str]) -> None:
        size = repo.files[file].stat().st_size // (2 if file in repo.wrong_length else 1)
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))) and repo.ranges:
            start = int(asked[1])
        if start >= size and start:
            self._say(416, {"error": "no such range"}, {"Content-Range": f"bytes */{size}"})
            return
        partly = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        self._head(206 if start else 200, {**about, **partly, "Content-Length": str(size - start)})
        if self.command == "GET":
            self._body(repo, file, start, size)

    def _body(self, repo: Repo, file: str, start: int, end: int) -> None:
        cuts = repo.cuts.get(file)
        cut = min(end, start + cuts.pop(0)) if cuts else end
        with repo.files[file].open("rb") as data:
            data.seek(start)
            while (here := data.tell()) < cut:
                block = data.read(min(BLOCK, cut - here))
                if file in repo.damaged and data.tell() == end:
                    block = block[:-1] + bytes([block[-1] ^ 1])
                self.wfile.write(block)
                self.of.sent[file] = self.of.sent.get(file, 0) + len(block)
                if repo.lfs(file):
                    repo.hold.wait()
                if repo.bytes_per_s:
                    time.sleep(len(block) / repo.bytes_per_s)
        if cut < end:
            self.close_connection = True

    def _say(self, status: int, body: Any, about: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(about or {})})
        if self.command == "GET":
            self.wfile.write(data)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    hub = Hub(sys.argv[1], int(sys.argv[2]))
    for repository in sys.argv[3:]:
        name, _, folder = repository.partition("=")
        repo = hub.add(name, Path(folder))
        for file in repo.files:
            repo.etag(file)
    with hub.running():
        print(hub.url, flush=True)
        threading.Event().wait()
