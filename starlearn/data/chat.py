"""Chat prompts by the tokenizer's own template, which comes with the model and is not trusted."""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlearn.errors import InputError

MARKER = "STARLEARN-USER-MESSAGE"
TODAY = "2024-07-26"
"""Fixed date shown to chat templates, so that scores do not change at midnight; Llama's default."""
MAX_CHARACTERS, MAX_MEMORY = 100_000, 2**30
"""Limits of what a template may render, and of the bytes that its process may use."""
MAX_SECONDS, MAX_WAIT = 20, 120
"""Limits of processor time and of time on the clock. The second leaves room for a busy machine, and
is the only one on Windows; the process is then killed."""
RENDERER = Path(__file__).with_name("chat_renderer.py")


def in_chat(tokenizer: Any, prompt: str, system: str | None) -> str:
    """Return a prompt template with the text that a chat template puts around a user's message.

    `prompt` has fields in braces, the system's message is plain text. The chat template comes with
    the model. It runs in Jinja's sandbox, in a process of its own that is killed at a time limit.
    The text around the message is the same for all items, so it runs once per template and system
    message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "chat=True needs a tokenizer with a chat template, and this model's has none. "
            "Set chat=False, or use a model that was tuned for chat."
        )
    messages = [{"role": "user", "content": MARKER}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text, length = _rendered(tokenizer, messages)
    pieces = text.split(MARKER)
    if len(pieces) != 2 or length > MAX_CHARACTERS:
        raise InputError(
            "The tokenizer's chat template does not show the user's message exactly once "
            f"({len(pieces) - 1} times, {length} characters). Set chat=False and write "
            "the turns into the prompt."
        )
    if system is not None and system.strip() not in pieces[0]:
        raise InputError(
            "The tokenizer's chat template does not show the system message. Set system=None and "
            "write the message into the prompt."
        )
    return escaped(pieces[0]) + prompt + escaped(pieces[1])


def escaped(text: str) -> str:
    """Return a text with its braces doubled, so that a template shows it unchanged."""
    return text.replace("{", "{{").replace("}", "}}")


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, int]:
    """Return messages as text, at most MAX_CHARACTERS of it, and the length of the whole text."""
    try:
        request = {
            "template": tokenizer.get_chat_template(),
            "messages": messages,
            "names": tokenizer.special_tokens_map,
            "day": TODAY,
            "seconds": MAX_SECONDS,
            "memory": MAX_MEMORY,
            "characters": MAX_CHARACTERS,
            "path": [str(Path(entry).absolute()) for entry in sys.path],
        }
        found = _run(json.dumps(request, default=str), MAX_WAIT)
        why = f"fails ({found['error']})" if "error" in found else None
    except subprocess.TimeoutExpired:
        why = f"takes longer than {MAX_WAIT:g} s"
    except subprocess.CalledProcessError as error:
        # A negative code is a signal: the system ends a process that exceeds its limits.
        why = f"cannot be rendered ({error.stderr[-200:].strip() or 'the process was ended'})"
        if error.returncode < 0:
            why = f"uses more than {MAX_SECONDS:g} s of processor time or too much memory"
    except (ValueError, OSError) as error:
        why = f"cannot be rendered ({type(error).__name__}: {error!s:.200})"
    if why is None:
        return found["text"], found["length"]
    hint = " It may not allow a system message: set system=None." if len(messages) > 1 else ""
    raise InputError(
        f"The tokenizer's chat template {why}.{hint} Set chat=False and write the turns into the "
        "prompt, or use a model from a source that you trust."
    )


@lru_cache(maxsize=64)
def _run(request: str, seconds: float) -> dict[str, Any]:
    """Return the renderer's response to a request; its process is killed after some seconds.

    The limits on processor time and memory hold on Linux. macOS has no limit on memory, Windows has
    neither, but the time limit holds on all of them, and Ctrl-C ends the wait.
    """
    # -I and -S: nothing but the standard library is imported before the limits are set.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(RENDERER)],
        input=request,
        capture_output=True,
        timeout=seconds,
        check=True,
        encoding="utf-8",
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
