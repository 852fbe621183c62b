"""The child process of one download: fetches a model from the hub into the hub's own cache.

    python -m node.io.download_worker ORG/REPO

stdout: what node/download.py calls Said, one JSON object per line. stdin: one line means "the disk has room, go on";
its end means that the daemon is gone, and so is this process. Endpoint, cache and token are huggingface_hub's own
affair (HF_ENDPOINT, HF_HOME, HF_TOKEN or the file of `hf auth login`); no token is ever printed.

huggingface_hub names a partial file anew in each process and deletes it on failure, so that nothing is resumed after
a restart (its pull request 4228). Large files are therefore fetched here, into `blobs/<etag>.incomplete`, with its own
HTTP client, checked against their hash and put where it looks for them; `snapshot_download` does all the rest.
Plain HTTP with ranges, which the hub offers for every file; its Xet protocol has no part that outlives a process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers

from node.download import MARKER, Advanced, Fetched, Planned, Refused, Said

NEEDED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt")
NOT_NEEDED = ("*/*", "consolidated*")  # folders hold other formats; consolidated files are the same weights once more
LARGE_BYTES = 2**20  # from here on a file is worth resuming
CHUNK_BYTES = 2**20  # what a cut loses at most
FILES_AT_ONCE = 3
TRIES = 4  # in a row that bring nothing; each is several of huggingface_hub's own
PAUSE_FIRST_S, PAUSE_CAP_S = 1.0, 8.0
SAY_EVERY_S = 0.25
LOCK_EVERY_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CannotError(Exception):
    """It makes no sense to try again now; the text says what to do."""


class StoppedError(Exception):
    """Another file has failed for good."""


class DamagedError(Exception):
    """What came is not what was announced."""


class File:
    """One file of the repository, and how much of it is here."""

    def __init__(self, found: RepoFile, folder: Path, commit: str) -> None:
        self.name, self.size = found.path, int(found.size)
        self.sha256 = found.lfs.sha256 if found.lfs else ""
        etag = self.sha256 or found.blob_id
        self.blob = folder / "blobs" / etag
        self.partial = folder / "blobs" / f"{etag}.incomplete"
        self.linked = folder / "snapshots" / commit / self.name
        self.done = self._here()

    @property
    def large(self) -> bool:
        return self.size >= LARGE_BYTES

    @property
    def whole(self) -> bool:
        return self.blob.exists() or self.linked.exists()

    def _here(self) -> int:
        if self.whole:
            return self.size
        return min(self.size, self.partial.stat().st_size) if self.partial.exists() else 0

    def drop(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.done = 0


class Counted:
    """The partial file as http_get writes it: counts what is there, and ends when all is to end."""

    def __init__(self, out: Any, file: File, stop: threading.Event) -> None:
        self._out, self._file, self._stop = out, file, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise StoppedError
        written: int = self._out.write(data)
        self._file.done += written
        return written

    def tell(self) -> int:
        return int(self._out.tell())

    def seek(self, offset: int) -> int:
        return int(self._out.seek(offset))

    def truncate(self) -> int:
        self._file.done = int(self._out.truncate())  # The hub does not do ranges: from the start.
        return self._file.done


class Fetch:
    """One repository on its way into the cache."""

    def __init__(self, hub: str) -> None:
        self.hub = hub
        self.folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub, repo_type="model")
        self.files: list[File] = []
        self.note = ""
        self._api, self._commit = HfApi(), ""
        self._stop = threading.Event()

    def run(self, may_go: Callable[[], object]) -> str:
        """The snapshot's folder, all of it there. Raises anything; `why` explains it."""
        with _one_at_a_time(self.folder, self._wait):
            patiently(self._list, self._stop, self._noted)
            total = sum(f.size for f in self.files)
            say(Planned(self._done(), total, _free_bytes(self.folder), str(self.folder.parent)))
            may_go()
            self._large()
            path: str = patiently(self._rest, self._stop, self._noted)
            (self.folder / MARKER).unlink(missing_ok=True)
        return path

    def _list(self) -> None:
        """What is to be fetched. Asking for one file finds out whether we may have any."""
        info = self._api.model_info(self.hub)
        self._commit = str(info.sha)
        listed = self._api.list_repo_tree(self.hub, revision=self._commit)
        found = [f for f in listed if isinstance(f, RepoFile) and needed(f.path)]
        if not any(f.path == "config.json" for f in found) or not any(f.path.endswith(".safetensors") for f in found):
            raise CannotError(f"{self.hub} holds no MLX model: config.json or .safetensors files are missing there")
        get_hf_file_metadata(hf_hub_url(self.hub, "config.json", revision=self._commit))
        self.files = [File(f, self.folder, self._commit) for f in found]

    def _large(self) -> None:
        """Every large file, some beside each other; the first that cannot be had ends the others."""
        large = [f for f in self.files if f.large and not f.whole]
        if not large:
            return
        large[0].blob.parent.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(FILES_AT_ONCE)
        try:
            running = {pool.submit(self._one, file) for file in large}
            while running:
                ended, running = wait(running, timeout=SAY_EVERY_S, return_when="FIRST_COMPLETED")
                self._say()
                for future in ended:
                    future.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _one(self, file: File) -> None:
        try:
            patiently(lambda: self._get(file), self._stop, self._noted, lambda: file.done)
        except DamagedError:  # Perhaps by an earlier try; once more from the start tells.
            file.drop()
            patiently(lambda: self._get(file), self._stop, self._noted, lambda: file.done)

    def _get(self, file: File) -> None:
        url = hf_hub_url(self.hub, file.name, revision=self._commit)  # It redirects to a fresh address each time.
        with file.partial.open("ab") as out:
            if out.tell() > file.size:
                out.truncate(0)
            file.done = begun = out.seek(0, os.SEEK_END)
            try:
                counted: Any = Counted(out, file, self._stop)
                http_get(url, counted, resume_size=begun, headers=build_hf_headers(), expected_size=file.size)
            except HfHubHTTPError as error:
                if error.response.status_code == 416:
                    raise DamagedError(f"{file.name}: the hub has no more than what is here") from error
                raise
            except OSError as error:
                if error.errno is None and "Consistency check" in str(error):
                    said = f"{file.name}: {file.done} bytes came, {file.size} were announced"
                    raise DamagedError(said) from error
                raise
            out.flush()
            os.fsync(out.fileno())
        if file.sha256 and _sha256(file.partial) != file.sha256:
            raise DamagedError(f"{file.name}: its content is not what the hub announced")
        file.partial.replace(file.blob)

    def _rest(self) -> str:
        """The small files and the links, by huggingface_hub; it may answer with less than all when it is cut off."""
        names = [f.name for f in self.files]
        folder = Path(snapshot_download(self.hub, allow_patterns=names, max_workers=FILES_AT_ONCE))
        for file in self.files:
            there = folder / file.name
            if not there.is_file() or (folder.name == self._commit and there.stat().st_size != file.size):
                raise ConnectionError(f"{file.name} did not come whole")
        return str(folder)

    def _done(self) -> int:
        return sum(f.done for f in self.files)

    def _say(self) -> None:
        say(Advanced(self._done(), self.note))

    def _noted(self, note: str) -> None:
        self.note = note

    def _wait(self) -> None:
        self.note = "another process of this Mac fetches it"
        self._say()
        self.note = ""
        time.sleep(LOCK_EVERY_S)


