"""Batches to files and labels back, CSV or JSON lines: every character kept, all rows or none."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlearn.campaign import events, rounds
from starlearn.campaign.answers import checked_answer, checked_name
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.cells import read_cells, write_cells
from starlearn.campaign.durable import write_file
from starlearn.campaign.events import Entry
from starlearn.data.files import json_rows
from starlearn.errors import InputError, listed

ID, LABEL, WHY, CAMPAIGN, ANNOTATOR = "id", "label", "why", "campaign", "annotator"
OWN = (ID, LABEL, WHY, CAMPAIGN, ANNOTATOR)
PREFIX = "field:"
"""Before the name of an item's field that is also the name of one of our columns."""

Row = dict[str, str | None]


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    n_new: int
    """Labels stored now."""
    n_same: int
    """Labels that were there already."""
    n_open: int
    """Rows without a label."""
    notes: list[str] = field(default_factory=list)
    """What was odd and did no harm."""


def export_batch(
    campaign: Campaign,
    path: str | os.PathLike[str],
    round_id: int | None = None,
    annotator: str | None = None,
) -> int:
    """Write a batch with a row an item: id, its fields, label, why it was chosen, campaign.

    Parameters
    ----------
    campaign : Campaign
    path : str or path
        Ends in ``.csv`` or ``.jsonl``; replaced when it is there.
    round_id : int, optional
        By default the newest round.
    annotator : str, optional
        Whose answers stand in the label column; by default the resolved labels.

    Returns
    -------
    int
        Rows written.
    """
    path = Path(path)
    batch = campaign.batch(round_id)
    if not batch:
        raise InputError(
            "There is no batch to export. Ask for one first: starlearn query "
            f"{campaign.folder} -n 50."
        )
    labels = campaign.labels()
    names = list(dict.fromkeys(name for item in batch for name in item.fields))
    rows: list[Row] = []
    for item in batch:
        label = labels.get(item.id) if annotator is None else item.answers.get(annotator)
        values = {column_of(name): item.fields.get(name, "") for name in names}
        own = {LABEL: label, WHY: item.reason, CAMPAIGN: campaign.id}
        rows.append({ID: item.id, **values, **own})
    kind = _kind(path)
    if kind == ".csv":
        header = list(rows[0])
        content = write_cells(header, [[row[name] or "" for name in header] for row in rows])
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
    write_file(path, content)
    return len(rows)


def import_labels(
    campaign: Campaign,
    path: str | os.PathLike[str],
    annotator: str = "me",
    *,
    encoding: str = "utf-8",
    relabel: Mapping[str, str] | None = None,
) -> Imported:
    """Store the labels of a file, all of them or none; a second time changes nothing.

    Parameters
    ----------
    campaign : Campaign
    path : str or path
        A ``.csv`` or ``.jsonl`` file with the columns id and label. Rows without a label are
        left open. A column annotator says who gave the label; other columns are not needed.
    annotator : str
        Who gave the labels, where the file does not say.
    encoding : str
        Of the file; nothing is guessed.
    relabel : mapping, optional
        Spellings in the file and the choices that they mean, such as ``{"Yes": "yes"}``.

    Raises
    ------
    InputError
        Naming the lines: ids that were never issued, labels that are no choice, two labels for
        one item, texts that stand beside the id of another item, another campaign's file.
    """
    path = Path(path)
    found = rounds.rounds(campaign.store)
    batch = {item.id: item for each in found for item in campaign.batch(each.id)}
    reader = _Reader(campaign, batch, checked_name(annotator), relabel or {})
    for line, row in _rows(path, encoding):
        reader.read(line, row)
    if reader.complaints:
        raise InputError(
            f"{path}: {len(reader.complaints)} rows cannot be imported: "
            f"{listed(reader.complaints)}. Nothing was imported; mend these rows and import again."
        )
    return reader.stored()


def column_of(name: str) -> str:
    """Return the column of an item's field."""
    return PREFIX + name if name in OWN or name.startswith(PREFIX) else name


