"""The journal: a whole label store as JSON lines with checksums, the last resort of a restore."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlearn.campaign import rounds
from starlearn.campaign.event_log import Event, log_of
from starlearn.campaign.events import INSERT
from starlearn.campaign.integrity import checksum
from starlearn.campaign.schema import ROUND, VERSION
from starlearn.campaign.store import Store
from starlearn.errors import CampaignCorruptError
from starlearn.storage.files import make_folder, open_regular, storage_errors, write_file

if TYPE_CHECKING:
    from starlearn.campaign.folder import CampaignFolder

ISSUED = "SELECT round, item, place, score, reason FROM issued ORDER BY round, place"
ROUNDS = f"SELECT {ROUND}, crc FROM round ORDER BY id"  # noqa: S608 - names of our own
TABLES = {"rounds": "round", "issued": "issued"}


def write_journal(campaign: "CampaignFolder") -> None:
    """Write settings, items and rounds in the first line, then one line per event."""
    store = campaign.store
    with store.mutex:
        contents, log = rounds.contents(store), log_of(store).events
        head = {
            "campaign": campaign.id,
            "schema": VERSION,
            "events": len(log),
            "meta": {key: value for key, value in store.meta().items() if key != "tables"},
            "items": contents,
            "rounds": store.execute(ROUNDS),
            "issued": store.execute(ISSUED),
        }
    lines = [_line(head)]
    for event in log:
        own = {"campaign": campaign.id, **asdict(event)}
        lines.append(_line({**own, "fields": json.loads(contents[event.item])}))
    make_folder(campaign.paths.exports)
    write_file(campaign.paths.journal, "".join(lines).encode())


def is_from_before(path: Path) -> bool:
    """Whether an older starlearn wrote a journal, without settings and rounds."""
    with storage_errors(f"reading {path}"), os.fdopen(open_regular(path), "rb") as file:
        first = file.readline()
    return bool(first) and "meta" not in _row(path, 1, first)


def _line(row: dict[str, Any]) -> str:
    return json.dumps({**row, "crc": checksum(row)}, ensure_ascii=False) + "\n"


def read_journal(path: Path) -> tuple[dict[str, Any], list[Event]]:
    """Return the first line and the events of a journal.

    Raise CampaignCorruptError unless it is complete and every line has the right checksum.
    """
    with storage_errors(f"reading {path}"), os.fdopen(open_regular(path), "rb") as file:
        lines = file.read().splitlines()
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    if not rows or "meta" not in rows[0]:
        raise _unusable(path, "an older starlearn wrote it, without settings and rounds")
    head, names = rows[0], [field.name for field in fields(Event)]
    try:
        log = [Event(*(row[name] for name in names)) for row in rows[1:]]
    except KeyError as error:
        raise _unusable(path, f"an event lacks {error}") from error
    if [event.seq for event in log] != list(range(1, head["events"] + 1)):
        raise _unusable(path, f"it has {len(log)} of {head['events']} events")
    return head, log


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = dict(json.loads(line))
        is_sound = row.pop("crc") == checksum(row)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_sound = False
    if not is_sound:
        raise _unusable(path, f"line {number} is not the one that was written")
    return row


def _unusable(path: Path, why: str) -> CampaignCorruptError:
    return CampaignCorruptError(f"The journal {path} cannot be used: {why}.")


def build_store(path: Path, head: dict[str, Any], log: Iterable[Event]) -> None:
    """Make a label store in a new file from the contents of a journal."""
    store = Store.create(path)
    try:
        with store.transaction():
            store.set_meta(**head["meta"])
            for item, content in head["items"].items():
                values = (item, content, checksum(item, content))
                store.execute("INSERT INTO item VALUES (?, ?, ?)", values)
            for name, table in TABLES.items():
                for row in head[name]:
                    columns = f" ({ROUND}, crc)" if table == "round" else ""
                    marks = ", ".join("?" * len(row))
                    store.execute(f"INSERT INTO {table}{columns} VALUES ({marks})", row)  # noqa: S608
            for event in log:
                store.execute(INSERT, (*astuple(event), checksum(*astuple(event))))
    finally:
        store.close()
