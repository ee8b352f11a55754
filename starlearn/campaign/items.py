"""Items and their ids: an id is a hash of the content, so it does not depend on the row."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from starlearn.errors import InputError, row_lines

ID = re.compile(r"i[0-9a-f]{32}")
"""An id begins with a letter, so that spreadsheets do not read it as a number."""

SURROGATE = re.compile("[\ud800-\udfff]")


def composed(text: str) -> str:
    """Return a text in Unicode's form NFC, in which equal texts are equal strings."""
    if not isinstance(text, str):
        raise InputError(f"{text!r:.60} must be text, not {type(text).__name__}.")
    return unicodedata.normalize("NFC", text)


def item_id(filled: Mapping[str, str]) -> str:
    """Return the id of an item: a hash of the fields that the prompt uses.

    Examples
    --------
    >>> item_id({"a": "1", "b": "2"}) == item_id({"b": "2", "a": "1"})
    True
    """
    canonical = json.dumps(dict(filled), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "i" + sha256(canonical.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PoolItem:
    """One item of a pool, with the number of rows that are equal to it."""

    content: str
    """JSON of the fields that annotators see."""
    count: int
    row: int
    """The first row."""
    rest: str
    """JSON of the other fields of the first row, for exports."""


def content_of(item: Any, filled: Mapping[str, str], extra: Sequence[str]) -> dict[str, str]:
    """Return an item's fields as text: those of the prompt, then extra ones for annotators.

    Both are in the item's order. Raise ValueError when an extra field is missing, or a text is not
    valid Unicode.
    """
    names = list(item) if isinstance(item, Mapping) else list(filled)
    missing = [name for name in extra if name not in names]
    if missing:
        raise ValueError(f"there is no field {missing[0]!r}")
    content = {name: filled[name] for name in names if name in filled}
    content |= {name: as_text(item[name]) for name in names if name in extra and name not in filled}
    for name, text in content.items():
        if SURROGATE.search(text):
            raise ValueError(f"field {name!r} is not valid Unicode (lone surrogate)")
    return content


def as_text(value: Any) -> str:
    """Return a field as text; a missing value is empty."""
    if _is_missing(value):
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def field_names(items: Sequence[Any]) -> list[str]:
    """Return the names of all fields, in order of first appearance."""
    rows = (item for item in items if isinstance(item, Mapping))
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def unique_items(
    items: Sequence[Any], filled: Sequence[Mapping[str, str]], extra: Sequence[str] = ()
) -> dict[str, PoolItem]:
    """Return the different items by their ids, in the pool's order.

    `filled` holds the fields of each item that the prompt uses. Annotators also see the `extra`
    fields, which do not change the id.
    """
    found: dict[str, PoolItem] = {}
    complaints = []
    for row, (item, fields) in enumerate(zip(items, filled, strict=True)):
        key = item_id(fields)
        if key in found:
            found[key] = replace(found[key], count=found[key].count + 1)
            continue
        try:
            content = content_of(item, fields, extra)
        except ValueError as error:
            complaints.append(f"row {row}: {error}")
            continue
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        found[key] = PoolItem(text, 1, row, _rest(item, content))
    if complaints:
        raise InputError(
            f"{len(complaints)} items cannot be stored:{row_lines(complaints)}"
            "Fix these rows, or save the file as UTF-8."
        )
    return found


def _rest(item: Any, content: Mapping[str, str]) -> str:
    """Return the fields that annotators do not see as JSON; other types become text."""
    if not isinstance(item, Mapping):
        return "{}"
    rest = {
        str(name): None if _is_missing(value) else value
        for name, value in item.items()
        if name not in content
    }
    try:
        text = json.dumps(rest, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # a list that contains itself, for example
        text = json.dumps({name: f"{value!r:.200}" for name, value in rest.items()})
    return SURROGATE.sub("\ufffd", text)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
