"""Transcripts in a page of Markdown: files to write, commands to type, and what they print.

The rules are those that the page itself states. A block ``python`` or ``toml`` whose first line is
a comment with a file's name is that file. In a block ``console`` a line that begins with ``$`` is a
command, and what follows is its output: ``...`` matches any text, the folder in which commands
are typed is called HOME, progress bars are left out, and an exit code other than 0 follows the
output in brackets. While a page is served, a line that begins with ``>`` describes steps in the
browser: texts in quotation marks are typed, names of keys are pressed, and ``->`` precedes the text
that the page then shows.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

HOME = "/home/ann"
BLOCK = re.compile(r"^```(python|toml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BAR = re.compile(r"\d+%\||\[[^\]]*(?:it|item|step)/s|^$")
"""Lines of the standard error that are left out: progress, and what is empty."""
DONE = re.compile(r"> (\w+): (.*) -> (.*)")
KEY = re.compile(r'"([^"]*)"|(\S+)')
NAMED = re.compile(r"# (\w+\.(?:py|toml))\n")
SHIMS = {
    # Only these scripts see the replacement of the hub; starlearn itself has the real library.
    "python": 'PYTHONPATH="$PWD/.hub:$PYTHONPATH" exec "{python}" "$@"',
    "starlearn": 'exec "{python}" -c "from starlearn.cli.app import app; app()" "$@"',
}


@dataclass
class Command:
    """A command of a transcript, and the output that the page shows for it."""

    line: str
    shown: list[str] = field(default_factory=list)


def section(page: str, title: str) -> str:
    """Return the part of a page under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section {title!r}"
    return found[1]


def files_of(text: str) -> dict[str, str]:
    """Return the files that a part of a page shows, by name."""
    named = {}
    for kind, body in BLOCK.findall(text):
        found = NAMED.match(body)
        if kind != "console" and found:
            named[found[1]] = body
    return named


def commands_of(text: str) -> list[Command]:
    """Return the commands of a part of a page, in order."""
    commands: list[Command] = []
    for kind, body in BLOCK.findall(text):
        open_line = False
        for line in body.splitlines() if kind == "console" else []:
            if open_line:
                commands[-1].line += line
            elif line.startswith("$ "):
                commands.append(Command(line[2:]))
            else:
                commands[-1].shown.append(line)
            open_line = line.endswith("\\") and (open_line or line.startswith("$ "))
            if open_line:
                commands[-1].line = commands[-1].line[:-1]
    return commands


def run(command: Command, folder: Path) -> str:
    """Run a command in a folder and return what it prints, in the page's form.

    What ends in a plain call of starlearn runs in this process, which is much faster.
    """
    before, _, call = ("| " + command.line).rpartition("| starlearn ")
    if call and not call.startswith("| "):
        from starlearn.cli.app import app

        typed = _shell(before[2:], folder).stdout if before else ""
        result = CliRunner().invoke(app, shlex.split(os.path.expandvars(call)), input=typed)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        printed, output, code = result.stdout, result.stderr, result.exit_code
    else:
        finished = _shell(command.line, folder)
        printed, output, code = finished.stdout, finished.stderr, finished.returncode
    lines = [line + "\n" for line in output.splitlines() if not BAR.search(line)]
    printed = (printed + "".join(lines)).replace(str(folder), HOME)
    printed = printed.removeprefix("\ufeff")  # a byte-order mark, which no terminal shows
    return printed + (f"[exit code {code}]\n" if code else "")


def run_in_browser(command: Command, folder: Path, chromium: Any) -> str:
    """Run a command that serves a page, do the steps of the transcript, and end it by Ctrl-C."""
    from playwright.sync_api import expect

    call = [sys.executable, "-c", "from starlearn.cli.app import app; app()"]
    typed = shlex.split(command.line.removeprefix("starlearn "))
    pages: dict[str, Any] = {}
    output = ""
    with subprocess.Popen([*call, *typed], cwd=folder, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            while "Ctrl-C" not in output:
                line = served.stdout.readline()
                assert line, output
                output += line
            address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", output)
            assert address
            for who, what, feedback in (DONE.findall(line)[0] for line in done_in(command)):
                if who not in pages:
                    pages[who] = chromium.new_context().new_page()
                    pages[who].goto(address[0])
                    pages[who].fill("#name", who)
                    pages[who].keyboard.press("Enter")
                    expect(pages[who].locator("header")).to_contain_text(who)
                for text, key in KEY.findall(what):
                    if key:
                        pages[who].keyboard.press(key.replace("Ctrl", "Control"))
                    else:
                        pages[who].keyboard.type(text)
                expect(pages[who].locator("#status")).to_contain_text(feedback)
            served.send_signal(signal.SIGINT)
            output += served.communicate(timeout=120)[0]
        finally:
            served.kill()
            for page in pages.values():
                page.context.close()
    assert served.returncode == 0
    return output.replace(str(folder), HOME)


def done_in(command: Command) -> list[str]:
    """Return what is done in the browser while a command runs."""
    return [line for line in command.shown if DONE.match(line)]


def _shell(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    shims = folder / ".bin"
    shims.mkdir(exist_ok=True)
    for name, body in SHIMS.items():
        shim = shims / name
        shim.write_text("#!/bin/sh\n" + body.format(python=sys.executable) + "\n")
        shim.chmod(0o700)
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "PYTHONPATH": path}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