def needed(name: str) -> bool:
    """Whether an MLX model is loaded from it."""
    return any(fnmatch(name, p) for p in NEEDED) and not any(fnmatch(name, p) for p in NOT_NEEDED)


def patiently(
    action: Callable[[], Any], stop: threading.Event, note: Callable[[str], None], done: Callable[[], int] = lambda: 0
) -> Any:
    """`action()`, again when the network fails it: as long as `done()` grows between two failures, else some times."""
    idle = 0
    while True:
        before = done()
        try:
            result = action()
        except Exception as error:
            idle = 0 if done() > before else idle + 1
            if stop.is_set() or _final(error) or idle >= TRIES:
                raise
            note(f"the connection broke ({short(error)}), going on")
            stop.wait(min(PAUSE_CAP_S, PAUSE_FIRST_S * 2.0 ** max(0, idle - 1)))
        else:
            note("")
            return result


def _final(error: Exception) -> bool:
    """Whether the next try would end the same way."""
    ours = (CannotError, StoppedError, DamagedError, GatedRepoError, RepositoryNotFoundError, OfflineModeIsEnabled)
    if isinstance(error, (*ours, HFValidationError)):
        return True
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (400, 401, 403, 404)
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def why(error: BaseException, fetch: Fetch) -> str:
    """What is wrong and what to do, for people."""
    hub, endpoint = fetch.hub, constants.ENDPOINT
    while isinstance(error, (FileNotFoundError, HfHubHTTPError)) and not _status(error) and error.__cause__:
        error = error.__cause__  # huggingface_hub's "not in the cache" around the real reason.
    match error:
        case CannotError() | DamagedError():
            return str(error)
        case GatedRepoError():
            if get_token() is None:
                return f"{hub} is gated: accept its licence at {endpoint}/{hub}, then set HF_TOKEN (or `hf auth login`)"
            return f"{hub} is gated, and the account of your token may not have it: ask for it at {endpoint}/{hub}"
        case RepositoryNotFoundError():
            return f"there is no model {hub} at {endpoint}, or it is private: check the name, or set HF_TOKEN"
        case HFValidationError():
            return f"'{hub}' is not the id of a model on the hub"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: nothing is fetched while it is"
        case HfHubHTTPError() if _status(error) in (401, 403):
            return f"{endpoint} refuses {hub} ({_status(error)}): is HF_TOKEN a valid token that may read it?"
        case HfHubHTTPError():
            return f"{endpoint} answers {_status(error) or short(error)}"
        case OSError() if error.errno in FULL:
            left = sum(f.size for f in fetch.files) - sum(f.done for f in fetch.files)
            place = fetch.folder.parent
            free = _free_bytes(fetch.folder) / 2**30
            return f"the disk is full: {left / 2**30:.2f} GB still to fetch, {free:.2f} GB free at {place}"
        case OSError() if error.errno is not None and not isinstance(error, ConnectionError):
            return f"cannot write to {fetch.folder.parent}: {error.strerror}"
    return f"cannot fetch it from {endpoint}: {short(error)}"


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def short(error: BaseException) -> str:
    """An error in a few words, with nothing secret: queries of signed addresses and the token are left out."""
    text = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    text = text.replace(token, "****") if token else text
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)[:200]


def say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def _one_at_a_time(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process fetches into `folder`; the marker it leaves there says that the snapshot is not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MARKER).open("ab") as lock:
        while _held_by_another(lock):
            waiting()
        try:
            yield
        finally:
            if not (folder / "blobs").exists() and not (folder / "snapshots").exists():
                shutil.rmtree(folder, ignore_errors=True)  # Nothing of it is here: a mistyped name leaves no trace.


def _held_by_another(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # No locks on this file system: then two may fetch the same, and one of them in vain.
    return False


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def _sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _follow_parent(go: threading.Event) -> NoReturn:
    """The first line lets the work go on; the end of stdin ends this process, whatever it does."""
    for _ in sys.stdin.buffer:
        go.set()
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """One download; 0 when the model is there, 1 when stdout says why not."""
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    go = threading.Event()
    threading.Thread(target=_follow_parent, args=(go,), name="parent watch", daemon=True).start()
    fetch = Fetch(arguments[0])
    try:
        path = fetch.run(go.wait)
    except Exception as error:  # noqa: BLE001 - whatever it is, the daemon learns of it by this line
        with suppress(OSError):
            say(Refused(why(error, fetch)))
        return 1
    say(Fetched(path))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # Threads that still wait for a dead connection do not keep it.
