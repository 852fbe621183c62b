"""A small Llama in float32 that knows a few texts by heart, so that answers hold what a seam could break.

`build` trains it (a minute) on TEXTS: asked with the key of one, it says that one and ends. It reads its whole context
to know where it is, as any model does: a continuation from a wrong token or a wrong cache shows at once. Layers that
do nothing follow the trained ones, so that a stream takes seconds and can be cut in its middle.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer

from demo import making
from demo.model import build_chat

LAYERS, IDLE_LAYERS, WIDTH = 2, 10, 64
STEPS, RATE = 600, 4e-3
KNOWN, WORST = 0.02, 0.1  # nats a token, on average and at the worst one: below them every answer is certain
TAGS = {"<repo_name>": "<think>", "<reponame>": "</think>", "<file_sep>": "<tool_call>", "<filename>": "</tool_call>"}
END = 2  # <|im_end|>
# Mentions <tool_call> and tool_call.name: by these mlx_lm recognises whose tool calls are JSON.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for tool_call in message.tool_calls or [] %}{{ '<tool_call>' + tool_call.name + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_RECITED = json.loads(Path(__file__).with_name("recited.json").read_text(encoding="utf-8"))
TEXTS: dict[str, str] = _RECITED["texts"]  # by what the user says
PLAIN: tuple[str, str] = tuple(_RECITED["plain"])  # the start of a completion, and how it goes on


def build(cache: Path) -> Path:
    """The model below `cache`, trained unless it is there, and the chat model, whose tokenizer it takes. Raises
    RuntimeError when it did not learn its texts."""
    parts = (_RECITED, TEMPLATE, LAYERS, IDLE_LAYERS, WIDTH, STEPS, RATE, KNOWN, WORST)
    target = cache / f"reciter-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        work = Path(scratch, "model")
        work.mkdir()
        _write(work, build_chat(cache))
        if not target.exists():  # else somebody has built the same meanwhile
            work.rename(target)
    return target


def rendered(key: str) -> str:
    """The prompt of `key` as the chat template makes it."""
    return f"<|im_start|>user\n{key}<|im_end|>\n<|im_start|>assistant\n"


def _write(work: Path, chat: Path) -> None:
    _write_tokenizer(chat, work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    pairs = [*((rendered(key), text) for key, text in TEXTS.items()), PLAIN]
    lessons = [(tokenizer.encode(asked).ids, [*tokenizer.encode(said).ids, END]) for asked, said in pairs]
    used = sorted({token for lesson in lessons for part in lesson for token in part})
    mx.random.seed(7)
    model = llama.Model(llama.ModelArgs.from_dict(_config(LAYERS, len(used))))
    short = {token: number for number, token in enumerate(used)}
    _learn(model, [([short[t] for t in asked], [short[t] for t in said]) for asked, said in lessons])
    weights = _with_idle_layers(dict(tree_flatten(model.parameters())))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        whole = mx.zeros((making.TINY_VOCABULARY, WIDTH))  # a token without a lesson has no sense, and is never said
        whole[mx.array(used)] = weights[name]
        weights[name] = whole
    mx.save_safetensors(str(work / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = _config(LAYERS + IDLE_LAYERS, making.TINY_VOCABULARY)
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(chat: Path, work: Path) -> None:
    """The tiny demo model's, with tags of reasoning and tool calls in the place of others that nobody needs."""
    making.cut_tokenizer(chat, work)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (work / name).read_text(encoding="utf-8")
        for old, new in TAGS.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (work / name).write_text(text, encoding="utf-8")
    settings = json.loads((work / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = TEMPLATE
    (work / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _config(layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": END,
    }


def _learn(model: Any, lessons: list[tuple[list[int], list[int]]]) -> None:
    rows = [(mx.array([[*asked, *said]]), len(asked)) for asked, said in lessons]
    answers = sum(len(said) for _, said in lessons)

    def losses(model: Any) -> list[Any]:
        """Of each answer's tokens, by lesson."""
        return [nn.losses.cross_entropy(model(row[:, :-1])[:, start - 1 :], row[:, start:]) for row, start in rows]

    optimizer = optim.Adam(learning_rate=optim.cosine_decay(RATE, STEPS, RATE / 10))
    step = nn.value_and_grad(model, lambda model: sum(one.sum() for one in losses(model)) / answers)
    worst = float("inf")
    for number in range(STEPS):
        value, gradient = step(model)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, value)
        if number % 10 == 9 and value.item() < KNOWN:
            worst = max(one.max().item() for one in losses(model))
            if worst < WORST:
                return
    raise RuntimeError(f"the reciter has not learnt its texts: {worst:.2f} nats at the worst token")


def _with_idle_layers(weights: dict[str, Any]) -> dict[str, Any]:
    """The trained layers, then others whose contribution is zero."""
    last = {n: w for n, w in weights.items() if n.startswith(f"model.layers.{LAYERS - 1}.")}
    for number in range(LAYERS, LAYERS + IDLE_LAYERS):
        for name, weight in last.items():
            silent = name.endswith(("o_proj.weight", "down_proj.weight"))
            own = name.replace(f"layers.{LAYERS - 1}.", f"layers.{number}.")
            weights[own] = mx.zeros_like(weight) if silent else weight
    return weights
