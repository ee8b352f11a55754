"""Texts and labels from files. The readers are strict: an error names the line."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from starlearn.data.sources import read_rows
from starlearn.data.text_files import Row
from starlearn.errors import InputError, listed


def load_labelled(
    path: str | Path, text_field: str, label_field: str
) -> tuple[list[str], list[str]]:
    """Read texts and labels from two fields of a file that a Pool reads.

    Text files are in UTF-8; a byte-order mark is allowed. Texts are unchanged, labels are without
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
