"""Exchange with Label Studio by files: tasks out, and its JSON export back."""

import json
from collections.abc import Mapping
from pathlib import Path

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.importing import ImportResult
from starlearn.campaign.labelstudio.conversion import (
    import_annotations,
    items_to_send,
    stored_predictions,
    task_of,
)
from starlearn.campaign.labelstudio.interface import interface
from starlearn.campaign.labelstudio.payload import TASKS, LabelStudioTask, checked, parsed
from starlearn.errors import InputError
from starlearn.storage.files import write_file

LARGEST = 256 * 1024**2
"""Largest export in bytes; a larger project must be exported in parts."""


def export_tasks(campaign: Campaign, path: Path, round_id: int | None = None) -> int:
    """Write the items that need responses as tasks, and the labelling interface as .xml.

    Return the number of tasks.
    """
    number, items = items_to_send(campaign, round_id)
    predictions = stored_predictions(campaign, number)
    tasks = [task_of(campaign, number, item, predictions.get(item.id)) for item in items]
    config = interface(items[0].fields, campaign.choices)
    write_file(path, json.dumps(tasks, ensure_ascii=False, indent=1).encode())
    write_file(path.with_suffix(".xml"), config.encode())
    return len(tasks)


def import_export(
    campaign: Campaign, path: Path, relabel: Mapping[str, str] | None = None
) -> ImportResult:
    """Store the annotations of a JSON export of Label Studio: all of them, or none.

    An export names users by number only: user 3 becomes the annotator ``user-3``.
    """
    remedy = "Correct them in Label Studio and export again, or map their spellings: --relabel."
    return import_annotations(campaign, read_export(path), str(path), remedy, relabel=relabel)


def read_export(path: Path) -> list[LabelStudioTask]:
    """Read a JSON export of bounded size and depth."""
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    if size > LARGEST:
        raise InputError(
            f"{path} has {size:,} bytes, but at most {LARGEST:,} are read. Export the project "
            "in parts."
        )
    try:
        return checked(TASKS, parsed(raw.removeprefix(b"\xef\xbb\xbf")))
    except ValueError as error:
        raise InputError(
            f"{path} is not a JSON export of Label Studio ({error!s:.300}). Choose the format "
            "JSON, not JSON-MIN or CSV. Nothing was imported."
        ) from error
