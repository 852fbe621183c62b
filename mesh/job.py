"""What launchd or systemd is told of this node: the file, and where it belongs. Writes nothing, runs nothing.

Sources: launchd.plist(5), systemd.service(5), Apple's TN3179 (Local Network privacy).
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from mesh.errors import MeshError
from mesh.home import Home

LABEL = "com.mlx-stack.node"
OLD_LABEL = "com.mlx-stack.watchdog"  # the older mlx-stack's LaunchAgent
UNIT = "mlx-stack.service"
RESTART_S = 10  # between two starts of a daemon that ends: launchd's own default
EXIT_S = 60  # more than the daemon takes to drain (30 s), end its workers and close
FILES_MAX = 65_536  # launchd gives 256, and each open request takes two or three
_PATH = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_KEPT = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HF_ENDPOINT")  # where weights are; never a secret

Kind: TypeAlias = Literal["daemon", "agent", "system", "user"]
KINDS: tuple[Kind, ...] = ("daemon", "agent", "system", "user")


class Account(Struct, frozen=True):
    """Whom the node runs as."""

    name: str
    uid: int
    gid: int
    folder: Path  # its home directory

    @property
    def home(self) -> Home:
        """`$MLX_STACK_HOME`, else `.mlx-stack` of this account, also when root installs for it."""
        return Home.of_environment() if os.environ.get("MLX_STACK_HOME", "").strip() else Home(self.default_root)

    @property
    def default_root(self) -> Path:
        return self.folder / ".mlx-stack"


class Job(Struct, frozen=True, kw_only=True):
    """One way to start the node at boot. `service` is what launchctl or systemctl call it."""

    kind: Kind
    file: Path
    service: str
    content: bytes
    account: Account
    home: Home

    @property
    def needs_root(self) -> bool:
        return self.kind in ("daemon", "system")


def account(environment: Mapping[str, str] = os.environ) -> Account:
    """Who asks; with sudo, who typed it: the node is theirs, not root's."""
    uid = os.geteuid()
    asked = environment.get("SUDO_UID", "")
    if uid == 0 and asked.isdecimal():
        uid = int(asked)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        who = f"user id {uid} has no account on this machine"
        raise MeshError("no_account", who, hint="install as one that has") from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def binary(called: str = sys.argv[0]) -> Path:
    """The installed command beside this Python: not the first of that name in the PATH, which may be the older one.

    Raises MeshError when there is none: a job must not depend on a source tree that may move.
    """
    folder = Path(sys.executable).absolute().parent
    for name in dict.fromkeys((Path(called).name, "mlx-stack", "mlx-stack-mesh")):
        if name.startswith("mlx-stack") and os.access(folder / name, os.X_OK):
            return folder / name
    raise MeshError("not_installed", f"no mlx-stack in {folder}", hint="`pip install mlx-stack-mesh` there, then again")


def written_for(home: Home, folder: Path) -> Path | None:
    """The file of an installed job of this home, if there is one; `folder` is the account's home directory."""
    for kind in KINDS:
        file = place(kind, folder)
        try:
            if str(home.daemon_log).encode() in file.read_bytes():
                return file
        except OSError:
            continue
    return None


def place(kind: Kind, folder: Path, root: Path = Path("/")) -> Path:
    """Where such a job's file belongs. `root` stands for `/` in tests."""
    inside = root / str(folder).lstrip("/")
    match kind:
        case "daemon":
            return root / "Library/LaunchDaemons" / f"{LABEL}.plist"
        case "agent":
            return inside / "Library/LaunchAgents" / f"{LABEL}.plist"
        case "system":
            return root / "etc/systemd/system" / UNIT
        case "user":
            return inside / ".config/systemd/user" / UNIT


def job(
    kind: Kind,
    who: Account,
    home: Home,
    command: Path,
    *,
    environment: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> Job:
    """The job of this kind."""
    variables = {
        "HOME": str(who.folder),
        "PATH": os.pathsep.join(dict.fromkeys((str(command.parent), *_PATH))),
        **({} if home.root == who.default_root else {"MLX_STACK_HOME": str(home.root)}),
        **{name: environment[name] for name in _KEPT if environment.get(name)},
    }
    argv = [str(command), "up", "--foreground"]
    write = _plist if kind in ("daemon", "agent") else _unit
    content = write(kind, argv, variables, who, home)
    service = {"daemon": f"system/{LABEL}", "agent": f"gui/{who.uid}/{LABEL}"}.get(kind, UNIT)
    return Job(kind=kind, file=place(kind, who.folder, root), service=service, content=content, account=who, home=home)


def _plist(kind: Kind, argv: list[str], variables: Mapping[str, str], who: Account, home: Home) -> bytes:
    """ProcessType Interactive: unset means throttled CPU and I/O, and late heartbeats."""
    import plistlib  # noqa: PLC0415 - an XML parser that no other command needs

    keys = {
        "Label": LABEL,
        "ProgramArguments": argv,
        **({"UserName": who.name} if kind == "daemon" else {}),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ProcessType": "Interactive",
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": EXIT_S,
        "EnvironmentVariables": dict(variables),
        "WorkingDirectory": str(who.folder),
        "StandardOutPath": str(home.daemon_log),
        "StandardErrorPath": str(home.daemon_log),
        "SoftResourceLimits": {"NumberOfFiles": FILES_MAX},
        "HardResourceLimits": {"NumberOfFiles": FILES_MAX},
    }
    return plistlib.dumps(keys, sort_keys=False)


def _unit(kind: Kind, argv: list[str], variables: Mapping[str, str], who: Account, home: Home) -> bytes:
    """OOMPolicy continue: the kernel may kill one worker; the node starts it again."""
    network = ["Wants=network-online.target", "After=network-online.target"]  # known to the system's manager only
    lines = [
        "[Unit]",
        "Description=mlx-stack: local models behind one OpenAI endpoint",
        *(network if kind == "system" else []),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        *([f"User={who.name}"] if kind == "system" else []),
        f"ExecStart={' '.join(map(_quoted, argv))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in variables.items()),
        f"WorkingDirectory={_percent(str(who.folder))}",
        f"StandardOutput=append:{_percent(str(home.daemon_log))}",
        f"StandardError=append:{_percent(str(home.daemon_log))}",
        "Restart=always",
        f"RestartSec={RESTART_S}",
        "KillMode=mixed",
        f"TimeoutStopSec={EXIT_S}",
        "OOMPolicy=continue",
        f"LimitNOFILE={FILES_MAX}",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if kind == 'system' else 'default.target'}",
    ]
    return "".join(line + "\n" for line in lines).encode()


def _quoted(word: str) -> str:
    """systemd.syntax(7): C-style quoting; `%` begins a specifier."""
    return '"' + _percent(word.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _percent(text: str) -> str:
    return text.replace("%", "%%")
