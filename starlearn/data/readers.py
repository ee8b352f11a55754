"""Readers of JSON-lines and CSV files. They are strict: an error names the line."""

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
"""Replaces the csv module's limit of 131,072 characters, which is too low for long texts."""


def load_labelled(
    path: str | Path, text_field: str, label_field: str
) -> tuple[list[str], list[str]]:
    """Read texts and labels from two fields of a JSON-lines file, or columns of a CSV file.

    The file is in UTF-8; a byte-order mark is allowed. Texts are unchanged, labels are without
    outer spaces. "NA" and "null" are ordinary labels. The error for bad rows names their lines.
    """
    path = Path(path)
    pairs = converted(
        read_rows(path),
        lambda row: (text_of(row, text_field), text_of(row, label_field).strip()),
        path,
        "Fix these lines, or name other fields with --text-field and --label-field",
    )
    return [text for text, _ in pairs], [label for _, label in pairs]


def converted(
    rows: Iterable[tuple[str, Row]],
    convert: Callable[[Row], tuple[str, str]],
    where: object,
    remedy: str,
) -> list[tuple[str, str]]:
    """Convert rows to pairs of text and label, and report all bad rows in one InputError.

    Each row comes with its place, such as "line 3". `convert` raises ValueError, TypeError or
    KeyError for a bad one. `where` is the source of the rows, `remedy` how to fix bad rows.
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
        raise InputError(f"{where}: the file has no rows. It must have at least one")
    return pairs


def text_of(row: Row, name: str) -> str:
    """Return a field that must be a text; ValueError for any other value."""
    if name not in row:
        raise ValueError(f"no field {name!r} (fields: {', '.join(map(str, row))})")
    value = row[name]
    if not isinstance(value, str):
        kind = type(value).__name__
        raise ValueError(f'{name} is the {kind} {value!r}, not text; put it in quotes: "{value}"')
    if not value.strip():
        raise ValueError(f"{name} is empty")
    bad = re.search("[\ud800-\udfff]", value)
    if bad:
        raise ValueError(f"{name} is not valid Unicode (lone surrogate at char {bad.start()})")
    return value


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a file with its place ("line 3"). The file's name decides its format."""
    readers = {".jsonl": json_rows, ".ndjson": json_rows, ".csv": csv_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: the name must end in .jsonl, .ndjson or .csv")
    return readers[path.suffix.lower()](path, decoded(path))


def decoded(path: Path) -> str:
    """Return the content of a UTF-8 file, with or without a byte-order mark."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path") from error
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
                f"{path}: line {number} is not JSON ({error}). Write one object per line, such as "
                '{"text": "...", "label": "..."}'
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}: line {number} is a {type(row).__name__}, not an object. Write one "
                'object per line, such as {"text": "...", "label": "..."}'
            )
        yield f"line {number}", row


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a CSV file as dicts; the names are those of its header."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}: column names repeat in the header: {header}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                    f"{len(header)}. Put a text with a comma or a line break in quotes"
                )
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV ({error}). Check its quotes"
        ) from error
