"""Export of batches and import of labels as CSV or JSON lines, or for Label Studio."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.cells import read_cells, write_cells
from starlearn.campaign.importing import (
    ANNOTATOR,
    CAMPAIGN,
    ID,
    LABEL,
    WHY,
    ImportResult,
    LabelImport,
    Row,
    column_of,
    own_columns,
)
from starlearn.campaign.items import as_text
from starlearn.campaign.labelstudio.conversion import (
    import_annotations,
    items_to_send,
    stored_predictions,
    task_of,
)
from starlearn.campaign.labelstudio.interface import interface
from starlearn.campaign.labelstudio.payload import TASKS, LabelStudioTask, checked, parsed
from starlearn.campaign.responses import checked_name
from starlearn.data.text_files import json_rows
from starlearn.errors import InputError, worded
from starlearn.storage.files import write_file

LARGEST_EXPORT = 256 * 1024**2
"""Largest JSON export of Label Studio in bytes; a larger project must be exported in parts."""


def export_batch(
    campaign: Campaign,
    path: str | os.PathLike[str],
    round_id: int | None = None,
    annotator: str | None = None,
) -> int:
    """Write a batch with one row per item, and return the number of rows.

    The columns are id, the pool's fields in its order, label, annotator, why, campaign. A field
    with the name of one of our columns has the prefix ``field:``, so that the pool's own id is in
    ``field:id``. The label column holds the resolved labels, or the answers of one annotator.

    `path` ends in ``.csv`` or ``.jsonl``, and an existing file is replaced. With ``.json``, the
    items that still need responses are written as tasks for Label Studio.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == ".json":
        if annotator is not None:
            raise InputError(
                f"{path}: tasks of Label Studio hold no labels. Leave out the annotator."
            )
        return _write_tasks(campaign, path, round_id)
    annotator = None if annotator is None else checked_name(annotator)
    batch = campaign.batch(round_id)
    if not batch:
        raise InputError(
            "There is no batch to export. Query one first: starlearn query "
            f"{campaign.folder} -n 50."
        )
    labels = campaign.labels()
    fields = _pool_fields(campaign, batch)
    rows: list[dict[str, Any]] = []
    for item in batch:
        label = labels.get(item.id) if annotator is None else item.answers.get(annotator)
        # Without a name, an import would assign the label to whoever fills in the other rows.
        given = [name for name, answer in item.answers.items() if answer == label]
        who = None if label is None else annotator or given[-1]
        values = {column_of(name): value for name, value in fields[item.id].items()}
        own = {LABEL: label, ANNOTATOR: who, WHY: item.reason, CAMPAIGN: campaign.id}
        rows.append({ID: item.id, **values, **own})
    if kind == ".csv":
        header = list(rows[0])
        content = write_cells(header, [[as_text(row[name]) for name in header] for row in rows])
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
    write_file(path, content)
    return len(rows)


def _pool_fields(campaign: Campaign, batch: Sequence[BatchItem]) -> dict[str, dict[str, Any]]:
    """Return each item's fields in the pool's order, with those that annotators do not see."""
    table = campaign.snapshot()
    table = table.filter(pc.is_in(table["id"], value_set=pa.array([item.id for item in batch])))
    texts = zip(table["id"].to_pylist(), table["rest"].to_pylist(), strict=True)
    rest = {key: json.loads(text) for key, text in texts if text is not None}
    seen = (name for item in batch for name in item.fields)
    names = dict.fromkeys([*campaign.pool_facts.get("fields", ()), *seen])
    found = {}
    for item in batch:
        values = {**rest.get(item.id, {}), **item.fields}
        found[item.id] = {name: values.get(name) for name in names}
    return found


def import_labels(
    campaign: Campaign,
    path: str | os.PathLike[str],
    annotator: str = "me",
    *,
    encoding: str | None = None,
    relabel: Mapping[str, str] | None = None,
) -> ImportResult:
    """Store the labels of a file, all of them or none; a second import changes nothing.

    The file is ``.csv`` or ``.jsonl`` with the columns id and label, or a ``.json`` file that Label
    Studio has exported. Such an export names users by number: user 3 is the annotator ``user-3``.
    Rows without a label are left open. The column annotator names who gave the label; `annotator`
    is that of rows that name none. Other columns are optional. `relabel` maps spellings in the file
    to choices, as in ``{"y": "yes"}``. A column or a label that differs from ours only in case,
    spaces or leading zeros is accepted with a note.

    Without `encoding`, a file that is not UTF-8 is read as cp1252, the encoding of Windows in
    Western Europe, with a note. It is refused where the texts of its items then differ from those
    that were issued.

    Raise InputError that names the lines with ids that were never issued, labels outside the
    choices, two labels for one item, the text of another item, or rows of another campaign.
    """
    path = Path(path)
    if _kind(path) == ".json":
        tasks = _read_tasks(path)
        remedy = "Correct them in Label Studio and export again."
        return import_annotations(campaign, tasks, str(path), remedy, relabel=relabel)
    importer = LabelImport(campaign, annotator, relabel)
    text, guess = _decoded(path, encoding)
    notes = [guess] if guess else []
    for line, row in _rows(path, text, importer.columns, notes):
        importer.add_row(f"line {line}", row)
    importer.require_usable(str(path), "rows", "Fix these rows and import again.")
    if guess and importer.n_edited:
        raise InputError(
            f"{path}: {guess} {importer.n_edited} texts of its items differ from those that were "
            'issued. Nothing was imported. Save the file as "CSV UTF-8" and import again.'
        )
    done = importer.store()
    done.notes[:0] = notes
    return done


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".ndjson", ".json"):
        raise InputError(f"{path}: the name must end in .csv or .jsonl, or .json for Label Studio.")
    return kind


