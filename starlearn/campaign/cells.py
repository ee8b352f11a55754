"""CSV for spreadsheets: formulas are escaped, and every character survives the round trip."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from starlearn.data.text_files import LONGEST_CELL
from starlearn.errors import InputError

FORMULA = frozenset("=+-@\t\r\n\0＝＋－＠")  # noqa: RUF001 - full-width signs are formulas too
ESCAPE = "'"
DELIMITERS = ",;\t"
"""Spreadsheets write semicolons in countries with a decimal comma."""
_STARTS = "".join(re.escape(sign) for sign in sorted(FORMULA - set("\t\r\n")))
INNER = re.compile(rf'([;\t\r\n]"*)(\'*)(?=[{_STARTS}])')
"""Where a reader that splits at semicolons or tabs, and so misreads the quotes, would begin a cell
with a formula: group 2 holds the escapes there."""


def escaped(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, whole or split at semicolons.

    Quotes are no protection: a spreadsheet that expects semicolons splits inside of them.

    Examples
    --------
    >>> escaped("=1+1"), escaped("a;=1+1"), escaped("plain")
    ("'=1+1", "a;'=1+1", 'plain')
    """
    text = INNER.sub(rf"\1{ESCAPE}\2", text)
    return ESCAPE + text if text[:1] in FORMULA or _is_escaped(text) else text


def unescaped(text: str) -> str:
    """Undo `escaped`; a text that was not escaped stays as it is.

    Examples
    --------
    >>> unescaped("'=1+1"), unescaped("'tis")
    ('=1+1', "'tis")
    """
    text = text[1:] if _is_escaped(text) else text
    return INNER.sub(lambda found: found[1] + found[2].removeprefix(ESCAPE), text)


def write_cells(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return CSV as UTF-8 with a byte-order mark, formulas escaped."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([escaped(cell) for cell in row])
    return target.getvalue().encode("utf-8-sig")


def read_cells(path: Path, text: str, key: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and cells of the header and of each row, all of equal length.

    The delimiter is detected from `key`, a column of the header in any case. `path` is used in
    errors only.
    """
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, key), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cells):  # spreadsheets leave empty rows
                continue
            if not header:
                header = [unescaped(cell) for cell in cells]
                if len(set(header)) < len(header):
                    raise InputError(f"{path}: the header has a column twice: {header}.")
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                    f"{len(header)}. A text with a comma or a line break needs quotes. Nothing "
                    "was imported."
                )
            yield reader.line_num, [unescaped(cell) for cell in cells]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV ({error}). Check its quotes; nothing was "
            "imported."
        ) from error


def _is_escaped(text: str) -> bool:
    return text[:1] == ESCAPE and (text[1:2] in FORMULA or text[1:2] == ESCAPE)


def _delimiter(text: str, key: str) -> str:
    for delimiter in DELIMITERS:
        first = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if key in (cell.strip().casefold() for cell in first):
            return delimiter
    return ","
