"""Which models are being fetched from the hub, how far each is, and when a failed one is tried again. Pure.

At most `downloads_max` processes fetch at a time, in the order they were asked for. A download that fails is tried
again by itself, later each time: a network comes back, a disk is cleared, a licence is accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, TypeAlias, assert_never

from msgspec import Struct

from node.headroom import gigabytes
from node.settings import NodeSettings


class Progress(Struct, frozen=True, kw_only=True):
    """How far a download is. `total_bytes` 0: not known yet; `bytes_per_s` lately."""

    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def left_bytes(self) -> int:
        return self.total_bytes - self.done_bytes

    def text(self) -> str:
        """For people: `43 %, 1.2 of 2.8 GB, 12.0 MB/s`."""
        unit, name = (2**30, "GB") if self.total_bytes >= 2**30 else (2**20, "MB")
        done, total = self.done_bytes / unit, self.total_bytes / unit
        return f"{int(100 * self.share)} %, {done:.1f} of {total:.1f} {name}, {self.bytes_per_s / 2**20:.1f} MB/s"


# What the process says, one JSON object per line (node/io/download_worker.py)


class Planned(Struct, frozen=True, tag=True):
    """The repository has been listed: `done_bytes` of `total_bytes` are here already, `free_bytes` are left at `where`.
    The process goes on when it is told to."""

    done_bytes: int
    total_bytes: int
    free_bytes: int
    where: str


class Advanced(Struct, frozen=True, tag=True):
    """`note` says what it waits for, when it waits."""

    done_bytes: int
    note: str = ""


class Fetched(Struct, frozen=True, tag=True):
    """All of it is in `path`, checked."""

    path: str


class Refused(Struct, frozen=True, tag=True):
    """It cannot be had; `why` is for people and says what to do."""

    why: str


Said: TypeAlias = Planned | Advanced | Fetched | Refused

# Events


class Asked(Struct, frozen=True):
    """`hub` is wanted. `afresh` (`models load`): a failed one is tried at once."""

    hub: str
    afresh: bool = False


class Dropped(Struct, frozen=True):
    """Nobody wants `hub` any more."""

    hub: str


class Heard(Struct, frozen=True):
    hub: str
    said: Said


class Ended(Struct, frozen=True):
    """The process is gone; `why` it ended without a last word, if it did."""

    hub: str
    why: str


class Tick(Struct, frozen=True):
    pass


DownloadEvent: TypeAlias = Asked | Dropped | Heard | Ended | Tick

# Effects


class Begin(Struct, frozen=True):
    """Start a process for `hub`. Answered by `Ended`, whatever happens before."""

    hub: str


class Proceed(Struct, frozen=True):
    """The disk has room: tell the process to go on."""

    hub: str


class Stop(Struct, frozen=True):
    """End the process of `hub`; what it has fetched stays for the next try."""

    hub: str


class Turned(Struct, frozen=True):
    """Something worth telling happened to the download; `new_bytes` came over the network since the last one."""

    hub: str
    phase: Literal["begun", "progress", "done", "failed", "cancelled"]
    why: str = ""
    new_bytes: int = 0


DownloadEffect: TypeAlias = Begin | Proceed | Stop | Turned

MARKER = ".mlx-stack-incomplete"  # in a repository's folder of the hub's cache, while not all of it is there
_IN_LINE = "waiting for its turn"


class Download:
    """One repository on its way here. Others read it; only Downloads changes it."""

    def __init__(self, hub: str) -> None:
        self.hub = hub
        self.progress = Progress()
        self.path = ""  # where it is, when it is done
        self.why = ""  # it failed, and has not begun again
        self.note = _IN_LINE
        self.retry_at: float | None = None
        self.wanted = True
        self.process = False  # between Begin and Ended
        self.over = False  # it has said its last word, or Stop was said: Ended is awaited
        self.failures = 0  # since it last got on
        self.planned = False  # the disk has room for the rest
        self.marks: deque[tuple[float, int]] = deque()  # (time, bytes) lately, for the rate
        self.told_bytes, self.told_at = 0, 0.0

    @property
    def failed(self) -> bool:
        return bool(self.why)

    def text(self) -> str:
        """How it goes, for people."""
        if self.failed:
            return f"cannot be downloaded: {self.why}"
        return "downloading, " + (self.note or self.progress.text())

    def wait_s(self, now: float) -> float | None:
        """Seconds until it is worth asking again: its next try, or about when it is here. None: unknown."""
        if self.retry_at is not None:
            return max(0.0, self.retry_at - now)
        rate = self.progress.bytes_per_s
        return self.progress.left_bytes / rate if rate > 0 else None


class Downloads:
    """All of them, by hub id."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._all: dict[str, Download] = {}  # in the order they were asked for

    @property
    def deadline(self) -> float | None:
        """When the next failed one is tried again."""
        return min((d.retry_at for d in self._all.values() if d.retry_at is not None), default=None)

    def find(self, hub: str) -> Download | None:
        return self._all.get(hub)

    def step(self, event: DownloadEvent, now: float) -> Sequence[DownloadEffect]:
        match event:
            case Asked(hub, afresh):
                return self._asked(hub, afresh)
            case Dropped(hub):
                return self._dropped(hub)
            case Heard(hub, said):
                download = self._all.get(hub)
                return self._heard(download, said, now) if download and not download.over else []
            case Ended(hub, why):
                return self._ended(hub, why, now)
            case Tick():
                for download in list(self._all.values()):
                    if download.retry_at is not None and download.retry_at <= now:
                        self._again(download)
                return self._fill()
            case _:
                assert_never(event)

    def _asked(self, hub: str, afresh: bool) -> list[DownloadEffect]:
        download = self._all.setdefault(hub, Download(hub))
        download.wanted = True  # If it was dropped just now, its process is ending, and another follows that.
        if afresh and download.failed:
            self._again(download)
        return self._fill()

    def _dropped(self, hub: str) -> list[DownloadEffect]:
        download = self._all.get(hub)
        if download is None or not download.wanted:
            return []
        download.wanted, download.why, download.retry_at = False, "", None
        told: list[DownloadEffect] = [] if download.path else [self._turned(download, "cancelled")]
        if download.process:
            return [*told, *self._stop(download)]
        del self._all[hub]
        return told

    def _heard(self, download: Download, said: Said, now: float) -> list[DownloadEffect]:
        match said:
            case Planned(done_bytes, total_bytes, free_bytes, where):
                download.progress = Progress(done_bytes=done_bytes, total_bytes=total_bytes)
                download.marks.append((now, done_bytes))
                download.told_bytes, download.told_at, download.note = done_bytes, now, ""
                if problem := self._disk_problem(download, free_bytes, where):
                    return [*self._failed(download, problem, now), *self._stop(download)]
                download.planned = True
                return [Proceed(download.hub)]
            case Advanced(done_bytes, note):
                return self._advanced(download, done_bytes, note, now)
            case Fetched(path):
                whole = download.progress.total_bytes
                download.progress = Progress(done_bytes=whole, total_bytes=whole)
                download.path, download.note, download.planned = path, "", False
                return [self._turned(download, "done")]
            case Refused(why):
                download.over = True
                return self._failed(download, why, now)
            case _:
                assert_never(said)

    def _advanced(self, download: Download, done_bytes: int, note: str, now: float) -> list[DownloadEffect]:
        s, marks = self._settings, download.marks
        if done_bytes > download.progress.done_bytes:
            download.failures = 0
        marks.append((now, done_bytes))
        while len(marks) > 2 and now - marks[0][0] > s.download_rate_s:
            marks.popleft()
        took_s, got = now - marks[0][0], done_bytes - marks[0][1]
        rate = max(0.0, got / took_s) if took_s > 0 else 0.0
        download.note = note
        download.progress = Progress(done_bytes=done_bytes, total_bytes=download.progress.total_bytes, bytes_per_s=rate)
        if now - download.told_at < s.download_told_s:
            return []
        download.told_at = now
        return [self._turned(download, "progress")]

    def _disk_problem(self, download: Download, free_bytes: int, where: str) -> str:
        """What is missing on the disk for this one and for all that is being fetched already; "" when nothing is."""
        factor = self._settings.download_disk_factor
        left = download.progress.total_bytes - download.progress.done_bytes
        others = sum(
            d.progress.total_bytes - d.progress.done_bytes
            for d in self._all.values()
            if d.planned and d is not download
        )
        needed = int(factor * (left + others))
        if not left or needed <= free_bytes:
            return ""
        beside = f" beside {gigabytes(others)} of other downloads" if others else ""
        return (
            f"the disk is full: {gigabytes(left)} to fetch{beside} need {gigabytes(needed)} ({factor:g} times that), "
            f"{gigabytes(free_bytes)} free at {where}"
        )

    def _failed(self, download: Download, why: str, now: float) -> list[DownloadEffect]:
        s = self._settings
        download.failures += 1
        doubled: float = s.download_retry_first_s * 2.0 ** min(download.failures - 1, 60)
        download.why, download.note = why, ""
        download.retry_at = now + min(s.download_retry_cap_s, doubled)
        download.planned = False
        download.marks.clear()
        return [self._turned(download, "failed", why)]

    def _ended(self, hub: str, why: str, now: float) -> list[DownloadEffect]:
        download = self._all.get(hub)
        if download is None:
            return []
        over, effects = download.over, list[DownloadEffect]()
        download.process = download.planned = download.over = False
        if not download.wanted or download.path:
            del self._all[hub]
        elif over and not download.failed:
            self._again(download)
        elif not download.failed:
            effects = self._failed(download, why, now)
        return [*effects, *self._fill()]

    def _stop(self, download: Download) -> list[DownloadEffect]:
        if download.over:
            return []
        download.over = True
        return [Stop(download.hub)]

    def _again(self, download: Download) -> None:
        """It stands in line once more, behind the others."""
        download.why, download.retry_at, download.note = "", None, _IN_LINE
        self._all[download.hub] = self._all.pop(download.hub)

    def _fill(self) -> list[DownloadEffect]:
        """Starts as many as may run beside each other."""
        effects: list[DownloadEffect] = []
        running = sum(d.process for d in self._all.values())
        for download in self._all.values():
            if running >= self._settings.downloads_max:
                break
            if download.process or not download.wanted or download.failed or download.path:
                continue
            download.process, download.note, running = True, "asking the hub for its files", running + 1
            effects += [Begin(download.hub), self._turned(download, "begun")]
        return effects

    def _turned(
        self, download: Download, phase: Literal["begun", "progress", "done", "failed", "cancelled"], why: str = ""
    ) -> Turned:
        new = max(0, download.progress.done_bytes - download.told_bytes)
        download.told_bytes = download.progress.done_bytes
        return Turned(download.hub, phase, why, new)
