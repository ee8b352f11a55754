"""A copy of all events as JSON lines, for people and for emergencies."""

import json
from dataclasses import asdict
from pathlib import Path

from starlearn.campaign import rounds
from starlearn.campaign.events import events
from starlearn.campaign.store import Store, checksum
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
