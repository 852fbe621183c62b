"""One link's life: hello said, frames out of a bounded outbox, frames in, a ping each second, and a bye at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import WSMsgType, web
from msgspec import Struct

from mesh.addresses import plain
from mesh.events import Event, Framed, Rtt, SaidBye
from mesh.settings import LinkSettings
from mesh.wire import Bye, Frame, Hello, Ping, Pong, WireError, decode, encode
from node.types import NodeId

_log = logging.getLogger("mesh.link")

WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


@dataclass(slots=True)
class Counts:
    """Since the start. `dropped` frames by WireError code; `full`: links closed because their outbox was."""

    received: int = 0
    sent: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    full: int = 0
    duplicates: int = 0

    def drop(self, code: str) -> None:
        self.dropped[code] = self.dropped.get(code, 0) + 1


class Ways(Struct, frozen=True, kw_only=True):
    """Where a link's news go. `over(link, why, eof, bye)`: it is to end; called at most once per link that ends.
    `noise(address, code)`: a frame that could not be read."""

    tell: Callable[[Event], None]
    on_frame: Callable[[NodeId, Frame], None]
    over: Callable[[Link, str, bool, Bye | None], None]
    noise: Callable[[str, str], None]


class Link:
    """`dialler` is the id of the side that dialled. Once `end` was called nothing more is told or accepted."""

    def __init__(
        self, ws: WebSocket, hello: Hello, address: str, *, dialler: NodeId, ways: Ways, counts: Counts,
        settings: LinkSettings,
    ) -> None:  # fmt: skip
        self.ws, self.hello, self.address, self.dialler = ws, hello, address, dialler
        self.since = self.heard_at = now()
        self._ways, self._counts, self._settings = ways, counts, settings
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._wake, self._ending = asyncio.Event(), asyncio.Event()
        self._bye: Bye | None = None
        self._ping = (0, 0.0)  # the last one: number, when (uvloop's clock counts whole ms, too coarse for a LAN)
        self._garbled = 0  # in a row

    @property
    def node(self) -> NodeId:
        return self.hello.id

    @property
    def lively(self) -> bool:
        """Something came within 2.5 pings."""
        return now() - self.heard_at < 2.5 * self._settings.ping_s

    def offer(self, data: bytes) -> bool:
        """Into the outbox. A full one ends the link: who reads so slowly is better off with a new one."""
        s = self._settings
        if self._ending.is_set():
            return False
        if len(self._outbox) >= s.outbox_frames or self._outbox_bytes + len(data) > s.outbox_bytes:
            self._counts.full += 1
            why = f"its outbox is full ({len(self._outbox)} frames, {self._outbox_bytes} bytes)"
            self._ways.over(self, why, False, Bye("you read too slowly", leaves=False))
            return False
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        self._wake.set()
        return True

    def probe(self) -> None:
        """Wants a sign of life within probe_s; without one the link is over."""
        self.offer(encode(Ping(0)))
        asyncio.get_running_loop().call_later(self._settings.probe_s, self._judge, now())

    def _judge(self, asked_at: float) -> None:
        if self.heard_at < asked_at and not self._ending.is_set():
            self._ways.over(self, f"no answer within {self._settings.probe_s:.0f} s", False, None)

    @property
    def local(self) -> str:
        """The address of this side; "" when the socket is gone."""
        name = self.ws.get_extra_info("sockname")
        return plain(str(name[0])) if name else ""

    def end(self, bye: Bye | None) -> None:
        """carry() says this bye, after what waits to be said, closes the socket and returns; without a bye nothing."""
        self._bye = bye
        self._ending.set()

    async def carry(self) -> None:
        """Reads, writes and pings until end()."""
        async with closing(self.ws, self._settings.close_s):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job) for job in (self._read(), self._write())]
                await self._ending.wait()
                for task in tasks:
                    task.cancel()
            if self._bye is not None:
                with suppress(TimeoutError, OSError, aiohttp.ClientError, RuntimeError):
                    async with asyncio.timeout(self._settings.close_s):
                        for data in (*self._outbox, encode(self._bye)):
                            await self.ws.send_bytes(data)

    async def _read(self) -> None:
        silence_s, burst = self._settings.silence_s, 0
        while not self._ending.is_set():
            burst += 1
            if burst % self._settings.burst_frames == 0:
                await asyncio.sleep(0)  # receive() does not wait for what is there already
            try:
                async with asyncio.timeout(silence_s):
                    message = await self.ws.receive()
            except TimeoutError:
                self._ways.over(self, f"nothing came for {silence_s:.0f} s", False, None)  # a bye would mean: I leave
                return
            if self._ending.is_set():
                return
            if message.type is WSMsgType.BINARY:
                self.heard_at = now()
                try:
                    self._received(message.data)
                except Exception:  # noqa: BLE001 - a defect of ours: it costs this link, not the mesh
                    _log.exception("a frame of %s cannot be handled", self.node)
                    self._ways.over(
                        self, "its frame could not be handled", False, Bye("your frame cannot be handled", leaves=False)
                    )
            elif message.type is WSMsgType.TEXT:
                self._unreadable(WireError("garbled", "text, not msgpack"))
            elif message.type is WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
                self._ways.over(self, f"it broke the WebSocket protocol: {message.data}", False, None)
            else:
                self._ways.over(self, "the other side closed it", True, None)

    def _received(self, data: bytes) -> None:
        try:
            frame = decode(data)
        except WireError as error:
            self._unreadable(error)
            return
        self._counts.received += 1
        self._garbled = 0
        if not isinstance(frame, Bye):
            self._ways.tell(Framed(self.node))
        match frame:
            case Ping(n):
                self.offer(encode(Pong(n)))
            case Pong(n):
                if n == self._ping[0]:
                    self._ways.tell(Rtt(self.node, time.perf_counter() - self._ping[1]))
            case Hello():
                pass  # said once, at the start
            case Bye("duplicate"):
                self._ways.over(self, "duplicate: this pair has another link", False, None)
            case Bye(reason, leaves):
                if leaves:
                    self._ways.tell(SaidBye(self.node, reason))
                self._ways.over(self, f"it said bye: {reason}", False, None)
            case _:
                self._ways.on_frame(self.node, frame)

    def _unreadable(self, error: WireError) -> None:
        """Counts it, and ends the link at the third in a row. An unknown kind is no fault: the other side is newer."""
        self._counts.drop(error.code)
        self._ways.noise(self.address, error.code)
        self._garbled = 0 if error.code == "unknown_kind" else self._garbled + 1
        if self._garbled >= self._settings.garbled_max:
            bye = Bye(f"unreadable frames: {error.message}"[:200], leaves=False)
            self._ways.over(self, f"{self._garbled} unreadable frames in a row", False, bye)

    async def _write(self) -> None:
        ping_at = now()
        while True:
            if now() >= ping_at:
                self._ping = (self._ping[0] + 1, time.perf_counter())
                ping_at = now() + self._settings.ping_s
                self.offer(encode(Ping(self._ping[0])))
            while self._outbox:
                data = self._outbox.popleft()
                self._outbox_bytes -= len(data)
                try:
                    await self.ws.send_bytes(data)
                except (OSError, aiohttp.ClientError, RuntimeError):
                    return  # _read says what happened
                self._counts.sent += 1
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(ping_at):
                    await self._wake.wait()


@asynccontextmanager
async def closing(ws: WebSocket, patience_s: float) -> AsyncIterator[None]:
    """Closes the socket on the way out, with or without the other side."""
    try:
        yield
    finally:
        with suppress(TimeoutError, OSError, aiohttp.ClientError, RuntimeError):
            async with asyncio.timeout(patience_s):
                await ws.close()


def now() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()


async def first_frame(ws: WebSocket, within_s: float) -> Hello | Bye:
    """What the other side says first. Raises TimeoutError, WireError, ConnectionResetError."""
    async with asyncio.timeout(within_s):
        message = await ws.receive()
    if message.type is not WSMsgType.BINARY:
        raise ConnectionResetError("closed before its hello")
    frame = decode(message.data)
    if not isinstance(frame, Hello | Bye):
        raise WireError("garbled", "its first frame is no hello")
    return frame
