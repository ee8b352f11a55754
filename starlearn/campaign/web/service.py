"""The annotation service: shows items to several annotators and stores their responses."""

import hashlib
import itertools
import json
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from starlearn.campaign import events
from starlearn.campaign.annotation import (
    Action,
    end_of_batch,
    entry_of,
    issued_now,
    last_response,
)
from starlearn.campaign.campaign import BatchItem, Campaign, batch_item
from starlearn.campaign.event_log import Event, EventLog, log_of
from starlearn.campaign.events import Entry
from starlearn.campaign.responses import checked_name
from starlearn.campaign.rounds import Issued
from starlearn.campaign.status import Status
from starlearn.errors import InputError

COMMAND = "label --web"
"""The command that the lock file names while a response is written."""

WAIT = 0.5
"""Seconds to wait for another process, during which other annotators wait too."""


class OutOfDateError(InputError):
    """A response to something that changed after the page was shown; nothing was stored."""


@dataclass(frozen=True)
class AnnotatorView:
    """The data of one annotator's page."""

    annotator: str
    status: Status
    choices: list[str] | None
    item: BatchItem | None
    """None when no item of the batch waits for this annotator."""
    seen: int
    """Number of this annotator's events about the item when the page was made."""
    n_done: int
    """Items of the batch with a response of this annotator."""
    last: Event | None
    """Their last response that counts, which undo would undo."""
    newest: Event | None
    """Their newest event of any kind, if it is about the batch."""
    undone: Event | None
    """The response that the newest event undid, if it is an undo."""


@dataclass
class _Response:
    """A response that waits to be stored, with what becomes of it."""

    entry: Entry
    seen: int
    is_settled: bool = False
    error: BaseException | None = None

    @property
    def content(self) -> tuple[str, str | None, str | None]:
        """What must be the same in a form that is sent again."""
        return self.entry.kind, self.entry.answer, self.entry.note


