"""The campaign behind the page: one request at a time, each word once, to each an item."""

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass

from starlearn.campaign import events
from starlearn.campaign.annotation import Said, last_of, last_word, open_batch, store
from starlearn.campaign.campaign import BatchItem, Campaign, waiting_for
from starlearn.campaign.events import Event
from starlearn.campaign.responses import checked_name
from starlearn.campaign.status import Status
from starlearn.errors import InputError

COMMAND = "label --web"
"""What others read about who holds the campaign, for as long as a word is being written."""

WAIT = 0.5
"""Seconds to wait for another process; the words of other annotators wait behind this one."""


class OutOfDateError(InputError):
    """A word about something that has changed since the page was shown; nothing was stored."""


@dataclass(frozen=True)
class View:
    """What one annotator sees."""

    annotator: str
    status: Status
    choices: list[str] | None
    item: BatchItem | None
    """None when none of the batch waits for this annotator, or there is no batch."""
    seen: int
    """How often this annotator has said or taken back something about the item."""
    mine: int
    """Items of the batch on which this annotator had their say."""
    last: Event | None
    """Their last word that counts: the one that undo takes back."""
    heard: Event | None
    """The newest thing that they did: a word, or an undo."""
    undone: Event | None
    """What it took back, when it was an undo."""


class Desk:
    """Serves one campaign to several annotators; every method may be called from any thread.

    The campaign's lock is taken for each word alone, so that a query or a training in another
    terminal finds the campaign free between two words, and the page tells who holds it meanwhile.

    Parameters
    ----------
    campaign : Campaign
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.saved = 0
        self._turn = threading.Lock()
        self._looking: dict[str, str] = {}
        """The item before each annotator. Only a hint: others are given another one first."""

    def names(self) -> list[str]:
        """Return the annotators who have spoken in this campaign."""
        with self._turn:
            return sorted(self.campaign.status().annotators)

    def view(self, annotator: str, wanted: str | None = None) -> View:
        """Return what an annotator sees now.

        Parameters
        ----------
        annotator : str
        wanted : str, optional
            An item of the batch to show, whoever has spoken about it.
        """
        name = checked_name(annotator)
        with self._turn:
            # In this order: a word that comes between the two makes the page out of date, and it
            # is refused. The other way round, the page would hide that word and replace it.
            log, batch = events.events(self.campaign.store), open_batch(self.campaign)
            item = next((item for item in batch if item.id == wanted), None)
            item = item or self._next(name, batch)
            if item is not None:
                self._looking[name] = item.id
            mine = [event for event in log if event.annotator == name]
            heard = mine[-1] if mine and mine[-1].item in {i.id for i in batch} else None
            return View(
                annotator=name,
                status=self.campaign.status(),
                choices=self.campaign.choices,
                item=item,
                seen=sum(item is not None and event.item == item.id for event in mine),
                mine=sum(name in item.said for item in batch),
                last=last_of(log, batch, name),
                heard=heard,
                undone=log[heard.undoes - 1] if heard and heard.undoes else None,
            )

    def say(self, annotator: str, item: str, said: Said, seen: int, ms: int | None = None) -> None:
        """Store a word; the same word of the same page is stored once, however often it is sent.

        Parameters
        ----------
        annotator, item : str
        said : Said
            A label, a skip or a flag.
        seen : int
            `View.seen` of the page on which it was said.
        ms : int, optional
            Milliseconds that the annotator took.

        Raises
        ------
        OutOfDateError
            When the batch has ended, or this annotator said something else about the item since.
        InputError
            When the answer cannot be used.
        CampaignLockedError, StorageError
            When it could not be stored; sending it again later is safe.
        """
        name = checked_name(annotator)
        uuid = self._uuid(name, item, seen)
        with self._turn:
            if self._said_before(uuid, said):
                return
            with self.campaign.holding(COMMAND, WAIT):
                self._require_current(name, item, seen)
                store(self.campaign, item, said, name, ms=ms, uuid=uuid)
            self.saved += 1
            self._looking.pop(name, None)

    def undo(self, annotator: str, word: int) -> str:
        """Take back the annotator's last word, when it is the one that they saw; return its item.

        Parameters
        ----------
        annotator : str
        word : int
            `seq` of the word.

        Raises
        ------
        OutOfDateError
            When it is no longer their last word, or its round has ended.
        CampaignLockedError, StorageError
        """
        name = checked_name(annotator)
        uuid = self._uuid(name, "undo", word)
        with self._turn:
            before = events.known(self.campaign.store, uuid)
            if before is not None:
                return before.item
            with self.campaign.holding(COMMAND, WAIT):
                last = last_word(self.campaign, name)
                if last is None or last.seq != word:
                    raise OutOfDateError(
                        "This is no longer your last word, or its round has ended. Nothing was "
                        "taken back."
                    )
                self.campaign.undo(name, uuid=uuid)
            return last.item

    def _next(self, name: str, batch: list[BatchItem]) -> BatchItem | None:
        """Choose the item to show: what is before the annotator, else what nobody looks at."""
        needed = self.campaign.options["per_item"]
        waiting = waiting_for(name, batch, needed)
        others = Counter(item for who, item in self._looking.items() if who != name)
        same = [item for item in waiting if item.id == self._looking.get(name)]
        free = [item for item in waiting if len(item.said) + others[item.id] < needed]
        return next(iter([*same, *free, *waiting]), None)

    def _uuid(self, *what: object) -> str:
        """Return the same uuid for the same thing, from whichever page it is sent."""
        text = json.dumps([self.campaign.id, *what])
        return f"web-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _said_before(self, uuid: str, said: Said) -> bool:
        known = events.known(self.campaign.store, uuid)
        if known is None:
            return False
        text = known.answer if known.kind == "label" else known.note
        if (known.kind, text) != (said.kind, said.text):
            raise OutOfDateError(
                f"You have already said {known.answer or known.kind!r} about this item, and that "
                "is saved. This was not saved. To change your answer, take the first back (undo)."
            )
        return True

    def _require_current(self, name: str, item: str, seen: int) -> None:
        if item not in {asked.id for asked in open_batch(self.campaign)}:
            raise OutOfDateError(
                "The batch that this item was in has ended: its labels were trained on, or "
                "another batch was issued. This was not saved."
            )
        mine = [
            event
            for event in events.events(self.campaign.store)
            if (event.annotator, event.item) == (name, item)
        ]
        if len(mine) != seen:
            raise OutOfDateError(
                "You have said something about this item since this page was shown, in another "
                "window or in a terminal. This was not saved."
            )
