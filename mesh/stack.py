"""stacks/default.yaml -> what each model of this node is (ModelSpec), weights found, engines resolved.

One bad tier never takes the others with it: it becomes a spec with a `problem`. Only a file that cannot be understood
at all is an error.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from mesh import plain_yaml, values, weights
from mesh.config import YAML_ERRORS, Config, ConfigError
from mesh.files import write_atomic
from mesh.home import Home
from node.io.engine import ModelSpec

SCHEMA_VERSION = 1
ENGINES = ("mlx-lm", "command", "external")
# Engines that are a command line we know; the first word must be installed.
PRESETS: dict[str, tuple[str, ...]] = {
    "vllm-mlx": ("vllm-mlx", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
    "mlx-openai-server": (
        *("mlx-openai-server", "launch", "--model-path", "{model}"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    "mlx_vlm.server": ("mlx_vlm.server", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
}
_KNOWN = {
    *("name", "model", "quant", "source", "port", "vllm_flags"),  # the older mlx-stack's
    *("engine", "command", "url", "aliases", "paths", "fallback", "pinned", "keep-alive", "slots", "context"),
    *("extra-args", "weights"),
}
_KNOWN_ABOVE = {"schema_version", "name", "tiers"}  # beside the tiers
_IGNORED_ABOVE = {"hardware_profile", "intent", "created", "cloud_fallback"}  # the older mlx-stack's


class Stack(Struct, frozen=True, kw_only=True):
    """What the stack file asks for. `tiers` maps each tier's name to the MODEL.name that answers for it."""

    specs: tuple[ModelSpec, ...] = ()
    tiers: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    found: bool = False  # there is a stack file


def read_file(path: Path) -> dict[str, Any] | None:
    """The stack file as written; None when there is none. Raises ConfigError when it cannot be understood."""
    try:
        document = plain_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path} is not valid YAML{line}; correct it or move it away") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must be a mapping with `schema_version` and `tiers`; correct it or move it away")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        said = plain_yaml.shortly(version)
        raise ConfigError(f"{path} has schema_version {said}; this mlx-stack reads version {SCHEMA_VERSION} only")
    if not isinstance(document.get("tiers") or [], list):
        raise ConfigError(f"{path}: `tiers` must be a list")
    return document


def load(
    home: Home, config: Config, *, tiers: Sequence[str] = (), which: Callable[[str], str | None] = shutil.which
) -> Stack:
    """The models of this node; `tiers` keeps only those tiers. No stack file: no models. Raises ConfigError."""
    document = read_file(home.stack)
    if document is None:
        return Stack()
    reader = _Reader(home, config, which)
    reader.read(document)
    missing = [tier for tier in tiers if tier not in reader.tiers]
    if missing:
        raise ConfigError(f"no tier '{missing[0]}' in {home.stack}: it has {', '.join(reader.tiers) or 'none'}")
    wanted = {reader.tiers[tier] for tier in tiers or reader.tiers}
    return Stack(
        specs=tuple(spec for spec in reader.specs.values() if spec.name in wanted),
        tiers={tier: name for tier, name in reader.tiers.items() if name in wanted and (not tiers or tier in tiers)},
        warnings=(*reader.summary(), *reader.warnings),
        found=True,
    )


