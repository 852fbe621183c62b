"""Tailscale on this machine: which machines its network has, and where. The only tslocal import.

tslocal speaks the LocalAPI (a unix socket; on macOS a TCP port whose password stands in a file) but waits for ever, so
it runs in a thread of its own; where it does not get through, the `tailscale` program is asked.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import platform
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import tslocal
from msgspec import Struct

from mesh.addresses import in_tailnet
from mesh.errors import MeshError
from mesh.settings import TailscaleSettings

PROGRAMS = ("tailscale", "/Applications/Tailscale.app/Contents/MacOS/Tailscale")
LITERAL = ".tailnet"  # as people write "on my tailnet"; no such domain exists
T = TypeVar("T")


class Machine(Struct, frozen=True):
    """One machine of the tailnet. `online` as its control plane has it, a hint only; `own` is this one."""

    dns_name: str  # mini.tail1234.ts.net: without the last dot, unique
    host_name: str  # as its owner calls it, not unique
    addresses: tuple[str, ...]
    online: bool = False
    expired: bool = False
    own: bool = False

    @property
    def label(self) -> str:
        return self.dns_name.partition(".")[0]


class Tailnet(Struct, frozen=True):
    """All its machines, by name. `suffix`: what their names end in."""

    machines: tuple[Machine, ...] = ()
    suffix: str = ""

    def find(self, text: str) -> Machine:
        """The machine meant by `mini`, `mini.tailnet`, `mini.tail1234.ts.net`, its owner's name for it or its address.

        Raises MeshError unknown_machine or ambiguous_machine (which lists them).
        """
        wanted = text.strip().lower().rstrip(".").removesuffix(LITERAL)
        ours = "." + self.suffix
        for matches in (
            [m for m in self.machines if wanted == m.dns_name or wanted in m.addresses],
            [m for m in self.machines if m.label == wanted and m.dns_name == wanted + ours],
            [m for m in self.machines if m.dns_name.startswith(wanted + ".")],
            [m for m in self.machines if m.host_name.lower() == wanted],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                names = ", ".join(m.dns_name for m in matches)
                raise MeshError("ambiguous_machine", f"'{text}' is more than one machine of your tailnet: {names}",
                                hint="add one of these names", status=409)  # fmt: skip
        raise MeshError("unknown_machine", f"your tailnet has no machine '{text}'", status=404)

    def name_of(self, machine: Machine) -> str:
        """The shortest name that finds it."""
        with suppress(MeshError):
            if self.find(machine.label) == machine:
                return machine.label
        return machine.dns_name


class _Peer(Struct, frozen=True):
    """PeerStatus: what we read of it. Go writes an empty list as null."""

    dns_name: str = msgspec.field(default="", name="DNSName")
    host_name: str = msgspec.field(default="", name="HostName")
    addresses: tuple[str, ...] | None = msgspec.field(default=(), name="TailscaleIPs")
    online: bool = msgspec.field(default=False, name="Online")
    expired: bool = msgspec.field(default=False, name="Expired")
    user: int = msgspec.field(default=0, name="UserID")
    tags: tuple[str, ...] | None = msgspec.field(default=None, name="Tags")

    def machine(self, *, own: bool = False) -> Machine:
        dns_name = self.dns_name.rstrip(".").lower()
        host_name = self.host_name
        return Machine(dns_name or host_name.lower(), host_name, self.addresses or (), self.online, self.expired, own)


class _User(Struct, frozen=True):
    id: int = msgspec.field(default=0, name="ID")


class _Tagged(Struct, frozen=True):
    tags: tuple[str, ...] | None = msgspec.field(default=None, name="Tags")


class _WhoIs(Struct, frozen=True):
    """GET /localapi/v0/whois: a machine of the tailnet, and whose it is."""

    node: _Tagged = msgspec.field(default_factory=_Tagged, name="Node")
    user: _User = msgspec.field(default_factory=_User, name="UserProfile")


class _Current(Struct, frozen=True):
    suffix: str = msgspec.field(default="", name="MagicDNSSuffix")


class _Status(Struct, frozen=True):
    """GET /localapi/v0/status, and what `tailscale status --json` prints."""

    state: str = msgspec.field(name="BackendState")
    own: _Peer | None = msgspec.field(default=None, name="Self")
    peers: dict[str, _Peer] | None = msgspec.field(default=None, name="Peer")
    current: _Current | None = msgspec.field(default=None, name="CurrentTailnet")

    def tailnet(self) -> Tailnet:
        """Raises MeshError when this machine takes no part in its tailnet now."""
        if self.state != "Running":
            raise _not_running(self.state)
        own = [self.own.machine(own=True)] if self.own else []
        machines = [*own, *(peer.machine() for peer in (self.peers or {}).values())]
        suffix = self.current.suffix.strip(".").lower() if self.current else ""
        return Tailnet(tuple(sorted(machines, key=lambda m: m.dns_name)), suffix)


class Tailscale:
    """Asks it, at most once in `fresh_s`: the names of one moment come together. `socket` None: its usual place."""

    def __init__(
        self,
        settings: TailscaleSettings | None = None,
        *,
        socket: str | None = None,
        programs: tuple[str, ...] = PROGRAMS,
    ) -> None:
        self._settings, self._socket, self._programs = settings or TailscaleSettings(), socket, programs
        self._one_by_one = asyncio.Lock()
        self._thread: threading.Thread | None = None
        self._asked_at, self._answer = float("-inf"), Tailnet()
        self._problem: MeshError | None = None

    async def tailnet(self) -> Tailnet:
        """Raises MeshError: tailscale_missing, _stopped, _login, _stale, _denied, _silent, _garbled; each says what
        to do."""
        clock = asyncio.get_running_loop().time
        async with self._one_by_one:
            if clock() >= self._asked_at + self._settings.fresh_s:
                self._problem = None
                try:
                    self._answer = (await self._ask()).tailnet()
                except MeshError as error:
                    self._problem = error
                self._asked_at = clock()
            if self._problem is not None:
                raise MeshError(self._problem.code, self._problem.message, hint=self._problem.hint, status=502)
            return self._answer

    async def same_user(self, address: str) -> bool:
        """Is the machine at this address of our tailnet, and its user the one of this machine? Tailscale itself says
        whose packets come from there. A machine that carries tags is no user's. Raises MeshError as `tailnet`."""
        if not in_tailnet(address):
            return False
        async with self._one_by_one:
            try:
                theirs, status = await self._in_thread(lambda: (self._who_is(address), self._over_the_api()))
            except TimeoutError:
                raise MeshError("tailscale_silent", "Tailscale does not answer", hint="restart it") from None
        status.tailnet()  # raises when this machine takes no part in it now
        mine = status.own
        if theirs is None or mine is None or mine.tags or theirs.node.tags:
            return False
        return theirs.user.id != 0 and theirs.user.id == mine.user

    def _who_is(self, address: str) -> _WhoIs | None:
        """In a thread; None: nobody of the tailnet. Raises MeshError."""
        problems = []
        for socket_only in (False, True) if platform.system() == "Darwin" else (True,):
            try:
                with tslocal.Client(self._socket, use_socket_only=socket_only) as client:
                    return msgspec.convert(msgspec.to_builtins(client.who_is(address)), _WhoIs)
            except tslocal.PeerNotFoundError:
                return None
            except (tslocal.TailscaleError, http.client.HTTPException, OSError, ValueError) as error:
                problems.append(_problem(error))
        raise min(problems, key=lambda p: p.code == "tailscale_missing")

    async def _ask(self) -> _Status:
        problem = MeshError("tailscale_silent", "Tailscale does not answer", hint="restart it")
        try:
            return await self._in_thread(self._over_the_api)
        except MeshError as error:
            problem = error
        except TimeoutError:
            pass
        for name in self._programs:
            program = shutil.which(name)
            if program:
                return await self._by_program(program, problem)
        raise problem

    # The LocalAPI

    def _over_the_api(self) -> _Status:
        """In a thread. Raises MeshError."""
        problems = []
        for socket_only in (False, True) if platform.system() == "Darwin" else (True,):
            try:
                with tslocal.Client(self._socket, use_socket_only=socket_only) as client:
                    return msgspec.convert(msgspec.to_builtins(client.status()), _Status)
            except (tslocal.TailscaleError, http.client.HTTPException, OSError, ValueError) as error:
                problems.append(_problem(error))
        raise min(problems, key=lambda p: p.code == "tailscale_missing")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """A daemon thread, for it may hang and nothing should wait for it: not its caller, not the end of the process.
        While one hangs there is no other. Raises TimeoutError, and what `work` raises."""
        if self._thread is not None and self._thread.is_alive():
            raise TimeoutError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def put(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # None only where T is

        def run() -> None:
            result, problem = None, None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - carried over to who waits
                problem = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(put, result, problem)

        self._thread = threading.Thread(target=run, name="tailscale", daemon=True)
        self._thread.start()
        async with asyncio.timeout(self._settings.answer_s):
            return await answer

    # The program

    async def _by_program(self, program: str, problem: MeshError) -> _Status:
        """`problem` is what the LocalAPI said. Raises MeshError."""
        try:
            process = await asyncio.create_subprocess_exec(
                program, "status", "--json", env={**os.environ, "TAILSCALE_BE_CLI": "1"},
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:  # no program after all, or none for this processor
            raise problem from error
        try:
            async with asyncio.timeout(self._settings.program_s):
                printed, said = await process.communicate()
        except TimeoutError:
            raise MeshError("tailscale_silent", f"`{Path(program).name} status` does not end", hint="restart Tailscale"
                            ) from None  # fmt: skip
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            return msgspec.json.decode(printed, type=_Status)
        except ValueError as error:
            if process.returncode == 0:
                raise _garbled(error) from error
        if problem.code != "tailscale_missing":
            raise problem
        lines = said.decode(errors="replace").strip().splitlines()
        raise MeshError("tailscale_stopped", f"Tailscale does not run here: {lines[0] if lines else 'no reason given'}",
                        hint="start it, or `tailscale up`")  # fmt: skip


def _not_running(state: str) -> MeshError:
    """BackendState in words."""
    code, why, hint = {
        "NeedsLogin": ("tailscale_login", "is not logged in here", "`tailscale up`, or log in from its menu"),
        "NeedsMachineAuth": ("tailscale_login", "waits until this machine is approved", "its admin console does that"),
        "Stopped": ("tailscale_stopped", "is stopped here", "`tailscale up`, or Connect in its menu"),
    }.get(state, ("tailscale_stopped", f"is not connected (state {state})", "try again in a moment"))
    return MeshError(code, f"Tailscale {why}", hint=hint)


def _problem(error: Exception) -> MeshError:
    """Why the LocalAPI gave no answer."""
    said = str(error)
    if isinstance(error, tslocal.DaemonNotRunningError):
        if "refused" not in said:
            return MeshError("tailscale_missing", "Tailscale is not installed here, or does not run",
                             hint="start it, or `mlx-stack mesh add` an IP address")  # fmt: skip
        return MeshError("tailscale_stale", "Tailscale left its socket or port file behind, but nobody answers there",
                         hint="start Tailscale")  # fmt: skip
    denied = isinstance(error, tslocal.AccessDeniedError) or "Permission denied" in said
    if denied or (isinstance(error, tslocal.HttpError) and error.status == 401):
        return MeshError(
            "tailscale_denied", "Tailscale does not answer this user", hint="on macOS: administrators only"
        )
    if isinstance(error, http.client.HTTPException | ValueError | tslocal.HttpError):
        return _garbled(error)
    return MeshError("tailscale_silent", f"Tailscale cannot be asked: {said}", hint="restart it")


def _garbled(error: Exception) -> MeshError:
    return MeshError("tailscale_garbled", f"Tailscale's answer is not understood: {error}", hint="give the IP address")
