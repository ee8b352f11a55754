"""Import of labels: rows are checked one by one, then stored together or not at all."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.events import Entry
from starlearn.campaign.items import composed
from starlearn.campaign.responses import (
    checked_answer,
    checked_name,
    checked_text,
    choices_remedy,
    outside,
    spelled_alike,
)
from starlearn.errors import InputError, listed, row_lines, worded

ID, LABEL, WHY, CAMPAIGN, ANNOTATOR = "id", "label", "why", "campaign", "annotator"
OWN = (ID, LABEL, WHY, CAMPAIGN, ANNOTATOR)
PREFIX = "field:"
"""Prefix of the column of an item's field whose name is also one of our columns."""

Row = dict[str, str | None]


@dataclass(frozen=True)
class ImportResult:
    """Counts of one import."""

    n_new: int
    """Labels that were stored."""
    n_same: int
    """Labels and skips that were stored before."""
    n_open: int
    """Rows without a label."""
    notes: list[str] = field(default_factory=list)
    """Messages about harmless irregularities."""
    n_skips: int = 0
    """Skips that were stored."""


def own_columns(names: Collection[str], fields: Collection[str]) -> dict[str, str]:
    """Return our name of each column that differs from it only in case or outer spaces.

    Columns of the items' `fields`, and those of which there are two, keep their names.
    """
    spelled = {name: name.strip().casefold() for name in names if name not in fields}
    counts = Counter(spelled.values())
    return {
        name: own
        for name, own in spelled.items()
        if own in OWN and own not in names and counts[own] == 1
    }


def column_of(name: str) -> str:
    """Return the column of an item's field."""
    return PREFIX + name if name in OWN or name.startswith(PREFIX) else name


