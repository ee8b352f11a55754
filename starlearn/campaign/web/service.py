"""The annotation service: shows items to several annotators and stores their responses."""

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass

from starlearn.campaign import events
from starlearn.campaign.annotation import (
    Action,
    end_of_batch,
    last_response,
    open_batch,
    store_action,
)
from starlearn.campaign.campaign import BatchItem, Campaign, items_waiting
from starlearn.campaign.events import Event
from starlearn.campaign.responses import checked_name
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


class AnnotationService:
    """Serves one campaign to several annotators; its methods are thread-safe.

    The campaign's lock is taken for each response alone. A query or training in another terminal
    can run between two responses, and the page shows which process holds the lock.
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self._saved: set[tuple[str, str]] = set()
        # Lock order: this mutex of the threads first, then the campaign's lock.
        self._mutex = threading.Lock()
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
        with self._mutex:
            # The log is read before the batch. A response that arrives in between makes the page
            # out of date, so its form is refused. In the other order the page would not show that
            # response, and its form would replace it.
            log, batch = events.events(self.campaign.store), open_batch(self.campaign)
            item = next((item for item in batch if item.id == wanted), None)
            item = item or self._next(name, batch)
            if item is not None:
                self._shown[name] = item.id
            mine = [event for event in log if event.annotator == name]
            newest = mine[-1] if mine and mine[-1].item in {i.id for i in batch} else None
            return AnnotatorView(
                annotator=name,
                status=self.campaign.status(),
                choices=self.campaign.choices,
                item=item,
                seen=sum(item is not None and event.item == item.id for event in mine),
                n_done=sum(name in item.responses for item in batch),
                last=last_response(log, batch, name),
                newest=newest,
                undone=log[newest.undoes - 1] if newest and newest.undoes else None,
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
        with self._mutex:
            if self._is_stored(uuid, action):
                return
            with self.campaign.holding(COMMAND, WAIT):
                self._require_current(name, item, seen)
                store_action(self.campaign, item, action, name, ms=ms, uuid=uuid)
            self._saved.add((name, item))
            self._shown.pop(name, None)

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
                log = events.events(self.campaign.store)
                last = last_response(log, open_batch(self.campaign), name)
                if last is None or last.seq != response:
                    raise OutOfDateError(
                        "This is no longer your last response, or its round has ended. Nothing was "
                        "undone."
                    )
                self.campaign.undo(name, uuid=uuid)
            self._saved.discard((name, last.item))
            return last.item

    def _next(self, name: str, batch: list[BatchItem]) -> BatchItem | None:
        """Return the item on the annotator's page, else one that no other annotator sees."""
        needed = self.campaign.options["per_item"]
        waiting = items_waiting(name, batch, needed)
        others = Counter(item for who, item in self._shown.items() if who != name)
        same = [item for item in waiting if item.id == self._shown.get(name)]
        free = [item for item in waiting if len(item.responses) + others[item.id] < needed]
        return next(iter([*same, *free, *waiting]), None)

    def _uuid(self, *parts: object) -> str:
        """Return a uuid that is equal for equal parts, so that a repeated form is recognised."""
        text = json.dumps([self.campaign.id, *parts])
        return f"web-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _is_stored(self, uuid: str, action: Action) -> bool:
        stored = events.event_with_uuid(self.campaign.store, uuid)
        if stored is None:
            return False
        text = stored.answer if stored.kind == "label" else stored.note
        if (stored.kind, text) != (action.kind, action.text):
            raise OutOfDateError(
                f"Your response {stored.answer or stored.kind!r} to this item is already saved. "
                "This was not saved. To change your answer, undo the first response."
            )
        return True

    def _require_current(self, name: str, item: str, seen: int) -> None:
        if (end := end_of_batch(self.campaign, item)) is not None:
            raise OutOfDateError(f"{end} This was not saved.")
        mine = [
            event
            for event in events.events(self.campaign.store)
            if (event.annotator, event.item) == (name, item)
        ]
        if len(mine) != seen:
            raise OutOfDateError(
                "You have responded to this item after this page was shown, in another window or "
                "in a terminal. This was not saved."
            )
