"""Cells of a spreadsheet: nothing in them can act as a formula, and every character comes back."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from starlearn.data.readers import LONGEST_CELL
from starlearn.errors import InputError

FORMULA = frozenset("=+-@\t\r\n\0＝＋－＠")  # noqa: RUF001 - full-width signs are formulas too
GUARD = "'"
DELIMITERS = ",;\t"
"""Spreadsheets write a semicolon where the decimal point is a comma."""


def guarded(text: str) -> str:
    """Put a guard before a text that a spreadsheet would take for a formula.

    Examples
    --------
    >>> guarded("=1+1"), guarded("plain")
    ("'=1+1", 'plain')
    """
    return GUARD + text if text[:1] in FORMULA or _looks_guarded(text) else text


def unguarded(text: str) -> str:
    """Take exactly one guard off; a text that never had one stays as it is.

    Examples
    --------
    >>> unguarded("'=1+1"), unguarded("'tis")
    ('=1+1', "'tis")
    """
    return text[1:] if _looks_guarded(text) else text


def write_cells(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Write CSV for any spreadsheet: UTF-8 with a byte-order mark, formulas defused."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([guarded(cell) for cell in row])
    return target.getvalue().encode("utf-8-sig")


def read_cells(path: Path, text: str, key: str) -> Iterator[tuple[int, list[str]]]:
    """Yield header and rows with their lines; all rows are as long as the header.

    Parameters
    ----------
    path : Path
        Only named in errors.
    text : str
    key : str
        A column of the header, by which the delimiter is known.

    Raises
    ------
    InputError
        Naming the line that is not CSV, too short or too long.
    """
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, key), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cells):  # a spreadsheet leaves empty rows behind
                continue
            if not header:
                header = [unguarded(cell) for cell in cells]
                if len(set(header)) < len(header):
                    raise InputError(f"{path}: a column stands twice in the header: {header}.")
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                    f"{len(header)}. A text with a comma or a line break must stand in quotes; "
                    "nothing was imported."
                )
            yield reader.line_num, [unguarded(cell) for cell in cells]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV ({error}). Check its quotes; nothing was "
            "imported."
        ) from error


def _looks_guarded(text: str) -> bool:
    return text[:1] == GUARD and (text[1:2] in FORMULA or text[1:2] == GUARD)


def _delimiter(text: str, key: str) -> str:
    for delimiter in DELIMITERS:
        first = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if key in first:
            return delimiter
    return ","
