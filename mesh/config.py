"""config.yaml and the environment -> Config. Every key is in mesh/config_keys.py; an error names the key, the file and
the way out.

Order: environment `MLX_STACK_<KEY>` over the file over the default; each value knows where it came from.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from mesh import plain_yaml
from mesh.config_keys import BY_NAME, ENVIRONMENT_PREFIX, KEYS, Key
from mesh.files import move_aside, write_atomic
from mesh.home import Home

YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # the latter two: a date 2026-99-99, nesting without end


class ConfigError(Exception):
    """config.yaml, a stack file or the environment says something we cannot use. The text says what, where and why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Config(Struct, frozen=True, kw_only=True):
    """Every setting with its value. None where the default depends on the machine: `memory_budget` (bytes) and
    `idle_timeout` (seconds) are then worked out from its RAM, `connections` from its file descriptors. Durations in
    seconds, sizes in bytes."""

    port: int
    peer_port: int
    bind: tuple[str, ...]
    node_name: str
    mesh_enabled: bool
    mesh_name: str
    mesh_priority: int
    mesh_peers: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    memory_budget: int | None
    request_timeout: float
    connections: int | None
    connections_per_address: int
    requests_per_address: int
    queue_limit: int
    body_limit: int
    slow_client_timeout: float
    request_gap: float
    idle_timeout: float | None
    log_max_size_mb: int
    log_max_files: int
    model_dir: Path
    openrouter_key: str
    default_quant: str
    memory_budget_pct: int
    auto_health_check: bool

    sources: dict[str, str]  # key -> "default" | "config.yaml" | the environment variable
    warnings: tuple[str, ...] = ()  # keys without effect here, variables that are no key

    def value(self, key: Key) -> Any:
        return getattr(self, key.field)

    def source(self, key: Key) -> str:
        return self.sources[key.name]


def host_name() -> str:
    """What the machine calls itself, without its domain."""
    return socket.gethostname().split(".")[0] or "node"


def find_key(name: str, where: str = "") -> Key:
    """The key called `name`. Raises ConfigError naming `where` (a file; "" is the command line)
    and the nearest one that exists."""
    key = BY_NAME.get(name) or BY_NAME.get(name.strip().lower().replace("_", "-"))
    if key is not None:
        return key
    near = difflib.get_close_matches(name.lower().replace("_", "-"), BY_NAME, n=1, cutoff=0.5)
    known = "correct it, or remove the line" if where else "`mlx-stack config list` shows all keys"
    hint = f"did you mean '{near[0]}'?" if near else known
    raise ConfigError(f"unknown key '{name}'{_in(where)}: {hint}")


def read_value(key: Key, written: object, where: str = "") -> Any:
    """The typed value of `key`. Raises ConfigError naming the key, `where` and what is wanted."""
    try:
        return key.read(written)
    except ValueError as error:
        got = "****" if key.secret else plain_yaml.shortly(written)
        raise ConfigError(f"'{key.name}'{_in(where)} must be {error}, not {got}") from None


def _in(where: str) -> str:
    return f" in {where}" if where else ""


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in config.yaml as written; {} when there is none. Raises ConfigError when it is no YAML mapping."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. `mlx-stack config reset --yes` sets it aside") from error
    try:
        mapping = plain_yaml.load(content)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"{path} is not valid YAML{line}. Correct it, or set it aside with `mlx-stack config reset --yes`"
        ) from None
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ConfigError(
            f"{path} must hold `key: value` lines. Correct it, or set it aside with `mlx-stack config reset --yes`"
        )
    return {str(name): value for name, value in mapping.items()}


