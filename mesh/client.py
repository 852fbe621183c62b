"""The daemon's admin API as functions, for the command line, tests and scripts. Synchronous and standard library only:
a command has no event loop to start and should not wait for one to be imported."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from mesh import answers
from mesh.home import Home

T = TypeVar("T")
ANSWER_BYTES_MAX = 256 << 20  # 100,000 routes fit; more is not from our daemon
TIMEOUT_S = 30.0
JOIN_S = 90.0  # a join call, leaving the mesh before, links


class MeshClientError(Exception):
    """The daemon refused (`code` is its own), or could not be asked: `not_running`, `no_answer`, `bad_answer`."""

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class _Connection(http.client.HTTPConnection):
    """HTTP over the unix socket at `path`."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


class MeshClient:
    """One daemon's admin API. Each call is one connection; every method raises MeshClientError."""

    def __init__(self, socket_path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._socket, self._timeout_s = socket_path, timeout_s

    @classmethod
    def of(cls, home: Home, *, timeout_s: float = TIMEOUT_S) -> MeshClient:
        """The client of the daemon in `home`."""
        return cls(home.running_socket(), timeout_s=timeout_s)

    # This node

    def status(self) -> answers.Status:
        return self._call("GET", "/v1/status", answers.Status)

    def models(self) -> tuple[answers.ModelDetails, ...]:
        found = self._call("GET", "/v1/models", dict[str, tuple[answers.ModelDetails, ...]])
        return found.get("models", ())

    def model(self, name: str) -> answers.ModelDetails:
        return self._call("GET", f"/v1/models/{_part(name)}", answers.ModelDetails)

    def load(self, name: str) -> answers.ModelDetails:
        """Returns once it can answer: as long as a load takes."""
        return self._call("POST", f"/v1/models/{_part(name)}/load", answers.ModelDetails, {}, timeout_s=None)

    def unload(self, name: str) -> answers.ModelDetails:
        return self._call("POST", f"/v1/models/{_part(name)}/unload", answers.ModelDetails, {}, timeout_s=None)

    def events(self, last: int, model: str = "") -> tuple[answers.Event, ...]:
        """The newest `last` events (of one model, by MODEL.name), oldest first."""
        query = f"last={last}&model={_part(model)}"
        found = self._call("GET", f"/v1/events?{query}", dict[str, tuple[answers.Event, ...]])
        return found.get("events", ())

    def follow_events(self, last: int, model: str = "") -> Iterator[answers.Event]:
        """The newest `last` events, then each as it happens, until the daemon stops or the caller does."""
        return self._lines(f"/v1/events/follow?last={last}&model={_part(model)}", answers.Event)

    def reload(self) -> tuple[str, ...]:
        """Reads config.yaml and the stack file again; returns what changed, when that is done: it may mean leaving a
        mesh."""
        found = self._call("POST", "/v1/reload", dict[str, tuple[str, ...]], {}, timeout_s=None)
        return found.get("changed", ())

    def stop(self, grace_s: float | None = None) -> None:
        self._call("POST", "/v1/stop", dict[str, Any], {} if grace_s is None else {"grace_s": grace_s})

    # Keys of clients

    def keys(self) -> answers.Keys:
        return self._call("GET", "/v1/keys", answers.Keys)

    def create_key(self, name: str, *, first: bool = False) -> answers.NewKey:
        """Its text is told here only. Unless `first`, one that would be the first is refused (`first_key`)."""
        return self._call("POST", "/v1/keys", answers.NewKey, {"name": name, "first": first})

    def revoke_key(self, name_or_id: str) -> answers.RevokedKey:
        return self._call("DELETE", f"/v1/keys/{_part(name_or_id)}", answers.RevokedKey)

    def keys_off(self) -> answers.Keys:
        """All keys end, and none is needed any more."""
        return self._call("POST", "/v1/keys/off", answers.Keys, {})

    # The mesh

    def mesh_status(self) -> answers.MeshStatus:
        return self._call("GET", "/v1/mesh/status", answers.MeshStatus)

    def enable(
        self, *, priority: int | None = None, name: str | None = None, invite: str | None = None
    ) -> answers.MeshStatus:
        """Returns when this node takes part; with another `name`, once it has left the mesh before; with an `invite`,
        once it is in the mesh of who made that."""
        wanted = {"priority": priority, "name": name, "invite": invite}
        body = {field: value for field, value in wanted.items() if value is not None}
        return self._call("POST", "/v1/mesh/enable", answers.MeshStatus, body, timeout_s=None)

    def disable(self) -> answers.MeshStatus:
        """Returns when the node has drained and left."""
        return self._call("POST", "/v1/mesh/disable", answers.MeshStatus, {}, timeout_s=None)

    def add(self, address: str, invite: str = "") -> dict[str, Any]:
        """Makes `host:port` a peer: {"name", "id", "state", "reason", "far", "via"}. With an `invite` that was made
        there this node joins its mesh."""
        body = {"address": address} | ({"invite": invite} if invite else {})
        return self._call("POST", "/v1/mesh/peers", dict[str, Any], body, timeout_s=JOIN_S)

    def open_window(self, for_s: float | None = None) -> dict[str, Any]:
        """From now on nodes may join by themselves: {"open", "for_s", "mesh_id"}."""
        return self._call("POST", "/v1/mesh/open", dict[str, Any], {} if for_s is None else {"for_s": for_s})

    def close_window(self) -> dict[str, Any]:
        return self._call("POST", "/v1/mesh/close", dict[str, Any], {})

    def accept(self, name: str, check: str = "") -> dict[str, Any]:
        """Lets in who waits, or confirms who joined by itself: {"name", "id", "done": "let in" or "confirmed"}."""
        return self._call("POST", "/v1/mesh/accept", dict[str, Any], {"name": name, "check": check})

    def invite(self) -> dict[str, Any]:
        """A one-time token: {"token", "for_s", "command"}."""
        return self._call("POST", "/v1/mesh/invite", dict[str, Any], {})

    def tailnet(self) -> tuple[answers.Running, ...]:
        """The machines of this machine's tailnet that run a node, asked now."""
        found = self._call("GET", "/v1/mesh/tailnet", dict[str, tuple[answers.Running, ...]])
        return found.get("running", ())

    def remove(self, name: str) -> str:
        return str(self._call("DELETE", f"/v1/mesh/nodes/{_part(name)}", dict[str, Any]).get("removed", name))

    def drain(self, node: str, for_s: float | None = None, *, now: bool = False) -> dict[str, Any]:
        body: dict[str, Any] = {"node": node} if for_s is None else {"node": node, "for_s": for_s}
        body |= {"now": True} if now else {}
        return self._call("POST", "/v1/mesh/drain", dict[str, Any], body)

    def undrain(self, node: str) -> dict[str, Any]:
        return self._call("POST", "/v1/mesh/undrain", dict[str, Any], {"node": node})

    def drill(
        self, ask: str, drill: str, *, node: str = "", model: str = "", for_s: float = 10.0
    ) -> answers.DrillAnswers:
        """Asks `node` ("": this one and all it reaches) something on behalf of a drill (mesh/wire.py's Drill)."""
        body = {"ask": ask, "drill": drill, "node": node, "model": model, "for_s": for_s}
        return self._call("POST", "/v1/mesh/drill", answers.DrillAnswers, body)

    def drill_seen(self) -> tuple[answers.Seen, ...]:
        """What this node saw become of others lately, oldest first."""
        found = self._call("GET", "/v1/mesh/drill", dict[str, tuple[answers.Seen, ...]])
        return found.get("seen", ())

    def routes(self, last: int) -> answers.Routes:
        return self._call("GET", f"/v1/mesh/routes?last={last}", answers.Routes)

    def route(self, id_or_prefix: str) -> answers.Route:
        return self._call("GET", f"/v1/mesh/routes/{_part(id_or_prefix)}", answers.Route)

    def follow(self) -> Iterator[answers.Route]:
        """Each route as it ends, until the daemon stops or the caller does."""
        return self._lines("/v1/mesh/routes/follow", answers.Route)

    def _lines(self, path: str, kind: type[T]) -> Iterator[T]:
        connection, answer = self._open("GET", path, None, None)
        try:
            while line := answer.readline(16 << 20):
                if line.strip():
                    yield _decode(line, kind)
        except (OSError, http.client.HTTPException) as error:
            raise MeshClientError("no_answer", f"the daemon broke off: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _call(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: Mapping[str, Any] | None = None,
        timeout_s: float | None = -1,
    ) -> T:
        connection, response = self._open(method, path, body, self._timeout_s if timeout_s == -1 else timeout_s)
        try:
            data = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise MeshClientError("no_answer", f"the daemon broke off: {error or type(error).__name__}") from error
        finally:
            connection.close()
        return _decode(data, answer)

    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        """Sends the request; returns when the head of a good answer is there."""
        connection = _Connection(self._socket, timeout_s)
        try:
            content = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, content, {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response.status, response.read(1 << 20))
        except MeshClientError:
            connection.close()
            raise
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise MeshClientError("not_running", "mlx-stack is not running here") from error
        except TimeoutError as error:
            connection.close()
            raise MeshClientError("no_answer", f"the daemon did not answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise MeshClientError(
                "no_answer", f"the daemon cannot be asked: {error or type(error).__name__}"
            ) from error
        return connection, response


def _part(name: str) -> str:
    return quote(name, safe="")


def _decode(data: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=answer)
    except msgspec.MsgspecError as error:
        raise MeshClientError(
            "bad_answer", f"the daemon's answer is not understood ({error}); do it and this command have one version?"
        ) from error


def _refusal(status: int, data: bytes) -> MeshClientError:
    try:
        error = msgspec.json.decode(data, type=dict[str, dict[str, Any]])["error"]
        return MeshClientError(str(error["code"]), str(error["message"]), status)
    except (msgspec.MsgspecError, KeyError):
        return MeshClientError("bad_answer", f"the daemon answered {status} without saying why", status)
