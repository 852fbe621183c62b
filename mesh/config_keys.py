"""Every key of config.yaml and of the environment: how it is read, what it is when nobody says, what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from mesh import values

ENVIRONMENT_PREFIX = "MLX_STACK_"


class Key(Struct, frozen=True, kw_only=True):
    """One key: how its value is read, what it is when nobody says, and what it means.

    `automatic` stands for a default that depends on the machine. `ignored` keys are the older mlx-stack's, without
    effect here. `applies` says when a change takes effect.
    """

    name: str
    read: Callable[[object], Any]
    default: Any
    what: str
    automatic: str = ""
    also: tuple[str, ...] = ()  # other names for it
    ignored: bool = False
    secret: bool = False
    applies: str = "at once"

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.field.upper()

    @property
    def default_shown(self) -> str:
        return self.automatic or values.shown(self.default)


_port = values.whole(1, 65535)
_RESTART = "at the next start"

KEYS: tuple[Key, ...] = (
    Key(
        name="port",
        read=_port,
        default=4000,
        also=("litellm-port",),
        what="TCP port of the OpenAI API",
        applies=_RESTART,
    ),
    Key(
        name="peer-port",
        read=_port,
        default=4001,
        what="port between nodes: TCP, and UDP heartbeats on the same number",
        applies=_RESTART,
    ),
    Key(
        name="bind",
        read=values.texts,
        default=(),
        automatic="LAN, tailnet and loopback",
        what="addresses or interfaces to listen on",
        applies=_RESTART,
    ),
    Key(name="node-name", read=values.name, default=None, automatic="host name", what="what people call this node"),
    Key(name="mesh-enabled", read=values.boolean, default=False, what="take part in a mesh"),
    Key(name="mesh-name", read=values.name, default="default", what="which mesh: nodes of other names are not seen"),
    Key(
        name="mesh-priority",
        read=values.whole(0, 1_000_000),
        default=100,
        what="who coordinates: the highest; 0 never does",
    ),
    Key(name="mesh-peers", read=values.hosts, default=(), what="nodes mDNS cannot find, HOST[:PORT]"),
    Key(
        name="allowed-hosts",
        read=values.host_names,
        default=(),
        what="further names clients may reach this node by: NAME, *.DOMAIN, or * for any",
    ),
    Key(
        name="cors-origins",
        read=values.origins,
        default=(),
        what="browser pages that may ask: SCHEME://HOST[:PORT], * for any part or for all, null",
    ),
    Key(
        name="tls-cert",
        read=values.file,
        default=None,
        what="certificate chain for `port`, a PEM file: it then speaks https",
        applies=_RESTART,
    ),
    Key(name="tls-key", read=values.file, default=None, what="its private key, a PEM file", applies=_RESTART),
    Key(
        name="memory-budget",
        read=values.size,
        default=None,
        automatic="RAM - 20/8/4 GB",
        what='memory models may take here: bytes or "24 GB" (default: RAM less 20 GB from 64 GB on, less 8 GB from '
        "24 GB on, else less 4 GB; never over the GPU working set)",
    ),
    Key(
        name="request-timeout",
        read=values.seconds(0.001),
        default=600.0,
        what="seconds until a request is given up",
        applies=_RESTART,
    ),
    Key(
        name="connections",
        read=values.whole(1, 1_000_000),
        default=None,
        automatic="by file descriptors",
        what="connections of clients in all (default: half of the file descriptors there are, 16384 at most)",
        applies=_RESTART,
    ),
    Key(
        name="connections-per-address",
        read=values.whole(1, 1_000_000),
        default=512,
        what="connections of one client's address; this machine may have 4096",
        applies=_RESTART,
    ),
    Key(
        name="requests-per-address",
        read=values.whole(1, 1_000_000),
        default=256,
        what="requests of one client's address that are open at a time; this machine may have 4096",
        applies=_RESTART,
    ),
    Key(
        name="queue-limit",
        read=values.whole(1, 4096),
        default=1024,
        what="requests that wait for a node; of the coordinator, so say it on every node",
        applies=_RESTART,
    ),
    Key(
        name="body-limit",
        read=values.size,
        default=32 * 2**20,
        automatic="32 MB",
        what="a request's body, decompressed; say it on every node",
        applies=_RESTART,
    ),
    Key(
        name="slow-client-timeout",
        read=values.seconds(1.0),
        default=60.0,
        what="a client that takes nothing of its answer for so long is cut off",
        applies=_RESTART,
    ),
    Key(
        name="request-gap",
        read=values.seconds(0.0),
        default=15.0,
        what="seconds of quiet a model must have had before another may push it out of memory",
    ),
    Key(
        name="idle-timeout",
        read=values.seconds(None),
        default=None,
        automatic="10, 5 or 3 min by RAM",
        what="an unused model is unloaded after this, negative: never (default: 10 min from 64 GB of RAM on, 5 min "
        "from 24 GB on, else 3 min)",
    ),
    Key(name="log-max-size-mb", read=values.whole(1), default=50, what="a log is rotated at this size"),
    Key(name="log-max-files", read=values.whole(1), default=5, what="rotated files kept per log"),
    Key(
        name="model-dir",
        read=values.folder,
        default=None,
        automatic="models/ in the home folder",
        what="where weights are looked up by name",
        applies=_RESTART,
    ),
    Key(
        name="openrouter-key",
        read=values.text,
        default="",
        what="the older mlx-stack's cloud fallback",
        ignored=True,
        secret=True,
    ),
    Key(name="default-quant", read=values.text, default="int4", what="the older mlx-stack's downloads", ignored=True),
    Key(
        name="memory-budget-pct",
        read=values.whole(1, 100),
        default=40,
        what="a filter per model when recommending; nothing is recommended here yet",
        ignored=True,
    ),
    Key(
        name="auto-health-check",
        read=values.boolean,
        default=True,
        what="workers are always watched here",
        ignored=True,
    ),
)
BY_NAME = {alias: key for key in KEYS for alias in (key.name, *key.also)}  # other names too
