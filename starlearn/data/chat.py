"""Chat prompts by the tokenizer's own template, which comes with the model and is not trusted."""

import ctypes
import json
import threading
from datetime import datetime
from typing import Any

from starlearn.errors import InputError

MARKER = "STARLEARN-USER-MESSAGE"
TODAY = datetime(2024, 7, 26)
"""Fixed date shown to chat templates, so that scores do not change at midnight; Llama's default."""
_REPLACED = "".join(
    f".replace('%{part}', {json.dumps(TODAY.strftime(f'%{part}'))})"
    for part in [*"aAbBcdeDfFGHIjmMnpSTuUVwWxXyYzZ", *(f"-{letter}" for letter in "dHIjmMSy")]
)
_DAY = f"{{{{ format{_REPLACED}.replace('%%', '%') }}}}"
ON_ONE_DAY = f"{{% macro strftime_now(format) %}}{_DAY}{{% endmacro %}}\n"
"""Definition of `strftime_now` for templates: transformers lets no caller replace the function. It
ends with a block, after which Jinja removes the newline, so that the template is unchanged."""
MAX_CHARACTERS, MAX_SECONDS = 100_000, 20.0
"""Limits of what a template may render."""


def in_chat(tokenizer: Any, prompt: str, system: str | None) -> str:
    """Return a prompt template with the text that a chat template puts around a user's message.

    `prompt` has fields in braces, the system's message is plain text. The chat template runs in
    transformers' sandbox and for a limited time, because it comes with the model.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "chat=True needs a tokenizer with a chat template, and this model's has none. "
            "Set chat=False, or use a model that was tuned for chat."
        )
    messages = [{"role": "user", "content": MARKER}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    rendered = _rendered(tokenizer, messages)
    pieces = rendered.split(MARKER)
    if len(pieces) != 2 or len(rendered) > MAX_CHARACTERS:
        raise InputError(
            "The tokenizer's chat template does not show the user's message exactly once "
            f"({len(pieces) - 1} times, {len(rendered)} characters). Set chat=False and write "
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


class _TooLong(BaseException):
    """Ends the thread of a template. Code in between cannot catch it as an Exception."""


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Render messages in a thread, so that a template that never ends can be stopped."""
    found: list[str] = []
    errors: list[Exception] = []

    def render() -> None:
        try:
            found.append(
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=ON_ONE_DAY + tokenizer.get_chat_template(),
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        # A template may raise any error; the message below names it.
        except Exception as error:  # noqa: BLE001
            errors.append(error)
        except _TooLong:
            return

    thread = threading.Thread(target=render, daemon=True, name="chat template")
    thread.start()
    thread.join(MAX_SECONDS)
    if thread.is_alive():
        # Python has no public way to end a thread: raise an exception inside it.
        stop = ctypes.py_object(_TooLong)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)
        why = f"takes longer than {MAX_SECONDS:g} s"
    elif errors:
        why = f"fails ({type(errors[0]).__name__}: {errors[0]!s:.200})"
    else:
        return found[0]
    hint = " It may not allow a system message: set system=None." if len(messages) > 1 else ""
    raise InputError(
        f"The tokenizer's chat template {why}.{hint} Set chat=False and write the turns into the "
        "prompt, or use a model from a source that you trust."
    ) from (errors[0] if errors else None)