class LabelImport:
    """An import that collects rows and their errors, and stores only when there are no errors.

    `annotator` is that of rows that name none; `relabel` maps spellings in the rows to choices.
    """

    def __init__(
        self, campaign: Campaign, annotator: str, relabel: Mapping[str, str] | None = None
    ) -> None:
        self.campaign = campaign
        self.annotator = checked_name(annotator)
        self.relabel = {composed(old): new for old, new in (relabel or {}).items()}
        found = rounds.rounds(campaign.store)
        self.items = {item.id: item for each in found for item in campaign.batch(each.id)}
        self.choices = campaign.choices
        self.errors: list[str] = []
        self.n_open = self.n_same = self.n_edited = 0
        log = events.events(campaign.store)
        undone = {event.undoes for event in log}
        self._stored = {
            (event.item, event.annotator, event.answer)
            for event in log
            if event.kind == "label" and event.seq not in undone
        }
        self._current = {
            (event.item, event.annotator): event.answer
            for event in events.current_responses(log)
            if event.kind == "label"
        }
        self.n_reassigned = 0
        self.unknown: set[str] = set()
        self._has_unknown_choice = False
        self._respelled: Counter[tuple[str, str]] = Counter()
        names = {name for item in self.items.values() for name in item.fields}
        names.update(campaign.pool_facts.get("fields", ()))
        self.columns = {column_of(name) for name in names}
        """Columns of the pool's fields."""
        self.entries: list[Entry] = []
        self._from_rows: dict[tuple[str, str], tuple[str, str]] = {}
        self._by_text: dict[str, str] = {}
        for item in self.items.values():
            self._by_text.setdefault(_normalized(item.fields), item.id)

    def add_row(
        self,
        place: str,
        row: Row,
        kind: str = "label",
        uuid: str | None = None,
        ms: int | None = None,
    ) -> None:
        """Add one row, a label or a skip; an error is collected with its place, not raised.

        The row has the columns id and label, and optionally campaign, annotator and the item's
        fields. Rows whose `uuid` is stored must be left out.
        """
        try:
            self._add_row(place, row, kind, uuid, ms)
        except InputError as error:
            self.errors.append(f"{place}: {error}")

    def relabelled(self, label: str | None) -> str | None:
        """Return a label in form NFC, or the choice that its spelling stands for."""
        if label is None:
            return None
        text = self.relabel.get(composed(label), composed(label))
        if self.choices is None or {text, text.strip()} & set(self.choices):
            return text
        alike = spelled_alike(text, self.choices)
        return alike[0] if len(alike) == 1 else text

    def require_usable(self, where: str, rows: str, remedy: str) -> None:
        """Raise InputError when a row cannot be used; `where` the `rows` are from, and a remedy."""
        if not self.errors:
            return
        if self._has_unknown_choice:
            relabel = worded(
                python='relabel={"SPELLING": "CHOICE"}', terminal='--relabel "SPELLING=CHOICE"'
            )
            known = choices_remedy(self.choices or [], self.campaign.folder)
            remedy = f"{remedy} {known} To map a spelling to a choice: {relabel}."
        raise InputError(
            f"{where}: {len(self.errors)} {rows} cannot be imported:{row_lines(self.errors)}"
            f"Nothing was imported. {remedy}"
        )

    def store(self) -> ImportResult:
        """Store all new responses in one transaction, in the order of their rows."""
        new: list[Entry] = []
        old: list[Entry] = []
        for entry in self.entries:
            is_old = (entry.item, entry.annotator, entry.answer) in self._stored and not entry.uuid
            (old if is_old else new).append(entry)
        if new:
            self.campaign.record(new, command="import")
        notes = []
        n_changed = sum(
            self._current.get((entry.item, entry.annotator)) != entry.answer for entry in old
        )
        if n_changed:
            restore = " To restore the label of the file: campaign.label(item, answer)."
            notes.append(
                f"{n_changed} rows repeat a label that their annotator has changed since. The "
                f"change is kept.{worded(python=restore, terminal='')}"
            )
        if self.n_reassigned:
            notes.append(
                f"In {self.n_reassigned} rows the label of another annotator was changed. The new "
                f"label is stored for {self.annotator}, and theirs is kept."
            )
        if self.n_edited:
            notes.append(
                f"In {self.n_edited} rows the text differs from the one that was issued; their "
                "labels belong to the text as it was issued."
            )
        if self._respelled:
            pairs = [f"{old!r:.40} as {new!r:.40}" for old, new in self._respelled]
            notes.append(
                f"{self._respelled.total()} labels were read in the spelling of the choices: "
                f"{listed(pairs)}."
            )
        if self.unknown:
            notes.append(f"Columns that were not used: {', '.join(sorted(self.unknown))}.")
        n_skips = sum(entry.kind == "skip" for entry in new)
        n_same = self.n_same + len(self.entries) - len(new)
        return ImportResult(len(new) - n_skips, n_same, self.n_open, notes, n_skips)

    def _add_row(self, place: str, row: Row, kind: str, uuid: str | None, ms: int | None) -> None:
        key, label = row.get(ID), row.get(LABEL)
        owner = row.get(CAMPAIGN)
        if owner and owner != self.campaign.id:
            raise InputError(f"it belongs to another campaign ({owner!r:.40})")
        if not isinstance(key, str) or key.strip() not in self.items:
            raise InputError(f"id {key!r:.50} was never issued in this campaign")
        item = self.items[key.strip()]
        self._check_text(item, row)
        answer = None
        if kind == "label":
            if label is None or (isinstance(label, str) and not label.strip()):
                self.n_open += 1
                return
            answer = self._answer(label)
        annotator = checked_name(row.get(ANNOTATOR) or self.annotator)
        before = self._current.get((item.id, annotator))
        if annotator != self.annotator and uuid is None and before not in (None, answer):
            # The column names who gave the label that was exported, not who changed it.
            annotator = self.annotator
            self.n_reassigned += 1
        if uuid is None and answer is not None:
            earlier = self._from_rows.setdefault((item.id, annotator), (answer, place))
            if earlier[0] != answer:
                raise InputError(
                    f"item {item.id} is {answer!r:.40} here and {earlier[0]!r:.40} in {earlier[1]}"
                )
            if earlier[1] != place:  # an earlier row holds the same label
                return
        self.entries.append(Entry(kind, item.id, annotator, answer, ms=ms, uuid=uuid))

    def _answer(self, label: str) -> str:
        """Return a label as it is stored; a label that is only spelled like a choice is noted."""
        text = checked_text(label)
        answer = self.relabelled(text) or text
        if self.choices is not None and not {answer, answer.strip()} & set(self.choices):
            self._has_unknown_choice = True
            raise InputError(outside(answer, self.choices))
        if answer != self.relabel.get(text, text):
            self._respelled[text.strip(), answer] += 1
        return checked_answer(answer, self.choices)

    def _check_text(self, item: BatchItem, row: Row) -> None:
        """Raise InputError when the row has the text of another item, as after a bad sort."""
        here = {name: row[column_of(name)] for name in item.fields if column_of(name) in row}
        self.unknown |= {name for name in row if name not in self.columns and name not in OWN}
        texts = {name: "" if text is None else str(text) for name, text in here.items()}
        if not texts or _normalized(texts) == _normalized({n: item.fields[n] for n in texts}):
            return
        other = self._by_text.get(_normalized(texts)) if len(texts) == len(item.fields) else None
        if other is not None:
            raise InputError(
                f"the row of id {item.id} has the text of {other}: was one column sorted alone?"
            )
        self.n_edited += 1


def _normalized(fields: Mapping[str, str]) -> str:
    """Return texts without what spreadsheets change: spaces, line ends and the Unicode form."""
    return json.dumps({name: " ".join(composed(fields[name]).split()) for name in sorted(fields)})
