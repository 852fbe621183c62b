import pytest

from node.io.diagnosis import PORT_TAKEN, diagnose

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
