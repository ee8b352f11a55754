"""Items and their ids: an id is a hash of the content, so it does not depend on the row."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from starlearn.errors import InputError, listed

ID = re.compile(r"i[0-9a-f]{32}")
"""An id begins with a letter, so that spreadsheets do not read it as a number."""

SURROGATE = re.compile("[\ud800-\udfff]")


def composed(text: str) -> str:
    """Return a text in Unicode's form NFC, in which equal texts are equal strings."""
    return unicodedata.normalize("NFC", text)


def item_id(filled: Mapping[str, str]) -> str:
    """Return the id of an item: a hash of the fields that the prompt uses.

    Examples
    --------
    >>> item_id({"a": "1", "b": "2"}) == item_id({"b": "2", "a": "1"})
    True
    """
    return "i" + sha256(dumped(dict(filled)).encode()).hexdigest()[:32]


def dumped(fields: Mapping[str, str]) -> str:
    """Return fields as canonical JSON, independent of their order."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_of(item: Any, filled: Mapping[str, str], extra: Sequence[str]) -> dict[str, str]:
    """Return an item's fields as text: those of the prompt, and extra ones for annotators.

    Raise ValueError when an extra field is missing, or a text is not valid Unicode.
    """
    content = dict(filled)
    for name in extra:
        if not isinstance(item, Mapping) or name not in item:
            raise ValueError(f"there is no field {name!r}")
        value = item[name]
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        content[name] = "" if missing else value if isinstance(value, str) else str(value)
    for name, text in content.items():
        if SURROGATE.search(text):
            raise ValueError(f"field {name!r} is not valid Unicode (lone surrogate)")
    return content


def unique_items(
    items: Sequence[Any], filled: Sequence[Mapping[str, str]], extra: Sequence[str] = ()
) -> dict[str, tuple[str, int, int]]:
    """Return the different items by their ids, in the pool's order.

    The values are the content as JSON, the number of equal items, and the first row. `filled` holds
    the fields of each item that the prompt uses. Annotators also see the `extra` fields, which do
    not change the id.
    """
    found: dict[str, tuple[str, int, int]] = {}
    complaints = []
    for row, (item, fields) in enumerate(zip(items, filled, strict=True)):
        key = item_id(fields)
        if key in found:
            content, count, first = found[key]
            found[key] = (content, count + 1, first)
            continue
        try:
            found[key] = (dumped(content_of(item, fields, extra)), 1, row)
        except ValueError as error:
            complaints.append(f"row {row}: {error}")
    if complaints:
        raise InputError(
            f"{len(complaints)} items cannot be stored: {listed(complaints)}. Fix these rows, or "
            "save the file as UTF-8."
        )
    return found
