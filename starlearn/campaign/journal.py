"""A copy of all events as JSON lines, for people and for emergencies."""

import json
from dataclasses import asdict
from pathlib import Path

from starlearn.campaign import rounds
from starlearn.campaign.events import Event, events
from starlearn.campaign.store import Store, checksum
from starlearn.errors import UntrustedFileError
from starlearn.storage.files import make_folder, write_file

NAME = "labels.jsonl"


def write_journal(store: Store, folder: Path, campaign: str) -> Path:
    """Write all events, each with its item's fields and a checksum, and return the file."""
    make_folder(folder)
    contents = rounds.contents(store)
    lines = []
    for event in events(store):
        row = {"campaign": campaign, **asdict(event), "fields": json.loads(contents[event.item])}
        lines.append(json.dumps({**row, "crc": checksum(row)}, ensure_ascii=False) + "\n")
    write_file(folder / NAME, "".join(lines).encode())
    return folder / NAME


def read_journal(path: Path) -> list[tuple[Event, dict[str, str]]]:
    """Read events and their items' fields, each verified by its checksum.

    Raises
    ------
    UntrustedFileError
        Naming the line that was changed.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            crc = row.pop("crc")
            fields = row["fields"]
            event = Event(**{k: v for k, v in row.items() if k not in ("campaign", "fields")})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            crc, row = None, {}
        if crc is None or checksum(row) != crc:
            raise UntrustedFileError(f"{path}: line {number} is not the one that was written.")
        found.append((event, fields))
    return found