class _Reader:
    """Collects specs: names stay unique, tiers with the same weights and engine share one spec."""

    def __init__(self, home: Home, config: Config, which: Callable[[str], str | None]) -> None:
        self._home, self._config, self._which = home, config, which
        self.specs: dict[str, ModelSpec] = {}  # by name
        self.tiers: dict[str, str] = {}
        self.warnings: list[str] = []
        self._ignored: dict[str, None] = {}  # keys without effect here, in their order
        self._for_vllm: list[str] = []  # tiers whose flags are for an engine that is not installed

    def read(self, document: Mapping[str, Any]) -> None:
        self._look_above(document)
        for number, tier in enumerate(document.get("tiers") or [], start=1):
            self._add(tier, number)

    def owner(self, name: str, tier: str) -> str:
        """The model that has this name or alias, "" for none and for that of `tier`."""
        others = (s for s in self.specs.values() if s.name != self.tiers[tier])
        return next((s.name for s in others if name in (s.name, *s.aliases)), "")

    def _look_above(self, document: Mapping[str, Any]) -> None:
        """The file's keys beside `tiers`."""
        self._ignored.update(dict.fromkeys(key for key in document if key in _IGNORED_ABOVE))
        unknown = sorted(str(key) for key in set(document) - _KNOWN_ABOVE - _IGNORED_ABOVE)
        if unknown:
            self.warnings.append(f"unknown in the stack file: {', '.join(unknown)}")

    def summary(self) -> list[str]:
        """What concerns several tiers, said once."""
        found = []
        if self._ignored:
            found.append(f"no effect here, ignored in the stack file: {', '.join(self._ignored)}")
        if self._for_vllm:
            whose = ", ".join(f"'{tier}'" for tier in self._for_vllm)
            found.append(f"vllm_flags of {whose}: vllm-mlx is not installed, mlx-lm serves without them")
        return found

    def _add(self, tier: object, number: int) -> None:
        label = f"tier {number}"
        if not isinstance(tier, dict):
            name = self._free_name(label)
            self.specs[name] = ModelSpec(name=name, problem=f"{label} of the stack file must be a mapping")
            self.tiers[name] = name
            return
        fields = {str(key).replace("_", "-") if key != "vllm_flags" else key: value for key, value in tier.items()}
        model = str(fields.get("model") or fields.get("source") or "").strip()
        tier_name = str(fields.get("name") or model or label).strip()
        if tier_name in self.tiers:
            self.warnings.append(f"two tiers are called '{tier_name}': the second is ignored")
            return
        try:
            spec = self._spec(fields, tier_name, model)
        except (ValueError, OSError, RuntimeError) as error:  # a name too long for the disk, `~nobody`
            spec = ModelSpec(
                name=_model_name(model, self._home.root) or tier_name,
                source=str(fields.get("source") or model),
                engine=str(fields.get("engine") or "mlx-lm"),
                problem=str(error),
            )
        self._insert(spec, tier_name)

    def _insert(self, spec: ModelSpec, tier_name: str) -> None:
        twin = next((s for s in self.specs.values() if not spec.problem and _same_worker(s, spec)), None)
        if twin is not None:
            if _settings(twin) != _settings(spec):
                self.warnings.append(
                    f"tier '{tier_name}' shares the model of '{twin.name}': its own settings are not used"
                )
            self.specs[twin.name] = self._with_aliases(twin, [spec.name, tier_name, *spec.aliases])
            self.tiers[tier_name] = twin.name
            return
        if spec.name in self.specs:
            other = self._free_name(tier_name)
            self.warnings.append(f"two models are called '{spec.name}': that of tier '{tier_name}' is called '{other}'")
            spec = msgspec.structs.replace(spec, name=other)
        bare = msgspec.structs.replace(spec, aliases=())
        self.specs[spec.name] = self._with_aliases(bare, [tier_name, *spec.aliases])
        self.tiers[tier_name] = spec.name

    def _with_aliases(self, spec: ModelSpec, wanted: Sequence[str]) -> ModelSpec:
        """Adds the aliases that no other model of this node has."""
        aliases = list(spec.aliases)
        for alias in wanted:
            owner = next(
                (s for s in self.specs.values() if s.name != spec.name and alias in (s.name, *s.aliases)), None
            )
            if owner is not None:
                self.warnings.append(f"'{alias}' already names '{owner.name}': not an alias of '{spec.name}'")
            elif alias != spec.name and alias not in aliases:
                aliases.append(alias)
        return msgspec.structs.replace(spec, aliases=tuple(aliases))

    def _free_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.specs:
            count += 1
            name = f"{wanted}#{count}"
        return name

    def _spec(self, fields: Mapping[str, Any], tier_name: str, model: str) -> ModelSpec:
        """One tier. Raises ValueError with what is wrong, for people."""
        unknown = sorted(set(fields) - _KNOWN)
        if unknown:
            self.warnings.append(f"tier '{tier_name}': unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)}")
        if fields.get("quant"):
            self._ignored["quant"] = None
        if not model:
            raise ValueError("`model` is missing: say which weights this tier serves")
        engine, command = self._engine(fields, tier_name)
        source = str(fields.get("source") or model)
        context = _read(fields, "context", values.whole(0), 0)
        shared = ModelSpec(
            name=model if engine == "external" else _model_name(model, self._home.root),
            aliases=_read(fields, "aliases", values.texts, ()),
            engine=engine,
            source=source,
            command=command,
            port=_read(fields, "port", values.whole(0, 65535), 0),
            slots=_read(fields, "slots", values.whole(0, 1024), 0),
            context=context,
            extra_args=_read(fields, "extra-args", _arguments, ()),
            paths=_read(fields, "paths", values.texts, ()),
            fallback=_read(fields, "fallback", values.texts, ()),
            pinned=_read(fields, "pinned", values.boolean, False),
            keep_alive=_read(fields, "keep-alive", values.seconds(None), None),
            weights=_read(fields, "weights", values.text, ""),
        )
        if engine == "external":
            return msgspec.structs.replace(shared, url=_url(fields.get("url")), port=0)
        if engine == "command" and not any("{model}" in word for word in command):
            return shared  # what it serves is its own affair
        written = str(fields.get("source") or "")
        found = weights.find(model, written, self._home, self._config, check=engine == "mlx-lm")
        return msgspec.structs.replace(shared, path=found.path, hub=found.hub)

    def _engine(self, fields: Mapping[str, Any], tier_name: str) -> tuple[str, tuple[str, ...]]:
        """(engine, command) of a tier. Raises ValueError."""
        flags = _flags(fields.get("vllm_flags"))
        engine = str(fields.get("engine") or "").strip()
        if not engine and fields.get("command"):
            engine = "command"
        if not engine and fields.get("url"):
            engine = "external"
        if not engine and fields.get("vllm_flags") is not None:
            if self._which("vllm-mlx") is not None:
                return "command", (*PRESETS["vllm-mlx"], *flags)
            self._for_vllm.append(tier_name)
        engine = engine or "mlx-lm"
        if engine in PRESETS:
            command = PRESETS[engine] + (flags if engine == "vllm-mlx" else ())
            engine = "command"
        elif engine == "command":
            command = _read(fields, "command", _arguments, ())
            if not any("{port}" in word for word in command):
                raise ValueError("`command` must be the words to run, with {port} (and {model}) where they belong")
        elif engine in ENGINES:
            return engine, ()
        else:
            raise ValueError(f"unknown engine '{engine}': use {', '.join((*ENGINES, *PRESETS))}")
        if self._which(str(Path(command[0]).expanduser())) is None:
            raise ValueError(
                f"'{command[0]}' is not installed: install it or correct the path, then `mlx-stack models load`"
            )
        return engine, command


