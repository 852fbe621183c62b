"""The home folder: where each file of this node is, who runs here, and where its admin socket listens."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from mesh.files import write_atomic

SOCKET_PATH_BYTES_MAX = 100  # sun_path holds 104 bytes on macOS and 108 on Linux, the closing zero included
LOCK_PATIENCE_S = 1.0  # another process that only looks holds the lock for microseconds
LOCK_AGAIN_S = 0.02  # between two tries: flock() that waits knows no limit


class HomeError(Exception):
    """The home folder cannot be used, or a daemon runs in it already (`pid` is then its process, if known)."""

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.message, self.pid = message, pid


class PidFile(Struct, frozen=True):
    """daemon.pid: two lines, the process id and the path of the admin socket."""

    pid: int
    socket: Path


class Lock:
    """The right to run in a home folder. The kernel gives it back when the process ends, however it ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        """Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Home(Struct, frozen=True):
    """Paths below one home folder (DESIGN section 3). Making one touches no disk; `create()` does."""

    root: Path

    @classmethod
    def of_environment(cls) -> Home:
        """`$MLX_STACK_HOME`, else `~/.mlx-stack`."""
        wanted = os.environ.get("MLX_STACK_HOME", "").strip()
        return cls(Path(os.path.abspath(Path(wanted).expanduser())) if wanted else Path.home() / ".mlx-stack")  # noqa: PTH100 - resolve() would follow links, and the user named this path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def stack(self) -> Path:
        return self.root / "stacks" / "default.yaml"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def node(self) -> Path:
        return self.root / "node"

    @property
    def mesh(self) -> Path:
        return self.root / "mesh"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def daemon_log(self) -> Path:
        return self.logs / "daemon.log"

    @property
    def routes(self) -> Path:
        return self.root / "routes.db"

    @property
    def events(self) -> Path:
        return self.root / "events.db"

    @property
    def pid_file(self) -> Path:
        return self.root / "daemon.pid"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def old_pids(self) -> Path:
        """Where the older mlx-stack keeps one pid file per service."""
        return self.root / "pids"

    @property
    def socket(self) -> Path:
        """Where a daemon started now puts its admin socket. A client asks `running_socket()`: the temp folder may be
        another one for it."""
        direct = self.root / "daemon.sock"
        if len(os.fsencode(direct)) <= SOCKET_PATH_BYTES_MAX:
            return direct
        tag = hashlib.blake2b(os.fsencode(self.root), digest_size=6).hexdigest()
        name = f"mlx-stack-{os.getuid()}-{tag}"
        inside = Path(tempfile.gettempdir()) / name / "daemon.sock"
        return inside if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX else Path("/tmp") / name / "daemon.sock"  # noqa: S108 - the one short folder that is always there; ours below it is 0700

    def create(self) -> None:
        """Makes the folder and those below it that daemons write to. Other users of this machine have no business in
        what the daemon itself writes (ids, keys, logs); a home that somebody made keeps its mode. Raises HomeError."""
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            for folder in (self.stack.parent, self.models):
                folder.mkdir(exist_ok=True)
            for folder in (self.node, self.mesh, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
                if folder.stat().st_mode & 0o077 and folder.stat().st_uid == os.getuid():
                    folder.chmod(0o700)
        except OSError as error:
            raise HomeError(
                f"{self.root} cannot be used as home folder ({error.strerror}); free the path or set MLX_STACK_HOME"
            ) from error

    def prepare_socket(self) -> Path:
        """Makes the socket's folder, private when it is in the temp folder, removes a left-over socket and returns
        the path to bind (then chmod 0600). Call with the lock held. Raises HomeError."""
        path = self.socket
        if path.parent != self.root:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = path.parent.lstat()
            if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode) or owner.st_mode & 0o077:
                raise HomeError(f"{path.parent} is not a private folder of this user; remove it, then start again")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HomeError(f"{path} is in the way of the admin socket ({error.strerror}); remove it") from error
        return path

    def lock(self) -> Lock:
        """Takes the home for this process. Raises HomeError when another process runs here."""
        self.create()
        patience = time.monotonic() + LOCK_PATIENCE_S
        handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                    os.close(handle)
                    raise HomeError(f"{self.lock_file} cannot be locked ({error.strerror})") from error
                if time.monotonic() >= patience:
                    os.close(handle)
                    raise self._taken() from error
                time.sleep(LOCK_AGAIN_S)
            else:
                return Lock(handle)

    def _taken(self) -> HomeError:
        written = self.read_pid()
        if written is None:
            return HomeError(f"another mlx-stack command is at work in {self.root}; wait for it to end, then try again")
        return HomeError(f"a daemon already runs in {self.root} (pid {written.pid})", pid=written.pid)

    def locked(self) -> bool:
        """Does some process hold the home now? Only looks."""
        try:
            handle = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def write_pid(self, socket: Path) -> None:
        """Says who runs here and where its socket is. Call with the lock held."""
        write_atomic(self.pid_file, f"{os.getpid()}\n{socket}\n", mode=0o644)

    def read_pid(self) -> PidFile | None:
        """What daemon.pid says, whether or not that process still lives; None when absent or not ours."""
        try:
            lines = self.pid_file.read_text(encoding="utf-8").splitlines()
            return PidFile(int(lines[0]), Path(lines[1]))
        except (OSError, ValueError, IndexError):
            return None

    def running(self) -> PidFile | None:
        """The daemon that runs here, or None. The lock is the proof: a pid alone may by now be another program's."""
        return self.read_pid() if self.locked() else None

    def running_socket(self) -> Path:
        """Where to reach the daemon: as daemon.pid says, else where one would be."""
        written = self.read_pid()
        return written.socket if written else self.socket
