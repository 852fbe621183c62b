"""Where the weights of a model are on this disk, and whether they are all there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from mesh.config import Config
from mesh.home import Home
from node.download import MARKER

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


class _Index(Struct):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


class Found(Struct, frozen=True):
    """`path` of the weights; of those that are not on this disk, the id under which the `hub` has them."""

    path: str = ""
    hub: str = ""


def find(model: str, source: str, home: Home, config: Config, *, check: bool = True) -> Found:
    """The directory with the weights: `models/<model>`, `models/<last part of source>`, `source`, `model`, each a
    directory or the id of a model in the local hub cache; without any, the id to fetch. Without `check` anything that
    exists there will do, a file too: engines we cannot read have formats of their own. Raises ValueError: what is
    missing and what to do."""
    candidates = [config.model_dir / model]
    if source:
        candidates.append(config.model_dir / Path(source).name)
    for written in filter(None, (source, model)):
        candidates.append(home.root / Path(written).expanduser())
        if HUB_ID.match(written):
            candidates.append(hub_snapshot(written) or Path(os.devnull))
    incomplete = ""
    for candidate in candidates:
        if not check and candidate.exists() and not candidate.samefile(os.devnull):
            return Found(str(candidate))
        if candidate.is_dir():
            problem = directory_problem(candidate)
            if not problem:
                return Found(str(candidate))
            incomplete = incomplete or problem
    hub_id = next((w for w in (source, model) if HUB_ID.match(w)), None)
    if hub_id and not (source or model).startswith((".", "/", "~")):
        return Found(hub=hub_id)
    if incomplete:
        raise ValueError(incomplete)
    places = " nor ".join(dict.fromkeys((str(config.model_dir / model), source or model)))
    raise ValueError(f"no weights: no directory {places}; put them there or correct `source`")


def directory_problem(path: Path) -> str:
    """Why a directory holds no servable model, "" when it does: config.json and every shard must be there."""
    if not path.is_dir():
        return f"{path} is not a directory"
    if not (path / "config.json").is_file():
        return f"{path} holds no model: config.json is missing"
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
        except (ValueError, RecursionError, OSError):
            return f"{index} is damaged; download the model again"
        absent = sorted(shard for shard in shards if not _is_there(path, shard))
        if absent:
            return f"{path} is incomplete: {absent[0][:100]} is missing ({len(absent)} of {len(shards)} shards)"
    elif not any(file.is_file() for file in path.glob("*.safetensors")):
        return f"{path} holds no weights: no .safetensors file"
    return ""


def _is_there(path: Path, shard: str) -> bool:
    try:
        return (path / shard).is_file()
    except (OSError, ValueError):  # a name that no disk takes
        return False


def hub_snapshot(hub_id: str) -> Path | None:
    """Where the local Hugging Face cache holds this model, None if it does not, or while it is being fetched. Read
    without huggingface_hub, which takes longer to import than a command may run; the layout is documented
    ("Understand caching")."""
    environment = os.environ
    hub_home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    named = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(named or Path(hub_home) / "hub").expanduser().resolve()  # as huggingface_hub names what it fetched
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    if (folder / MARKER).exists():
        return None
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None