def _read(fields: Mapping[str, Any], name: str, read: Callable[[object], Any], default: Any) -> Any:
    if fields.get(name) is None:
        return default
    try:
        return read(fields[name])
    except ValueError as error:
        raise ValueError(f"`{name}` must be {error}, not {plain_yaml.shortly(fields[name])}") from None


def _arguments(value: object) -> tuple[str, ...]:
    """The words of a command line: a YAML list, or one text split as a shell would."""
    if not isinstance(value, str):
        return _passable(values.texts(value))
    try:
        words = shlex.split(value)
    except ValueError:
        raise ValueError("words with matching quotes") from None
    return _passable(words)


def _passable(words: Sequence[str]) -> tuple[str, ...]:
    """As they are, when the system can hand them to a process."""
    try:
        if any(b"\0" in os.fsencode(word) for word in words):
            raise ValueError("words without NUL, which no process can be given")
    except UnicodeEncodeError:
        raise ValueError("words that are text: half a surrogate pair is none") from None
    return tuple(words)


def _flags(written: object) -> tuple[str, ...]:
    """`vllm_flags` as the older mlx-stack has them: {use_paged_cache: true, tool_call_parser: hermes}; a list too."""
    if not isinstance(written, dict):
        return _arguments(written) if written else ()
    words: list[str] = []
    for flag, value in written.items():
        option = f"--{str(flag).replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] * value
        else:
            words += [option, str(value)]
    return _passable(words)


