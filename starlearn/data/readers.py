"""Files of texts and labels, JSON lines or CSV: read strictly, with errors that name the line."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from starlearn.errors import InputError, listed

Row = dict[str, Any]

LONGEST_CELL = 2**31 - 1
"""The csv module's own limit, 131,072 characters, would refuse long texts."""


def load_labelled(
    path: str | Path, text_field: str, label_field: str
) -> tuple[list[str], list[str]]:
    """Read texts and labels from a file of JSON lines or a CSV file with a header.

    Parameters
    ----------
    path : str or path
        A ``.jsonl``, ``.ndjson`` or ``.csv`` file in UTF-8; a byte-order mark is allowed.
    text_field, label_field : str
        The fields (JSON) or columns (CSV) to read. Others are ignored.

    Returns
    -------
    items : list of str
        The texts as they stand in the file.
    labels : list of str
        The labels without outer spaces; "NA" and "null" are labels like any other.

    Raises
    ------
    InputError
        Naming the file, the lines and what is wrong with each: not UTF-8, not JSON, a missing
        field, an empty text, a label that is not text, a CSV row that is too short or too long.
    """
    path = Path(path)
    pairs = converted(
        read_rows(path),
        lambda row: (text_of(row, text_field), text_of(row, label_field).strip()),
        path,
        "Mend these lines, or name other fields with --text-field and --label-field",
    )
    return [text for text, _ in pairs], [label for _, label in pairs]


def converted(
    rows: Iterable[tuple[str, Row]],
    convert: Callable[[Row], tuple[str, str]],
    where: object,
    remedy: str,
) -> list[tuple[str, str]]:
    """Make a pair of text and label of every row, and complain once about all bad rows.

    Parameters
    ----------
    rows : iterable of (str, dict)
        Each row with its place, such as "line 3".
    convert : callable
        Takes a row, and raises ValueError, TypeError or KeyError when it is not as expected.
    where, remedy : str
        What was read, and what to do about bad rows.

    Raises
    ------
    InputError
        Naming the bad rows, or that there is none at all.
    """
    pairs, complaints = [], []
    for place, row in rows:
        try:
            pairs.append(convert(row))
        except KeyError as error:
            complaints.append(f"{place}: no field {error}")
        except (TypeError, ValueError) as error:
            complaints.append(f"{place}: {error}")
    if complaints:
        raise InputError(f"{where}: {listed(complaints)}. {remedy}")
    if not pairs:
        raise InputError(f"{where}: no rows. Give a file with at least one")
    return pairs


def text_of(row: Row, name: str) -> str:
    """Return a field that must hold text; the complaint says what stands there instead."""
    if name not in row:
        raise ValueError(f"no field {name!r} (fields: {', '.join(map(str, row))})")
    value = row[name]
    if not isinstance(value, str):
        kind = type(value).__name__
        raise ValueError(f'{name} is {kind} {value!r}, not text; write it in quotes: "{value}"')
    if not value.strip():
        raise ValueError(f"{name} is empty")
    bad = re.search("[\ud800-\udfff]", value)
    if bad:
        raise ValueError(f"{name} is not valid Unicode (lone surrogate at char {bad.start()})")
    return value


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a file with its place ("line 3"), by the kind that its name tells."""
    readers = {".jsonl": json_rows, ".ndjson": json_rows, ".csv": csv_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: the name must end in .jsonl, .ndjson or .csv")
    return readers[path.suffix.lower()](path, decoded(path))


def decoded(path: Path) -> str:
    """Read a file as UTF-8, with or without a byte-order mark; no guessing."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: byte 0x{raw[error.start]:02X} in line {line} is not UTF-8. Save the file as "
            'UTF-8 (in a spreadsheet: "CSV UTF-8"), or convert it: iconv -f latin1 -t utf-8'
        ) from error


def json_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a file of JSON lines."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not JSON ({error}). Write one object a line, such as "
                '{"text": "...", "label": "..."}'
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}: line {number} holds {type(row).__name__}, not an object. Write one "
                'object a line, such as {"text": "...", "label": "..."}'
            )
        yield f"line {number}", row


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a CSV file under the names of its header."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}: a column name stands twice in the header: {header}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                    f"{len(header)}. A text with a comma or a line break must stand in quotes"
                )
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV ({error}). Check its quotes"
        ) from error
