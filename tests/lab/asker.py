"""A client: the official `openai` package asking one URL, run as a program inside a namespace (macs.Asker starts it).

Its argument is JSON. It prints `ready`, waits for a line on its input, then `open` as each request begins and one
JSON line as it ends. The end of its input, or a second line, means: no further requests.
"""

import json
import sys
import threading
import time
from typing import Any

import openai


def ask(client: openai.OpenAI, wanted: dict[str, Any]) -> dict[str, Any]:
    question = {
        "model": wanted["model"],
        "messages": [{"role": "user", "content": "Tell me something, zq7marmalade."}],
        "max_tokens": wanted["max_tokens"],
        "temperature": 0,
    }
    if not wanted["stream"]:
        answer = client.chat.completions.create(**question)
        assert answer.choices[0].finish_reason in ("length", "stop"), answer.choices[0]
        return {"text": answer.choices[0].message.content, "chunks": 1}
    text, chunks, reason = "", 0, None
    with client.chat.completions.create(**question, stream=True) as stream:
        for chunk in stream:
            chunks += 1
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    assert reason in ("length", "stop"), "the stream ended without a reason"
    return {"text": text, "chunks": chunks}


def main() -> None:
    wanted = json.loads(sys.argv[1])
    saying, over = threading.Lock(), threading.Event()

    def say(text: str) -> None:
        with saying:
            print(text, flush=True)

    def work() -> None:
        client = openai.OpenAI(
            base_url=wanted["url"],
            api_key="sk-zq7-not-to-be-written-anywhere",
            max_retries=wanted["retries"],
            timeout=openai.Timeout(120, connect=2),
        )
        done = 0
        while not over.is_set() and (not wanted["count"] or done < wanted["count"]):
            say("open")
            start, result = time.monotonic(), {}
            try:
                result = ask(client, wanted)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test reads it
                result = {"error": f"{type(error).__name__}: {error}"}
            say(json.dumps({"start": start, "end": time.monotonic(), "stream": wanted["stream"], **result}))
            done += 1
            over.wait(wanted["pause_s"])

    def listen() -> None:
        sys.stdin.readline()
        over.set()

    say("ready")
    sys.stdin.readline()
    threading.Thread(target=listen, daemon=True).start()
    workers = [threading.Thread(target=work) for _ in range(wanted["workers"])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


main()