def _url(value: object) -> str:
    url = str(value or "").strip().rstrip("/")
    if not re.match(r"https?://[^/\s]+", url):
        raise ValueError("`url` must be the server's address, like http://127.0.0.1:8080/v1")
    return url


def _same_worker(a: ModelSpec, b: ModelSpec) -> bool:
    if a.problem or a.engine != b.engine or a.command != b.command:
        return False
    if a.engine == "external":
        return (a.url, a.name) == (b.url, b.name)
    return a.hub == b.hub and os.path.realpath(a.path) == os.path.realpath(b.path)


def _settings(spec: ModelSpec) -> tuple[object, ...]:
    return (spec.slots, spec.context, spec.extra_args, spec.paths, spec.fallback, spec.pinned, spec.keep_alive)


def _model_name(model: str, root: Path) -> str:
    """MODEL.name: the model as written, of a directory its last part."""
    path = os.path.expanduser(model)  # noqa: PTH111 - never raises, whatever the file says
    is_path = model.startswith(("/", "~", "./", "../")) or (not weights.HUB_ID.match(model) and "/" in model)
    if is_path or os.path.isdir(root / path):  # noqa: PTH112 - likewise
        return Path(path).name or model
    return model


def add_tier(home: Home, config: Config, source: str, *, name: str = "", aliases: Sequence[str] = ()) -> str:
    """Adds a tier for `source` (a directory, a name below models/, or a hub id, fetched or not) to the stack file, made
    when absent; other keys stay. Returns the tier's name. Raises ConfigError; then the file is untouched."""
    document = read_file(home.stack) or {"schema_version": SCHEMA_VERSION, "name": "default", "tiers": []}
    directory = Path(source).expanduser()
    if directory.is_dir():
        source = str(directory.absolute())
    elif source.startswith((".", "~")):
        raise ConfigError(f"{directory.absolute()} is not a directory")
    try:
        weights.find(source, "", home, config)
        tier_name = values.name(name or _model_name(source, home.root).split("/")[-1])
        for alias in aliases:
            values.name(alias)
    except ValueError as error:
        raise ConfigError(f"'{name or source}': {error}") from None
    tiers = document.get("tiers") or []
    if any(isinstance(t, dict) and str(t.get("name")) == tier_name for t in tiers):
        raise ConfigError(f"a tier '{tier_name}' is already there: choose another name with --as")
    tier: dict[str, Any] = {"name": tier_name, "model": source}
    if aliases:
        tier["aliases"] = list(aliases)
    changed = {**document, "tiers": [*tiers, tier]}
    reader = _Reader(home, config, shutil.which)
    reader.read(changed)
    for option, wanted in (("--as", name), *(("--alias", alias) for alias in aliases)):
        if wanted and (owner := reader.owner(wanted, tier_name)):
            raise ConfigError(f"'{wanted}' already names '{owner}': choose another {option}")
    _write(home, changed)
    return tier_name


def remove_tier(home: Home, name: str) -> list[str]:
    """Takes the tiers called `name`, or serving a model of that name, out of the stack file; the weights stay on disk.
    Returns the tiers' names. Raises ConfigError when there is none."""
    document = read_file(home.stack) or {}
    tiers = document.get("tiers") or []

    def names(tier: object) -> set[str]:
        if not isinstance(tier, dict):
            return set()
        model = str(tier.get("model", ""))
        return {str(tier.get("name", "")), model, _model_name(model, home.root)} - {""}

    by_tier = [t for t in tiers if isinstance(t, dict) and str(t.get("name", "")) == name]
    gone = by_tier or [t for t in tiers if name in names(t)]
    if not gone:
        known = [str(t.get("name")) for t in tiers if isinstance(t, dict)]
        raise ConfigError(f"no tier or model '{name}' in {home.stack}: it has {', '.join(known) or 'none'}")
    _write(home, {**document, "tiers": [t for t in tiers if not any(t is g for g in gone)]})
    return [str(t.get("name") or t.get("model")) for t in gone]


def _write(home: Home, document: Mapping[str, Any]) -> None:
    try:
        write_atomic(home.stack, yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(f"{home.stack} cannot be written: {error.strerror}") from error
