"""Chat templates: rendered as transformers does, once per template, in a process with limits."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import psutil
import pytest
from tiny_models import build_model
from tiny_tokenizers import CHATML, LLAMA_2

from starlearn.data import chat
from starlearn.data.tokens import encode_prompts
from starlearn.errors import InputError
from starlearn.tasks import ChoiceTask

MESSAGES = [
    {"role": "system", "content": "A 'system' message: <b>ü</b> {x}"},
    {"role": "user", "content": "STARLEARN-USER-MESSAGE"},
]
TEMPLATES = {
    "ChatML": CHATML,
    "only user": LLAMA_2,
    "special tokens": "{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}{{ pad_token }}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, ensure_ascii=True) }}",
    "namespace": (
        "{%- set ns = namespace(last='none', n=0) -%}\n{% for m in messages %}\n"
        "  {% set ns.last = m.content %}{% set ns.n = ns.n + 1 %}\n{% endfor %}\n"
        "{{ ns.n }} {{ ns.last | trim | upper }}\n"
    ),
    "loop controls": (
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m }}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}\n {{ m.content }}\n{% endgeneration %}{% endfor %}"
    ),
    "names of Python's internals": "{{ namespace(_a=1)._a }}",
    "dict": "{{ dict(a=messages[0].role) }}{{ dict.fromkeys('ab', 1) }}",
    "tools": "{% if tools is none and documents is none and add_generation_prompt %}ok{% endif %}",
    "no date": "{% if strftime_now is defined %}{{ messages | length }}{% endif %}",
}


class Tokenizer(SimpleNamespace):
    """The part of a tokenizer that rendering uses."""

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def get_chat_template(self) -> str:
        return str(self.chat_template)


def in_chat(template: str) -> str:
    return chat.in_chat(Tokenizer(chat_template=template), "{text}", None)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path / "chat"))
    tokenizer.chat_template = TEMPLATES[name]
    messages = MESSAGES[1:] if name == "only user" else MESSAGES
    if "internals" in name:
        with pytest.raises(jinja2.exceptions.SecurityError):
            tokenizer.apply_chat_template(messages, tokenize=False)
        with pytest.raises(InputError, match="SecurityError"):
            chat._rendered(tokenizer, messages)
        return
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat._rendered(tokenizer, messages) == (expected, len(expected))


def test_a_template_runs_once_for_all_chunks_of_a_pool(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path / "chat"))
    tokenizer.chat_template = "{# once #}" + CHATML
    task = ChoiceTask("{text}", chat=True)
    before = chat._run.cache_info().misses
    for item in ("sky", "sun", "sea"):
        encode_prompts(tokenizer, task, task.fill([item]), context=60, room=1)
    assert chat._run.cache_info().misses == before + 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = messages | length + 8 %}{{ n ** (n ** n) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
    ids=["constant", "computed", "loops"],
)
def test_a_template_that_never_ends_is_killed(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 3600)
    monkeypatch.setattr(chat, "MAX_WAIT", 1)
    with pytest.raises(InputError, match=r"longer than 1 s"):
        in_chat(template)
    assert not renderers(psutil.Process())


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on memory and processor time")
def test_memory_and_processor_time_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="MemoryError"):
        in_chat("{{ 'a' * 6000000000 }}")
    monkeypatch.setattr(chat, "MAX_SECONDS", 1)
    monkeypatch.setattr(chat, "MAX_WAIT", 3600)
    with pytest.raises(InputError, match="more than 1 s of processor time"):
        in_chat("{{ 9 ** (9 ** 9) }}")


def test_a_renderer_that_cannot_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match=r"cannot be rendered.*jinja2|No module named 'jinja2'"):
        in_chat("{{ messages[0].content }}{# nowhere #}")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match="cannot be rendered"):
        in_chat("{{ messages[0].content }}{# no python #}")


def test_ctrl_c_ends_a_template(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import signal\n"
        "from types import SimpleNamespace\n"
        "from starlearn.data import chat\n"
        # A shell that starts a program in the background lets it ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "chat.MAX_SECONDS = chat.MAX_WAIT = 3600\n"
        "tokenizer = SimpleNamespace(chat_template='x', special_tokens_map={})\n"
        "tokenizer.get_chat_template = lambda: '{{ 9 ** (9 ** 9) }}'\n"
        "chat.in_chat(tokenizer, '{text}', None)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stderr=subprocess.PIPE) as running:
        watched = psutil.Process(running.pid)
        while not (started := renderers(watched)):
            assert running.poll() is None
        running.send_signal(2)
        _, errors = running.communicate(timeout=120)
    assert b"KeyboardInterrupt" in errors
    psutil.wait_procs(started, timeout=60)
    assert not [process for process in started if process.is_running()]


def renderers(process: psutil.Process) -> list[Any]:
    """Return the children of a process that render a template."""
    found = []
    for child in process.children():
        try:
            if any("chat_renderer" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found
