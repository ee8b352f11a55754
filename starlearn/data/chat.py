"""A prompt as the user's message in a chat, by the tokenizer's template, which is not trusted."""

import ctypes
import json
import threading
from datetime import datetime
from typing import Any

from starlearn.errors import InputError

MARKER = "STARLEARN-USER-MESSAGE"
TODAY = datetime(2024, 7, 26)
"""What a template that asks is told, the day to which Llama's own falls back: scores, adapters and
what is kept must not change at midnight."""
_REPLACED = "".join(
    f".replace('%{part}', {json.dumps(TODAY.strftime(f'%{part}'))})"
    for part in [*"aAbBcdeDfFGHIjmMnpSTuUVwWxXyYzZ", *(f"-{letter}" for letter in "dHIjmMSy")]
)
_DAY = f"{{{{ format{_REPLACED}.replace('%%', '%') }}}}"
ON_ONE_DAY = f"{{% macro strftime_now(format) %}}{_DAY}{{% endmacro %}}\n"
"""What goes before a template, to which no function can be handed. Its line ends with a block, so
that the template still begins a line."""
LONGEST, SECONDS = 100_000, 20.0
"""What a template may render: characters, and how long it may take."""


def in_chat(tokenizer: Any, prompt: str, system: str | None) -> str:
    """Return a prompt template between the turns that the tokenizer's chat template puts around it.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
    prompt : str
        Template with fields in braces.
    system : str or None
        The system's message, plain text.

    Returns
    -------
    str
        The same template with what stands before and after it in a chat.

    Raises
    ------
    InputError
        When there is no chat template, or it fails, takes too long, renders too much, or does not
        show the messages once each. It comes with the model, so it may be anything: it runs in
        transformers' sandbox, and for a limited time.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "chat=True needs a tokenizer with a chat template, and this one has none. "
            "Use chat=False, or a model that was tuned for chat."
        )
    messages = [{"role": "user", "content": MARKER}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    rendered = _rendered(tokenizer, messages)
    pieces = rendered.split(MARKER)
    if len(pieces) != 2 or len(rendered) > LONGEST:
        raise InputError(
            "The tokenizer's chat template does not show the user's message exactly once "
            f"({len(pieces) - 1} times, {len(rendered)} characters). Use chat=False and write "
            "the turns into the prompt."
        )
    if system is not None and system.strip() not in pieces[0]:
        raise InputError(
            "The tokenizer's chat template does not show a system message. Use system=None and "
            "write it into the prompt."
        )
    return escaped(pieces[0]) + prompt + escaped(pieces[1])


def escaped(text: str) -> str:
    """Return a text that stands for itself in a template."""
    return text.replace("{", "{{").replace("}", "}}")


class _TooLong(BaseException):
    """Ends the thread of a template; no Exception, so that nothing in between takes it for one."""


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Render in a thread of its own: one that never ends can be left, and told to stop."""
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
        # A template may raise anything; what it is stands in the message below.
        except Exception as error:  # noqa: BLE001
            errors.append(error)
        except _TooLong:
            return

    thread = threading.Thread(target=render, daemon=True, name="chat template")
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        stop = ctypes.py_object(_TooLong)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)
        why = f"takes longer than {SECONDS:g} s"
    elif errors:
        why = f"fails ({type(errors[0]).__name__}: {errors[0]!s:.200})"
    else:
        return found[0]
    hint = " It may have no system's turn: use system=None." if len(messages) > 1 else ""
    raise InputError(
        f"The tokenizer's chat template {why}.{hint} Use chat=False and write the turns into the "
        "prompt, or take the model from a source that you trust."
    ) from (errors[0] if errors else None)