def _rows(
    path: Path, text: str, fields: Collection[str], notes: list[str]
) -> Iterator[tuple[int, Row]]:
    """Yield line number and row, with our names of columns; `fields` are columns of the items."""
    if _kind(path) != ".csv":
        for place, row in json_rows(path, text):
            names = _named(path, list(row), fields, notes, place)
            yield int(place.removeprefix("line ")), dict(zip(names, row.values(), strict=True))
        return
    table = read_cells(path, text, ID)
    _, header = next(table, (1, []))
    names = _named(path, header, fields, notes, "the header")
    for line, cells in table:
        yield line, dict(zip(names, cells, strict=True))


def _named(
    path: Path, header: list[str], fields: Collection[str], notes: list[str], place: str
) -> list[str]:
    """Return the names of columns with ours in place of other spellings, which are noted."""
    ours = own_columns(header, fields)
    for name, own in ours.items():
        note = f"The column {name!r:.40} was read as {own!r}."
        if note not in notes:
            notes.append(note)
    names = [ours.get(name, name) for name in header]
    missing = [name for name in (ID, LABEL) if name not in names]
    if missing:
        close = get_close_matches(missing[0], [name.strip().casefold() for name in header], n=1)
        meant = [name for name in header if name.strip().casefold() in close]
        hint = f" Did you mean {meant[0]!r:.40}? Rename it to {missing[0]}." if meant else ""
        raise InputError(
            f"{path}: {place} needs the columns {ID} and {LABEL}, it has "
            f"{', '.join(header)[:200] or 'none'}.{hint} Nothing was imported."
        )
    return names


def _decoded(path: Path, encoding: str | None) -> tuple[str, str | None]:
    """Return the text of a file, and a note where its encoding was guessed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    name = encoding or "utf-8"
    try:
        return raw.decode("utf-8-sig" if name.lower() in ("utf-8", "utf8") else name), None
    except LookupError as error:
        raise InputError(
            f"{encoding!r:.40} is an unknown encoding. Try utf-8 or cp1252."
        ) from error
    except UnicodeDecodeError as error:
        start, byte = error.start, f"byte 0x{raw[error.start]:02X}"
    line = raw.count(b"\n", 0, start) + 1
    utf_16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    windows = None if utf_16 else _as_windows(raw)
    if encoding is None and windows is not None:
        sample = _as_windows(raw[max(start - 10, 0) : start + 10])
        return windows, (
            f"The file is not UTF-8 ({byte} in line {line}). It was read as cp1252, the encoding "
            f"of Windows in Western Europe: {sample!r}. If this is wrong, import it again with its "
            f"encoding: {_option('NAME')}."
        )
    which = "utf-16" if utf_16 else "NAME" if windows is None else "cp1252"
    raise InputError(
        f'{path}: {byte} in line {line} is not {name}. Save the file as "CSV UTF-8", or name its '
        f"encoding: {_option(which)}. Nothing was imported."
    )


def _as_windows(raw: bytes) -> str | None:
    """Return bytes as cp1252; None where a byte has no meaning in it."""
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return None


def _option(encoding: str) -> str:
    return worded(python=f"encoding={encoding!r}", terminal=f"--encoding {encoding}")


def _write_tasks(campaign: Campaign, path: Path, round_id: int | None) -> int:
    """Write the items that need responses as tasks, and the labelling interface as .xml."""
    number, items = items_to_send(campaign, round_id)
    predictions = stored_predictions(campaign, number)
    tasks = [task_of(campaign, number, item, predictions.get(item.id)) for item in items]
    config = interface(items[0].fields, campaign.choices)
    write_file(path, json.dumps(tasks, ensure_ascii=False, indent=1).encode())
    write_file(path.with_suffix(".xml"), config.encode())
    return len(tasks)


def _read_tasks(path: Path) -> list[LabelStudioTask]:
    """Read a JSON export of bounded size and depth."""
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= LARGEST_EXPORT else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    if size > LARGEST_EXPORT:
        raise InputError(
            f"{path} has {size:,} bytes, but at most {LARGEST_EXPORT:,} are read. Export the "
            "project in parts."
        )
    try:
        return checked(TASKS, parsed(raw.removeprefix(b"\xef\xbb\xbf")))
    except ValueError as error:
        raise InputError(
            f"{path} is not a JSON export of Label Studio ({error!s:.300}). Choose the format "
            "JSON, not JSON-MIN or CSV. Nothing was imported."
        ) from error
