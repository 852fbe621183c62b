import pytest

from node.io.diagnosis import PORT_TAKEN, cause_of, diagnose

TRACEBACK = "Loading\nTraceback (most recent call last):\n  File 'x.py', line 1\n"


@pytest.mark.parametrize(
    ("exit_code", "tail", "said"),
    [
        (
            -6,
            "libc++abi: terminating due to uncaught exception: [METAL] ... Insufficient Memory (0008)",
            "out of memory",
        ),
        (1, TRACEBACK + "OSError: [Errno 98] Address already in use", PORT_TAKEN),
        (70, TRACEBACK + "RuntimeError: [load_safetensors] Invalid json header", "bad weights"),
        (70, TRACEBACK + "ValueError: Missing 9 parameters:", "bad weights"),
        (70, TRACEBACK + "ValueError: Couldn't instantiate the backend tokenizer from one of:", "tokenizer"),
        (70, TRACEBACK + "ValueError: Model type zzz not supported.", "not supported"),
        (70, TRACEBACK + "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find", "not downloaded"),
        (1, TRACEBACK + "ModuleNotFoundError: No module named 'vllm_mlx'", "package"),
        (127, "cannot run nonsense: No such file or directory", "cannot run nonsense"),
    ],
)
def test_causes_are_named(exit_code: int, tail: str, said: str) -> None:
    found = diagnose(exit_code, tail)
    assert said in found
    assert tail.splitlines()[-1] in found


def test_a_kill_says_who_may_have_done_it() -> None:
    assert "SIGKILL" in diagnose(-9, "")
    assert "memory" in diagnose(-9, "")
    assert diagnose(-15, "") == "ended by SIGTERM"


def test_what_a_killed_process_said_before_is_no_reason() -> None:
    warned = "/x/server.py:30: UserWarning: mlx_lm.server is not for production\n  warnings.warn("
    assert diagnose(-9, f"{warned}\nready") == diagnose(-9, "")
    assert "out of memory" in diagnose(-9, "MemoryError: cannot allocate")
    assert diagnose(3, warned) == "exit code 3"


def test_without_words_the_exit_code_is_all_there_is() -> None:
    assert diagnose(3, "") == "exit code 3"
    assert diagnose(None, "") == "no reason given"


def test_an_earlier_warning_is_not_taken_for_the_cause() -> None:
    tail = "UserWarning: the tokenizer is slow\n" + TRACEBACK + "RuntimeError: division failed\n"
    assert diagnose(1, tail) == "RuntimeError: division failed; exit code 1"


def test_routine_is_not_taken_for_last_words() -> None:
    work = "2026-11-20 07:18:44,039 - INFO - Prompt processing progress: 1/1\n"
    asked = '127.0.0.1 - - [20/Nov/2026 07:18:44] "POST /v1/completions HTTP/1.1" 200 -\n'
    assert diagnose(-15, work + asked) == "ended by SIGTERM"
    assert diagnose(-15, "something odd\n" + work).startswith("something odd")


@pytest.mark.parametrize(
    ("why", "cause"),
    [
        ("model m: out of memory (RuntimeError: [metal::malloc] ...); exit code 1", "oom"),
        ("model m: its port is taken (OSError: [Errno 48] ...); exit code 1", "port_taken"),
        ("model m: the model is not downloaded (...); exit code 70", "not_found"),
        ("model m: there is no directory /nowhere", "not_found"),
        ("model m: /x is no model directory: config.json: No such file or directory", "not_found"),
        ("model m: bad weights (ValueError: Missing 3 parameters); exit code 70", "bad_weights"),
        ("/x/model.safetensors is incomplete: 5 of 9 bytes (download it again)", "bad_weights"),
        ("model m: its tokenizer is missing or broken (...); exit code 70", "bad_weights"),
        ("model m: it was not ready after 600 s; no reason given", "start_timeout"),
        ("not ready within 900 s", "start_timeout"),
        ("ended by SIGKILL, by a person or by the system for want of memory", "killed"),
        ("it hangs: no token for 61 s with 2 in flight", "hang"),
        ("it has not answered 15 questions in a row", "hang"),
        ("a probe failed: the model server closed the stream before its end", "hang"),
        ("ZeroDivisionError: division by zero; exit code 1", "crash"),
        ("exit code 3 (5 failures within 600 s: `models load` tries again)", "crash"),
    ],
)
def test_the_cause_in_one_word(why: str, cause: str) -> None:
    assert cause_of(why) == cause