class _Reader:
    """Reads rows one by one, collects complaints, and stores only when there is none."""

    def __init__(
        self,
        campaign: Campaign,
        batch: dict[str, BatchItem],
        annotator: str,
        relabel: Mapping[str, str],
    ) -> None:
        self.campaign, self.batch = campaign, batch
        self.annotator, self.relabel = annotator, relabel
        self.choices = campaign.choices
        self.complaints: list[str] = []
        self.found: dict[tuple[str, str], tuple[str, int]] = {}
        self.n_open = 0
        self.n_edited = 0
        self.unknown: set[str] = set()
        self.by_text: dict[str, str] = {}
        for item in batch.values():
            self.by_text.setdefault(_spelled(item.fields), item.id)

    def read(self, line: int, row: Row) -> None:
        """Take one row; what is wrong with it is remembered, not raised."""
        try:
            self._read(line, row)
        except InputError as error:
            self.complaints.append(f"line {line}: {error}")

    def stored(self) -> Imported:
        """Store all labels that are new, in one transaction."""
        words = events.standing(events.events(self.campaign.store))
        standing = {(e.item, e.annotator): e.answer for e in words if e.answer is not None}
        new = [
            Entry("label", item, annotator, answer=answer)
            for (item, annotator), (answer, _) in self.found.items()
            if standing.get((item, annotator)) != answer
        ]
        if new:
            self.campaign.say(new, command="import")
        notes = []
        if self.n_edited:
            notes.append(
                f"In {self.n_edited} rows the text differs from the one that was issued; their "
                "labels belong to the text as it was issued."
            )
        if self.unknown:
            notes.append(f"Columns that were not used: {', '.join(sorted(self.unknown))}.")
        return Imported(len(new), len(self.found) - len(new), self.n_open, notes)

    def _read(self, line: int, row: Row) -> None:
        key, label = row.get(ID), row.get(LABEL)
        owner = row.get(CAMPAIGN)
        if owner and owner != self.campaign.id:
            raise InputError(f"it belongs to another campaign ({owner!r:.40})")
        if not isinstance(key, str) or key.strip() not in self.batch:
            raise InputError(f"id {key!r:.50} was never issued in this campaign")
        item = self.batch[key.strip()]
        self._compare(item, row)
        if label is None or (isinstance(label, str) and not label.strip()):
            self.n_open += 1
            return
        if isinstance(label, str):
            label = self.relabel.get(label, label)
        answer = checked_answer(label, self.choices)
        annotator = checked_name(row.get(ANNOTATOR) or self.annotator)
        earlier = self.found.setdefault((item.id, annotator), (answer, line))
        if earlier[0] != answer:
            raise InputError(
                f"item {item.id} is {answer!r:.40} here and {earlier[0]!r:.40} in line {earlier[1]}"
            )

    def _compare(self, item: BatchItem, row: Row) -> None:
        """Find texts that moved away from their ids, as when one column was sorted alone."""
        here = {name: row[column_of(name)] for name in item.fields if column_of(name) in row}
        columns = {column_of(name) for name in item.fields}
        self.unknown |= {name for name in row if name not in columns and name not in OWN}
        texts = {name: "" if text is None else str(text) for name, text in here.items()}
        if not texts or _spelled(texts) == _spelled({n: item.fields[n] for n in texts}):
            return
        other = self.by_text.get(_spelled(texts)) if len(texts) == len(item.fields) else None
        if other is not None:
            raise InputError(
                f"beside id {item.id} stands the text of {other}: was one column sorted alone?"
            )
        self.n_edited += 1


def _spelled(fields: Mapping[str, str]) -> str:
    """Return texts without what spreadsheets change: line ends and outer or double spaces."""
    return json.dumps({name: " ".join(fields[name].split()) for name in sorted(fields)})


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise InputError(f"{path}: the name must end in .csv or .jsonl.")
    return kind


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    text = _decoded(path, encoding)
    if _kind(path) != ".csv":
        for place, row in json_rows(path, text):
            if ID not in row or LABEL not in row:
                raise InputError(f"{path}: {place} has no {ID} and {LABEL}. Nothing was imported.")
            yield int(place.removeprefix("line ")), row
        return
    table = read_cells(path, text, ID)
    _, header = next(table, (0, []))
    if ID not in header or LABEL not in header:
        raise InputError(
            f"{path}: the header needs the columns {ID} and {LABEL}, it has "
            f"{', '.join(header)[:200] or 'none'}. Nothing was imported; export the batch again."
        )
    for line, cells in table:
        yield line, dict(zip(header, cells, strict=True))


def _decoded(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except LookupError as error:
        raise InputError(f"{encoding!r:.40} is no encoding. Try utf-8 or latin-1.") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise InputError(
            f"{path}: byte 0x{raw[error.start]:02X} in line {line} is not {encoding}. Save the "
            'file as "CSV UTF-8", or say what it is: --encoding '
            f"{'utf-16' if wide else 'latin-1'}. Nothing was imported."
        ) from error
