"""JSON-lines and CSV files, row by row; values are as written, and errors name the line."""

import csv
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b, file_digest
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError

Row = dict[str, Any]
Located = tuple[str, int, Row]
"""A row with its place, such as "line 3", and the byte where it starts."""

LONGEST_CELL = 2**31 - 1
"""Replaces the csv module's limit of 131,072 characters, which is too low for long texts."""
MARK = b"\xef\xbb\xbf"
"""The byte-order mark of UTF-8, which spreadsheets write."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")


class Lines:
    """The lines of a UTF-8 file, with the bytes that were read so far, and their digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = self.start = self.offset = 0
        self.digest = new_digest()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the lines with their ends: \\n, \\r\\n, and in a CSV file also \\r."""
        in_csv = self.path.suffix.lower() == ".csv"
        with opened(self.path) as handle:
            for raw in handle:
                self.digest.update(raw)
                self.number += 1
                if self.number == 1 and raw.startswith(MARK):
                    raw, self.offset = raw[len(MARK) :], len(MARK)
                text = self._decoded(raw)
                for line in io.StringIO(text, newline="") if in_csv and "\r" in text else [text]:
                    self.start = self.offset
                    self.offset += len(raw) if line is text else len(line.encode())
                    yield line

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            name = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "cp1252"
            raise InputError(
                f"{self.path}: byte 0x{raw[error.start]:02X} in line {self.number} is not UTF-8. "
                'Save the file as UTF-8 (in a spreadsheet: "CSV UTF-8"), or convert it: '
                f"iconv -f {name} -t utf-8"
            ) from error


def located_rows(lines: Lines) -> Iterator[Located]:
    """Yield the rows of a file whose name ends in one of `SUFFIXES`."""
    return _csv_rows(lines) if lines.path.suffix.lower() == ".csv" else _json_rows(lines)


class TextRows:
    """The m rows of a file on disk. One pass checks them; a row is parsed when it is used.

    The memory is 8 bytes per row, for the byte where it starts.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.absolute()
        with opened(path) as handle:
            self._stamp = _stamp(handle)
        lines, starts, self.names = Lines(path), array("q"), list[str]()
        for _, start, row in located_rows(lines):
            self.names = self.names or list(row)
            starts.append(start)
        if not starts:
            raise InputError(f"The pool file {path} is empty: it needs at least one row.")
        starts.append(lines.offset)
        self._starts: NDArray[np.int64] = np.frombuffer(starts, dtype=np.int64)
        self._digest = lines.digest.digest()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, rows: NDArray[np.intp]) -> list[Row]:
        """Return the rows at these positions; InputError where the file has changed since."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        blocks = []
        with opened(self._file) as handle:
            for run in runs:  # rows that follow each other are read at once
                start, end = self._starts[run[0]], self._starts[run[-1] + 1]
                handle.seek(start)
                blocks.append(handle.read(end - start))
            self._require_unchanged(handle)
        return [row for block in blocks for row in self._parsed(block.decode())]

    def _parsed(self, text: str) -> list[Row]:
        if self.path.suffix.lower() != ".csv":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        reader = _csv_reader(io.StringIO(text, newline=""))
        return [dict(zip(self.names, cells, strict=True)) for cells in filter(None, reader)]

    def _require_unchanged(self, handle: BufferedReader) -> None:
        # Times alone prove nothing, because a copy can keep them. Linux changes ctime with every
        # change, also with harmless ones such as chmod: then the content decides.
        stamp = _stamp(handle)
        if stamp == self._stamp:
            return
        handle.seek(0)
        if file_digest(handle, new_digest).digest() != self._digest:
            raise InputError(
                f"{self.path} was changed after the pool was opened. Open it again: "
                f"Pool({str(self.path)!r})."
            )
        self._stamp = stamp


def opened(path: Path) -> BufferedReader:
    """Open a file to read its bytes; InputError where that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path") from error


def new_digest() -> Any:
    """Return an empty digest of a file's content."""
    return blake2b(digest_size=16)


def json_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the objects of JSON lines with their places; `path` is used in errors only."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _json_object(path, number, line)


def _json_rows(lines: Lines) -> Iterator[Located]:
    for line in lines:
        if line.strip():
            row = _json_object(lines.path, lines.number, line)
            yield f"line {lines.number}", lines.start, row


def _json_object(path: Path, number: int, line: str) -> Row:
    try:
        row = STRICT.decode(line)
    except KeyError as error:
        raise InputError(
            f"{path}: line {number} has the key {error} twice in one object, with two values. Keep "
            "one of them, or rename it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: line {number} is not JSON ({error}). {_example(path, line)}"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{path}: line {number} is a {type(row).__name__}, not an object. "
            f"{_example(path, line)}"
        )
    return row


def _example(path: Path, line: str) -> str:
    example = 'Write one object per line, such as {"text": "...", "label": "..."}'
    if not line.lstrip().startswith("["):
        return example
    return f"{example}. One array becomes lines with: jq -c '.[]' {path.name} > lines.jsonl"


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    """Return an object of a JSON file; KeyError for a key that it has twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return row


STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _csv_rows(lines: Lines) -> Iterator[Located]:
    path, reader = lines.path, _csv_reader(lines)
    try:
        header: list[str] = next(filter(None, reader), [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}: column names repeat in the header: {header}")
        start = lines.offset
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                    f"{len(header)}. Put a text with a comma or a line break in quotes"
                )
            yield f"line {reader.line_num}", start, dict(zip(header, cells, strict=True))
            start = lines.offset
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV ({error}). Check its quotes"
        ) from error


def _csv_reader(lines: Iterable[str]) -> Any:
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(lines, strict=True)


def _stamp(handle: BufferedReader) -> tuple[int, ...]:
    found = os.fstat(handle.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
