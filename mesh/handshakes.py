"""Connections accepted on a port with TLS: each handshake bounded in time, all of them in number.

The event loop's own servers keep the context they began with, show no connection before its handshake is over, and
bound no number of them. Here the context is asked for when a connection comes, so a change of members needs no new
listening socket, and nothing that waits in its backlog is lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from mesh.settings import HandshakeSettings

log = logging.getLogger(__name__)

_SPENT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Handshakes:
    """`context` is asked for each connection, `factory` makes its protocol, which gets it after the handshake. `failed`
    counts those that came to nothing, `crowded` those of them that went for want of room."""

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        *,
        context: Callable[[], ssl.SSLContext],
        settings: HandshakeSettings | None = None,
    ) -> None:
        self._factory, self._context = factory, context
        self._settings = settings or HandshakeSettings()
        self._listening: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first
        self.failed = self.crowded = 0

    @property
    def open(self) -> int:
        """Under way now."""
        return len(self._open)

    def listen(self, listening: socket.socket) -> None:
        """Accepts from it from now on. It is this object's to close."""
        listening.setblocking(False)
        self._listening.append(listening)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        """Accepts no more, and ends the handshakes that are under way. Idempotent."""
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            loop.remove_reader(listening)
            if (timer := self._paused.pop(listening, None)) is not None:
                timer.cancel()
            listening.close()
        self._listening.clear()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _accept(self, listening: socket.socket) -> None:
        """What waits, as long as there is room for its handshake: of more than that the oldest goes."""
        for _ in range(self._settings.burst):
            try:
                made = self._taken(listening)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SPENT:
                    raise
                self._pause(listening, error)
                return
            if len(self._open) >= self._settings.open_max:
                self.crowded += 1
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.cancel()
            made.setblocking(False)
            # Owned by this object: it ends with its handshake, or in close().
            task = asyncio.get_running_loop().create_task(self._shake(made))
            self._open[task] = None
            task.add_done_callback(partial(self._done, made))

    @staticmethod
    def _taken(listening: socket.socket) -> socket.socket:
        return listening.accept()[0]

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """There is nothing to accept it with. It would be told again at once, and at once."""
        log.warning("no connection can be taken: %s", error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        self._paused[listening] = loop.call_later(self._settings.pause_s, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        if self._paused.pop(listening, None) is not None:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _done(self, made: socket.socket, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        if task.cancelled():
            self.failed += 1
            made.close()  # of one that was cancelled before its first step nobody else knows

    async def _shake(self, made: socket.socket) -> None:
        s = self._settings
        try:
            context = self._context()
        except OSError as error:
            self.failed += 1
            made.close()
            log.error("this node's key cannot be used: %s", error)
            return
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a hello of several parts waits for no ACK
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory,
                made,
                ssl=context,
                ssl_handshake_timeout=s.limit_s,
                ssl_shutdown_timeout=s.shutdown_s,
            )
        except OSError as error:  # of TLS too: what fails here is the other side's affair, or its line's
            self.failed += 1
            log.debug("a handshake failed: %s", error)
