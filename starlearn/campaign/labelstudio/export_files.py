"""Exchange with a Label Studio that cannot be reached: tasks to a file, an export of it back."""

import json
from collections.abc import Mapping
from pathlib import Path

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.importing import Imported
from starlearn.campaign.labelstudio.conversion import (
    open_batch,
    stored_predictions,
    take_in,
    task_of,
)
from starlearn.campaign.labelstudio.interface import interface
from starlearn.campaign.labelstudio.payload import TASKS, Task, checked, parsed
from starlearn.errors import InputError
from starlearn.storage.files import write_file

LARGEST = 256 * 1024**2
"""Bytes of an export that are read; a larger project is exported in parts."""


def interface_file(path: Path) -> Path:
    """Return where the labelling interface lies, beside a file of tasks."""
    return path.with_suffix(".xml")


def export_tasks(campaign: Campaign, path: Path, round_id: int | None = None) -> int:
    """Write the items that wait for a word as tasks, and the labelling interface beside them.

    Returns
    -------
    int
        Tasks written.
    """
    number, items = open_batch(campaign, round_id)
    predictions = stored_predictions(campaign, number)
    tasks = [task_of(campaign, number, item, predictions.get(item.id)) for item in items]
    config = interface(items[0].fields, campaign.choices)
    write_file(path, json.dumps(tasks, ensure_ascii=False, indent=1).encode())
    write_file(interface_file(path), config.encode())
    return len(tasks)


def import_export(
    campaign: Campaign, path: Path, relabel: Mapping[str, str] | None = None
) -> Imported:
    """Store what a JSON export of Label Studio says, all of it or nothing.

    An export names users by number alone: user 3 is stored as annotator ``user-3``.

    Raises
    ------
    InputError
        When it is no export, or naming the annotations that cannot be used.
    """
    remedy = "Correct them in Label Studio and export again, or say what they mean: --relabel."
    return take_in(campaign, read_export(path), str(path), remedy, relabel=relabel)


def read_export(path: Path) -> list[Task]:
    """Read a JSON export of bounded size and depth."""
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    if size > LARGEST:
        raise InputError(
            f"{path} has {size:,} bytes; {LARGEST:,} is most. Export the project in parts."
        )
    try:
        return checked(TASKS, parsed(raw.removeprefix(b"\xef\xbb\xbf")))
    except ValueError as error:
        raise InputError(
            f"{path} is not what Label Studio exports as JSON ({error!s:.300}). Choose the "
            "format JSON, not JSON-MIN or CSV. Nothing was imported."
        ) from error