class AnnotationService:
    """Serves one campaign to several annotators; its methods are thread-safe.

    The campaign's lock is taken to write the responses that wait, and released at once. A query or
    training in another terminal can run in between, and the page shows which process holds it.
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self._saved: set[tuple[str, str]] = set()
        # Lock order: this mutex of the threads first, then the campaign's lock.
        self._mutex = threading.Lock()
        self._waiting: deque[_Response] = deque()
        self._shown: dict[str, str] = {}
        """Item on each annotator's page. Others get it only when no other item is left."""

    @property
    def n_saved(self) -> int:
        """Number of responses that were saved and not undone, one per annotator and item."""
        with self._mutex:
            return len(self._saved)

    def names(self) -> list[str]:
        """Return the annotators who have responded in this campaign."""
        with self._mutex:
            return sorted(self.campaign.status().annotators)

    def view(self, annotator: str, wanted: str | None = None) -> AnnotatorView:
        """Return what an annotator sees now: the `wanted` item of the batch, or the next one."""
        name = checked_name(annotator)
        with self._mutex, self.campaign.store.mutex:
            batch, log = issued_now(self.campaign), log_of(self.campaign.store)
            issued = batch.get(wanted or "") or self._next(name, batch, log)
            if issued is not None:
                self._shown[name] = issued.item
            newest = log.by_annotator.get(name, [None])[-1]
            if newest is not None and newest.item not in batch:
                newest = None
            # The status comes last, because it may read newer events. A response that arrives after
            # `seen` was counted makes the page out of date, so that its form is refused.
            return AnnotatorView(
                annotator=name,
                choices=self.campaign.choices,
                item=batch_item(issued, log) if issued else None,
                seen=log.n_events(name, issued.item) if issued else 0,
                n_done=len(batch.keys() & log.items_of(name)),
                last=last_response(log, batch, name),
                newest=newest,
                undone=log.events[newest.undoes - 1] if newest and newest.undoes else None,
                status=self.campaign.status(),
            )

    def record(
        self, annotator: str, item: str, action: Action, seen: int, ms: int | None = None
    ) -> None:
        """Store a label, a skip or a flag; the same response from the same page is stored once.

        `seen` is `AnnotatorView.seen` of the page. Raise OutOfDateError when the batch has ended,
        or this annotator has another response to the item. After a CampaignLockedError or
        StorageError, sending it again is safe.
        """
        name = checked_name(annotator)
        uuid = self._uuid(name, item, seen)
        entry = entry_of(self.campaign, item, action, name, ms=ms, uuid=uuid)
        response = _Response(entry, seen)
        self._waiting.append(response)
        with self._mutex:
            if not response.is_settled:
                self._store_waiting()
        if response.error is not None:
            raise response.error

    def undo(self, annotator: str, response: int) -> str:
        """Undo the annotator's last response if it is the one on their page; return its item.

        `response` is its `seq`. Raise OutOfDateError when it is no longer their last response, or
        its round has ended.
        """
        name = checked_name(annotator)
        uuid = self._uuid(name, "undo", response)
        with self._mutex:
            stored = events.event_with_uuid(self.campaign.store, uuid)
            if stored is not None:
                return stored.item
            with self.campaign.holding(COMMAND, WAIT):
                log = log_of(self.campaign.store)
                last = last_response(log, issued_now(self.campaign), name)
                if last is None or last.seq != response:
                    raise OutOfDateError(
                        "This is no longer your last response, or its round has ended. Nothing was "
                        "undone."
                    )
                self.campaign.undo(name, uuid=uuid)
            self._saved.discard((name, last.item))
            return last.item

    def _next(self, name: str, batch: Mapping[str, Issued], log: EventLog) -> Issued | None:
        """Return the item on the annotator's page, else one that no other annotator sees."""
        needed = self.campaign.options["per_item"]
        others = Counter(item for who, item in self._shown.items() if who != name)
        same = self._shown.get(name, "")
        complete, mine = log.items_with(needed), log.items_of(name)
        first = None
        # A batch can be long, so that the items which are done are passed over without a loop here.
        candidates = itertools.chain([same] if same in batch else [], batch)
        for item in itertools.filterfalse(complete.__contains__, candidates):
            if item in mine:
                continue
            if item == same or log.n_responses(item) + others[item] < needed:
                return batch[item]
            first = first or batch[item]
        return first

    def _store_waiting(self) -> None:
        """Store the responses of all waiting threads in one transaction.

        The disk's sync takes most of the time of a response, so annotators share it. A response
        that is refused does not affect the others.
        """
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        new: dict[str, _Response] = {}
        try:
            found = [response for response in waiting if not self._is_known(response, new)]
            if found:
                with self.campaign.holding(COMMAND, WAIT):
                    for response in found:
                        if not self._is_known(response, new) and self._is_current(response):
                            new[str(response.entry.uuid)] = response
                    self.campaign.record([response.entry for response in new.values()], COMMAND)
            for response in new.values():
                self._saved.add((response.entry.annotator, response.entry.item))
                self._shown.pop(response.entry.annotator, None)
        except BaseException as error:  # noqa: BLE001 - each waiting thread raises it
            for response in waiting:
                response.error = response.error or error
        finally:
            for response in waiting:
                response.is_settled = True

    def _uuid(self, *parts: object) -> str:
        """Return a uuid that is equal for equal parts, so that a repeated form is recognised."""
        text = json.dumps([self.campaign.id, *parts])
        return f"web-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _is_known(self, response: _Response, new: Mapping[str, _Response]) -> bool:
        """Whether the page of a response already has one, stored or about to be."""
        uuid = str(response.entry.uuid)
        known: Event | Entry | None = new[uuid].entry if uuid in new else None
        known = known or events.event_with_uuid(self.campaign.store, uuid)
        if known is None:
            return False
        if (known.kind, known.answer, known.note) != response.content:
            response.error = OutOfDateError(
                f"Your response {known.answer or known.kind!r} to this item is already saved. "
                "This was not saved. To change your answer, undo the first response."
            )
        return True

    def _is_current(self, response: _Response) -> bool:
        """Whether a response is to the open batch, and its page shows the annotator's newest."""
        entry, error = response.entry, None
        if entry.item not in issued_now(self.campaign):
            end = end_of_batch(self.campaign, entry.item) or "The batch of this item has ended."
            error = f"{end} This was not saved."
        elif log_of(self.campaign.store).n_events(entry.annotator, entry.item) != response.seen:
            error = (
                "You have responded to this item after this page was shown, in another window or "
                "in a terminal. This was not saved."
            )
        response.error = OutOfDateError(error) if error else None
        return error is None
