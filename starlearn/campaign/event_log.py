"""The log of events in memory: each event verified once, and the responses that count now."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, fields
from typing import Any

from starlearn.campaign.chronology import Chronology, in_order
from starlearn.campaign.integrity import checksum
from starlearn.campaign.items import composed
from starlearn.campaign.store import Store


@dataclass(frozen=True, slots=True)
class Event:
    """One response of one annotator to one item, or the undo of one."""

    seq: int
    """1, 2, 3, ... without gaps. Responses given here are ordered by it, not by the clock."""
    uuid: str
    """Chosen by the client, so that an event that is sent twice is stored once."""
    kind: str
    """label, skip, flag or undo."""
    item: str
    annotator: str
    answer: str | None
    """The answer of a label; None for other kinds."""
    note: str | None
    undoes: int | None
    """For an undo, the event that no longer counts."""
    round: int
    """The latest round in which the item was issued."""
    ms: int | None
    """Time that the annotator took in milliseconds, if known."""
    at: str
    """Time in UTC at which it was stored."""

    def __post_init__(self) -> None:
        # An earlier version stored names and answers in any Unicode form.
        object.__setattr__(self, "annotator", composed(self.annotator))
        if self.answer is not None:
            object.__setattr__(self, "answer", composed(self.answer))


COLUMNS = ", ".join(field.name for field in fields(Event))
SINCE = f"SELECT {COLUMNS}, crc FROM event WHERE seq >= ? ORDER BY seq"  # noqa: S608 - our own


class EventLog:
    """The events of a label store and the current response of each annotator to each item.

    `refresh` reads the newer events only. Hold `store.mutex` over `refresh` and the reads that
    follow it when several threads use the store.

    Attributes
    ----------
    events : list of Event
        All events in the order in which they were stored.
    by_annotator : dict
        The events of each annotator, in the same order.
    by_item : dict
        For each item with a response, the current response of each annotator, oldest first. An
        imported response has the time at which it was given.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.events: list[Event] = []
        self._committed = 0
        """Number of events that were read outside of a transaction, so that they are stored."""
        self._rollbacks = store.rollbacks
        self._keep(0)

    def refresh(self) -> "EventLog":
        """Read and verify the events that are not in memory yet; return the log."""
        with self.store.mutex:
            self.store.require_in_place()
            if self._rollbacks != self.store.rollbacks:
                self._rollbacks = self.store.rollbacks
                self._keep(self._committed)
            # The newest known event is read again: if it differs, another store has taken the
            # place of the one that was read.
            rows = self.store.execute(SINCE, (len(self.events),))
            if self.events and (not rows or Event(*rows[0][:-1]) != self.events[-1]):
                self._keep(0)
                rows = self.store.execute(SINCE, (0,))
            for expected, (*row, crc) in enumerate(rows, start=max(len(self.events), 1)):
                if row[0] != expected:
                    raise self.store.corrupt(f"event {expected} is missing")
                if checksum(*row) != crc:
                    raise self.store.corrupt(f"event {expected} is not the one that was written")
                if expected > len(self.events):
                    self._add(Event(*row))
            if not self.store.in_transaction:
                self._committed = len(self.events)
            return self

    def responses(self) -> list[Event]:
        """Return the current response of each annotator to each item, oldest first."""
        found = (event for given in self.by_item.values() for event in given.values())
        return sorted(found, key=self._place)

    def last_response(self, annotator: str) -> Event | None:
        """Return the annotator's last response that counts."""
        counting = self._counting.get(annotator)
        return counting[-1] if counting else None

    def n_events(self, annotator: str, item: str) -> int:
        """Return the number of an annotator's events about an item, of any kind."""
        return self._n_events[annotator, item]

    def n_responses(self, item: str) -> int:
        """Return the number of annotators with a current response to an item."""
        return len(self.by_item.get(item, ()))

    def items_with(self, n: int) -> Set[str]:
        """Return the items with responses of at least n annotators."""
        if n not in self._items_with:
            found = {item for item, given in self.by_item.items() if len(given) >= n}
            self._items_with[n] = found
        return self._items_with[n]

    def n_labelled(self, resolution: str) -> int:
        """Return the number of items with a label under a resolution."""
        agreed = self._answered - self._disputed if resolution == "unanimous" else self._answered
        return len(agreed)

    def n_items(self, kind: str) -> int:
        """Return the number of items that an annotator currently skips, or flags."""
        return len(self._items_of_kind[kind])

    def items_per_annotator(self) -> dict[str, int]:
        """Return the number of items with a current response, by annotator."""
        return {annotator: len(items) for annotator, items in self._items.items() if items}

    def items_of(self, annotator: str) -> Set[str]:
        """Return the items to which an annotator has a current response."""
        return self._items.get(annotator, frozenset())

    def _keep(self, n: int) -> None:
        """Forget all but the first n events."""
        kept, self.events = self.events[:n], []
        self._chronology = Chronology()
        self._places: list[tuple[Any, ...]] = []
        """Place in time of each event."""
        self._committed = min(self._committed, n)
        self.by_annotator: dict[str, list[Event]] = {}
        self.by_item: dict[str, dict[str, Event]] = {}
        self._n_events: Counter[tuple[str, str]] = Counter()
        self._counting: dict[str, list[Event]] = {}
        """Responses of each annotator that are not undone, oldest first."""
        self._counting_of: dict[tuple[str, str], list[Event]] = {}
        """The same by item and annotator; the last of them is the current response."""
        self._undone: set[int] = set()
        self._items: dict[str, set[str]] = {}
        self._items_with: dict[int, set[str]] = {}
        self._answered: set[str] = set()
        self._disputed: set[str] = set()
        self._items_of_kind: dict[str, set[str]] = {"skip": set(), "flag": set()}
        for event in kept:
            self._add(event)

    def _place(self, event: Event) -> tuple[Any, ...]:
        return self._places[event.seq - 1]

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._places.append(self._chronology.place(event))
        self.by_annotator.setdefault(event.annotator, []).append(event)
        self._n_events[event.annotator, event.item] += 1
        if event.kind != "undo":
            if event.seq not in self._undone:
                pair = event.item, event.annotator
                insort(self._counting.setdefault(event.annotator, []), event, key=self._place)
                insort(self._counting_of.setdefault(pair, []), event, key=self._place)
                self._update(*pair)
        elif event.undoes is not None:
            self._undone.add(event.undoes)
            if event.undoes < event.seq:
                self._remove(self.events[event.undoes - 1])

    def _remove(self, event: Event) -> None:
        pair = event.item, event.annotator
        for counting in (self._counting.get(event.annotator, []), self._counting_of.get(pair, [])):
            place = bisect_left(counting, self._place(event), key=self._place)
            if counting[place : place + 1] == [event]:
                del counting[place]
        self._update(*pair)

    def _update(self, item: str, annotator: str) -> None:
        """Derive the current responses to an item after one of its annotators has changed."""
        given = self.by_item.setdefault(item, {})
        given.pop(annotator, None)
        counting = self._counting_of.get((item, annotator))
        if counting:
            ordered = list(given.values())
            insort(ordered, counting[-1], key=self._place)
            given = self.by_item[item] = {event.annotator: event for event in ordered}
        elif not given:
            del self.by_item[item]
        _set(self._items.setdefault(annotator, set()), item, bool(counting))
        for n, items in self._items_with.items():
            _set(items, item, len(given) >= n)
        answers = {event.answer for event in given.values() if event.answer is not None}
        _set(self._answered, item, bool(answers))
        _set(self._disputed, item, len(answers) > 1)
        for kind, items in self._items_of_kind.items():
            _set(items, item, any(event.kind == kind for event in given.values()))


def log_of(store: Store) -> EventLog:
    """Return the log of an open store with all its events; each is read and verified once."""
    with store.mutex:
        log: EventLog = store.kept.get("log") or EventLog(store)
        store.kept["log"] = log
        return log.refresh()


def current_responses(log: Iterable[Event]) -> list[Event]:
    """Return the current responses as they were at the end of a part of the log, oldest first.

    The view `word` of the label store holds the same rows where nothing was imported from Label
    Studio, without the checks of `EventLog`.
    """
    log = in_order(log)
    undone = {event.undoes for event in log if event.undoes is not None}
    found: dict[tuple[str, str], Event] = {}
    for event in log:
        if event.kind != "undo" and event.seq not in undone:
            found.pop((event.item, event.annotator), None)
            found[event.item, event.annotator] = event
    return list(found.values())


def _set(items: set[str], item: str, wanted: bool) -> None:
    (items.add if wanted else items.discard)(item)
