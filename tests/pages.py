"""Pages of Markdown in the tests: their blocks of code, and the outputs that they show.

A block ``python`` or ``bash`` runs; with ``no-run: reason`` it does not. A block ``text`` after it
is its output, in which ``...`` matches any text. A block ``text example`` shows the output of one
run. There, only the form is compared, because numbers and answers depend on the machine, and on
the length of the training, which the tests shorten.
"""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

BLOCK = re.compile(r"^```([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VALUE = re.compile(r"'[^'\n]*'|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?")
"""What may differ in an example: quoted words and numbers."""


def blocks(page: str, kind: str = "") -> list[tuple[str, str]]:
    """Return the info string and the text of each block, or of those with one info string."""
    return [(info, text) for info, text in BLOCK.findall(page) if kind in ("", info)]


def with_outputs(page: str, kind: str) -> list[tuple[str, str | None, bool]]:
    """Return the blocks that run: each with the output shown, and whether it is an example."""
    found = blocks(page)
    after = [*found[1:], ("", "")]
    return [
        (text, shown if info.startswith("text") else None, info == "text example")
        for (runs, text), (info, shown) in zip(found, after, strict=True)
        if runs == kind
    ]


def run_python(
    page: str, names: dict[str, Any], changed: Callable[[str], str] = lambda code: code
) -> dict[str, Any]:
    """Run the Python of a page from top to bottom; each block must print what the page shows."""
    for code, shown, example in with_outputs(page, "python"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(changed(code), "page.md", "exec"), names)  # noqa: S102 - our own pages
        compare(code, shown, example, output.getvalue())
    return names


def compare(code: str, shown: str | None, example: bool, printed: str) -> None:
    """Fail if an output is not the one that the page shows, or if the page shows none."""
    wanted = shown or ""
    if example:
        wanted, printed = form(wanted), form(printed)
    assert matches(wanted.splitlines(), printed), f"{code}--- shows\n{shown}--- prints\n{printed}"


def form(output: str) -> str:
    """Return an output without its numbers, quoted words and spaces."""
    return re.sub(r"\s+", "", VALUE.sub("0", output))


def matches(shown: list[str], printed: str) -> bool:
    """Whether an output matches the one that is shown, where ``...`` matches any text."""
    wanted = "\n".join(line.rstrip() for line in shown).strip("\n")
    got = "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")
    pattern = ".*?".join(re.escape(part) for part in wanted.split("..."))
    return re.fullmatch(pattern, got, re.DOTALL) is not None