def load(home: Home, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of `home`. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    found: dict[str, tuple[Any, str]] = {}
    warnings: list[str] = []
    where = str(home.config)
    for name, written in read_file(home.config).items():
        key = find_key(name, where)
        if key.name in found and name != key.name:
            continue  # `port` and `litellm-port` both there: ours counts
        if written is not None:
            found[key.name] = (read_value(key, written, where), "config.yaml")
    ignored = [key.name for key in KEYS if key.ignored and key.name in found]
    if ignored:
        warnings.append(f"no effect here, ignored: {', '.join(ignored)}")
    variables = {alias.replace("-", "_").upper(): alias for alias in reversed(BY_NAME)}  # ours last: it counts
    for tail, alias in variables.items():
        variable = ENVIRONMENT_PREFIX + tail
        if variable in environment:
            key = BY_NAME[alias]
            found[key.name] = (read_value(key, environment[variable], f"the environment ({variable})"), variable)
    filled = {key.field: found[key.name][0] if key.name in found else key.default for key in KEYS}
    filled["node_name"] = filled["node_name"] or host_name()
    filled["model_dir"] = home.root / (filled["model_dir"] or "models")
    sources = {key.name: found[key.name][1] if key.name in found else "default" for key in KEYS}
    return Config(**filled, sources=sources, warnings=(*warnings, *_strange_variables(environment, variables)))


def _strange_variables(environment: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """A warning, not an error, per variable that looks like a misspelt key: others may use the prefix too."""
    result = []
    for variable in sorted(environment):
        tail = variable.removeprefix(ENVIRONMENT_PREFIX)
        if tail != variable and tail not in known and tail != "HOME":
            near = difflib.get_close_matches(tail, known, n=1, cutoff=0.8)
            if near:
                result.append(f"{variable} is no setting: did you mean {ENVIRONMENT_PREFIX}{near[0]}?")
    return result


def masked(secret: str) -> str:
    """A secret as it may be shown: its first and last three characters."""
    return f"{secret[:3]}****{secret[-3:]}" if len(secret) > 8 else "****" if secret else ""


def shown(key: Key, value: Any) -> Any:
    """`value` as it may be printed: plain data, secrets masked, paths as text."""
    if key.secret:
        return masked(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def set_values(home: Home, changes: Mapping[str, object]) -> dict[str, Any]:
    """Writes `changes` (key -> value as written; None removes the key) into config.yaml and returns the typed values.

    Everything else in the file stays as it is, comments included. Raises ConfigError; then nothing is written.
    """
    after, typed, names = read_file(home.config), {}, set[str]()
    for name, written in changes.items():
        key = find_key(name)
        for alias in (key.name, *key.also):
            after.pop(alias, None)
            names.add(alias)
        if written is not None:
            typed[key.name] = read_value(key, written)
            after[key.name] = _for_file(written, typed[key.name])
    content = home.config.read_text(encoding="utf-8") if home.config.exists() else ""
    edited = _edit(content, names, {key: value for key, value in after.items() if key in typed})
    try:
        same = (yaml.safe_load(edited) or {}) == after
    except yaml.YAMLError:
        same = False
    if not same:  # written in a way that lines cannot show, {like: this}: then comments are lost, values are not
        edited = yaml.safe_dump(after, sort_keys=False, allow_unicode=True)
    try:
        write_atomic(home.config, edited)
    except OSError as error:
        raise ConfigError(f"{home.config} cannot be written: {error.strerror}") from error
    return typed


def _for_file(written: object, typed: Any) -> Any:
    """What YAML shall hold: the typed value, but "24 GB" and "5m" as the person wrote them."""
    if isinstance(typed, int | float) and not isinstance(typed, bool) and isinstance(written, str):
        return written.strip() if written.strip()[-1:].isalpha() else typed
    return list(typed) if isinstance(typed, tuple) else str(typed) if isinstance(typed, Path) else typed


def _edit(content: str, names: set[str], new: Mapping[str, Any]) -> str:
    """`content` without the top-level entries `names` and with `new` in the place of the first, or at the end."""
    kept: list[str] = []
    place: int | None = None
    dropping = False
    for line in content.splitlines():
        match = re.match(r"""(['"]?)([A-Za-z0-9_-]+)\1\s*:(\s|\Z)""", line)
        if match:
            dropping = match[2] in names
        elif line and not line[0].isspace() and not line.startswith("-"):
            dropping = False  # a comment or a document mark at the margin belongs to what follows
        if dropping:
            place = len(kept) if place is None else place
        else:
            kept.append(line)
    added = yaml.safe_dump(dict(new), sort_keys=False, allow_unicode=True).splitlines() if new else []
    place = len(kept) if place is None else place
    return "".join(line + "\n" for line in [*kept[:place], *added, *kept[place:]])


def reset(home: Home) -> Path | None:
    """Back to the defaults: config.yaml is set aside; returns where, None when there was none. Raises ConfigError."""
    try:
        return move_aside(home.config) if home.config.exists() else None
    except OSError as error:
        raise ConfigError(f"{home.config} cannot be moved aside: {error.strerror}") from error
