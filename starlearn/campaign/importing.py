"""Labels from elsewhere: checked row by row, stored all together or not at all, each once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.events import Entry
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.errors import InputError

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
    """Labels and skips that were there already."""
    n_open: int
    """Rows without a label."""
    notes: list[str] = field(default_factory=list)
    """What was odd and did no harm."""
    n_skips: int = 0
    """Skips stored now."""


@dataclass(frozen=True)
class Word:
    """What is known of a row beside its columns, where its source knows more than a file."""

    kind: str = "label"
    """label or skip."""
    uuid: str | None = None
    """Names this word: it is stored once, and an annotator may have several on one item."""
    ms: int | None = None
    """Milliseconds that the annotator took."""


PLAIN = Word()


def column_of(name: str) -> str:
    """Return the column of an item's field."""
    return PREFIX + name if name in OWN or name.startswith(PREFIX) else name


class Intake:
    """Takes rows one by one, collects complaints, and stores only when there is none.

    Parameters
    ----------
    campaign : Campaign
    annotator : str
        Who gave the labels, where a row does not say.
    relabel : mapping, optional
        Spellings in the rows and the choices that they mean.

    Attributes
    ----------
    items : dict
        Every item that was ever issued, by its id.
    complaints : list of str
        What is wrong, with the place of each row.
    n_edited : int
        Rows whose text differs from the one that was issued.
    """

    def __init__(
        self, campaign: Campaign, annotator: str, relabel: Mapping[str, str] | None = None
    ) -> None:
        self.campaign = campaign
        self.annotator, self.relabel = checked_name(annotator), relabel or {}
        found = rounds.rounds(campaign.store)
        self.items = {item.id: item for each in found for item in campaign.batch(each.id)}
        self.choices = campaign.choices
        self.complaints: list[str] = []
        self.n_open = self.n_same = self.n_edited = 0
        log = events.events(campaign.store)
        self._known = {event.uuid for event in log}
        undone = {event.undoes for event in log}
        self._said = {
            (event.item, event.annotator, event.answer)
            for event in log
            if event.kind == "label" and event.seq not in undone
        }
        self._standing = {
            (event.item, event.annotator): event.answer
            for event in events.standing(log)
            if event.kind == "label"
        }
        self.n_instead = 0
        self.unknown: set[str] = set()
        self._words: list[Entry] = []
        self._plain: dict[tuple[str, str], tuple[str, str]] = {}
        self._by_text: dict[str, str] = {}
        for item in self.items.values():
            self._by_text.setdefault(_spelled(item.fields), item.id)

    def read(self, place: str, row: Row, word: Word = PLAIN) -> None:
        """Take one row; what is wrong with it is remembered, not raised.

        Parameters
        ----------
        place : str
            Where it stands, such as "line 3".
        row : dict
            Columns id, label, and where known campaign, annotator and the item's fields.
        word : Word
        """
        try:
            self._read(place, row, word)
        except InputError as error:
            self.complaints.append(f"{place}: {error}")

    def stored(self) -> Imported:
        """Store all that is new, in one transaction, in the order in which it was read."""
        new: list[Entry] = []
        old: list[Entry] = []
        for entry in self._words:
            is_old = (entry.item, entry.annotator, entry.answer) in self._said and not entry.uuid
            (old if is_old else new).append(entry)
        if new:
            self.campaign.say(new, command="import")
        notes = []
        n_changed = sum(
            self._standing.get((entry.item, entry.annotator)) != entry.answer for entry in old
        )
        if n_changed:
            notes.append(
                f"{n_changed} rows say what their annotator has said before and changed since; the "
                "change stands. To go back to what they say: campaign.label(item, answer)."
            )
        if self.n_instead:
            notes.append(
                f"In {self.n_instead} rows the label of another annotator was changed; it is "
                f"stored as what {self.annotator} says, beside theirs."
            )
        if self.n_edited:
            notes.append(
                f"In {self.n_edited} rows the text differs from the one that was issued; their "
                "labels belong to the text as it was issued."
            )
        if self.unknown:
            notes.append(f"Columns that were not used: {', '.join(sorted(self.unknown))}.")
        n_skips = sum(entry.kind == "skip" for entry in new)
        n_same = self.n_same + len(self._words) - len(new)
        return Imported(len(new) - n_skips, n_same, self.n_open, notes, n_skips)

    def _read(self, place: str, row: Row, word: Word) -> None:
        if word.uuid in self._known:  # it was said, whatever was said since
            self.n_same += 1
            return
        key, label = row.get(ID), row.get(LABEL)
        owner = row.get(CAMPAIGN)
        if owner and owner != self.campaign.id:
            raise InputError(f"it belongs to another campaign ({owner!r:.40})")
        if not isinstance(key, str) or key.strip() not in self.items:
            raise InputError(f"id {key!r:.50} was never issued in this campaign")
        item = self.items[key.strip()]
        self._compare(item, row)
        answer = None
        if word.kind == "label":
            if label is None or (isinstance(label, str) and not label.strip()):
                self.n_open += 1
                return
            if isinstance(label, str):
                label = self.relabel.get(label, label)
            answer = checked_answer(label, self.choices, self.campaign.folder)
        annotator = checked_name(row.get(ANNOTATOR) or self.annotator)
        before = self._standing.get((item.id, annotator))
        if annotator != self.annotator and word.uuid is None and before not in (None, answer):
            # The column says who gave the label that was exported, not who changed it.
            annotator = self.annotator
            self.n_instead += 1
        if word.uuid is None and answer is not None and self._twice(item, annotator, answer, place):
            return
        entry = Entry(word.kind, item.id, annotator, answer=answer, ms=word.ms, uuid=word.uuid)
        self._words.append(entry)

    def _twice(self, item: BatchItem, annotator: str, answer: str, place: str) -> bool:
        """Tell whether a row says again what an earlier one said; it must not say otherwise."""
        earlier = self._plain.get((item.id, annotator))
        if earlier is None:
            self._plain[item.id, annotator] = (answer, place)
        elif earlier[0] != answer:
            raise InputError(
                f"item {item.id} is {answer!r:.40} here and {earlier[0]!r:.40} in {earlier[1]}"
            )
        return earlier is not None

    def _compare(self, item: BatchItem, row: Row) -> None:
        """Find texts that moved away from their ids, as when one column was sorted alone."""
        here = {name: row[column_of(name)] for name in item.fields if column_of(name) in row}
        columns = {column_of(name) for name in item.fields}
        self.unknown |= {name for name in row if name not in columns and name not in OWN}
        texts = {name: "" if text is None else str(text) for name, text in here.items()}
        if not texts or _spelled(texts) == _spelled({n: item.fields[n] for n in texts}):
            return
        other = self._by_text.get(_spelled(texts)) if len(texts) == len(item.fields) else None
        if other is not None:
            raise InputError(
                f"beside id {item.id} stands the text of {other}: was one column sorted alone?"
            )
        self.n_edited += 1


def _spelled(fields: Mapping[str, str]) -> str:
    """Return texts without what spreadsheets change: line ends and outer or double spaces."""
    return json.dumps({name: " ".join(fields[name].split()) for name in sorted(fields)})
