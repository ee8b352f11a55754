"""Campaign: a labelling effort over days in one folder. A thin face over its steps."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlearn.campaign import events, rounds
from starlearn.campaign.doctor import Finding, examine
from starlearn.campaign.events import Entry, Event
from starlearn.campaign.folder import Ground
from starlearn.campaign.paths import Place
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.campaign.status import RoundRecord, Status, history_of, status_of
from starlearn.campaign.store import Store
from starlearn.storage.files import warn_about_place

if TYPE_CHECKING:
    from starlearn.learner.estimator import STARLearner


@dataclass(frozen=True)
class BatchItem:
    """One item of a batch: what annotators see, and why they are asked."""

    id: str
    fields: dict[str, str]
    place: int
    """0 is the item whose label is worth most."""
    score: float | None
    reason: str
    """Why it was chosen."""
    answers: dict[str, str]
    """The answer of each annotator that stands."""
    said: dict[str, str]
    """The last word of each annotator: label, skip or flag."""


class Campaign(Ground):
    """Labels, rounds and adapters in a folder that survives crashes, full disks and edits.

    Make one with :meth:`create`, open one with :meth:`open`. Every method that writes takes the
    campaign's lock for as long as it runs; readers are never kept waiting by it.

    What it is: ``folder``, ``id``, ``choices`` and the like, and ``learner()``, ``backup()``,
    ``holding()``, are described in :class:`starlearn.campaign.folder.Ground`.
    """

    # A folder, made or opened

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        pool: Any,
        learner: "STARLearner",
        *,
        extra_fields: Sequence[str] = (),
        resolution: str = "majority",
        per_item: int = 1,
    ) -> Self:
        """Begin a campaign in a folder of its own.

        Parameters
        ----------
        folder : str or path
            Not there yet, or empty.
        pool : str, path, or any container that a learner takes
            A ``.jsonl`` or ``.csv`` file, or m items. A copy is kept: what becomes of the file
            later changes nothing. Equal items are asked once.
        learner : STARLearner
            Settings, and a trained adapter to begin with where it has one.
        extra_fields : sequence of str
            Fields that annotators see beside those of the prompt.
        resolution : {"majority", "latest", "unanimous"}
            How answers of several annotators become one label;
            see :data:`starlearn.campaign.responses.RESOLUTIONS`.
        per_item : int
            How many annotators an item needs before its batch counts as labelled.

        Raises
        ------
        InputError
            When the folder is not empty, or pool or settings cannot be used.
        StorageError
            When the disk is full, or the folder cannot be written.
        """
        from starlearn.campaign import creating

        place = Place(Path(folder).expanduser().absolute())
        options = creating.checked_options(resolution, per_item)
        creating.create(place, pool, learner, extra_fields, options)
        return cls.open(place.folder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open a campaign; `model` says where the base model is now, if it moved.

        Raises
        ------
        InputError
            When there is none in the folder, or it was made by a newer starlearn.
        CampaignCorruptError
            When its labels are damaged or missing. They are never replaced by empty ones.
        StorageError
            When it cannot be written and `read_only` is not set.
        """
        place = Place(Path(folder).expanduser().absolute())
        place.require()
        store = Store.open(place.labels, read_only=read_only)
        try:
            events.events(store)
            rounds.contents(store)
            rounds.rounds(store)
            warn_about_place(place.folder)
            return cls(place, store, None if model is None else str(model))
        except BaseException:
            store.close()
            raise

    # A batch out, labels in, an adapter out

    def query(
        self, n_instances: int, *, strict: bool = False, engine: Any = None
    ) -> list[BatchItem]:
        """Choose the items whose labels are worth most, and issue them as a batch.

        A query that was interrupted goes on where it was and gives the same batch; one that had
        come to its end gives the batch that is open.

        Parameters
        ----------
        n_instances : int
            n; where fewer items are left, the batch is smaller, with a warning.
        strict : bool
            Raise instead.
        engine : None, "ray" or RayEngine
            Who scores, as in :meth:`starlearn.STARLearner.query`.

        Returns
        -------
        list of BatchItem
            Most valuable label first; empty when the pool is exhausted.

        Raises
        ------
        InputError
            When a batch is open that is of another size or waits for its training.
        """
        from starlearn.campaign import querying
        from starlearn.data.containers import as_count

        n_instances = as_count(n_instances, "n_instances", 2**31)
        with self.holding("query"):
            querying.query(self, n_instances, strict, engine)
            found = rounds.current(self.store)
            waiting = found is not None and found.state in ("issued", "labelled")
            return self.batch() if waiting else []

    def label(
        self,
        item: "str | BatchItem",
        answer: str,
        annotator: str = "me",
        *,
        uuid: str | None = None,
        ms: int | None = None,
    ) -> Event:
        """Store an annotator's answer; when this returns, it is on the disk.

        A second answer of the same annotator to the same item replaces the first, and both are
        kept.

        Parameters
        ----------
        item : str or BatchItem
            An item that was issued, in this round or an earlier one.
        answer : str
        annotator : str
        uuid : str, optional
            Given by a client that may send twice: what has the same uuid is stored once.
        ms : int, optional
            Milliseconds that the annotator took.

        Raises
        ------
        InputError
            When the item was never issued, or the answer is not among the choices.
        StorageError
            When the disk is full or fails; the answer is then not stored.
        """
        text = checked_answer(answer, self.choices, self.folder)
        return self._say("label", item, annotator, answer=text, uuid=uuid, ms=ms)

    def skip(
        self, item: "str | BatchItem", annotator: str = "me", *, uuid: str | None = None
    ) -> Event:
        """Store that an annotator passes over an item."""
        return self._say("skip", item, annotator, uuid=uuid)

    def flag(
        self,
        item: "str | BatchItem",
        annotator: str = "me",
        note: str | None = None,
        *,
        uuid: str | None = None,
    ) -> Event:
        """Store that an item needs another look, with a note; it has no label of this annotator."""
        return self._say("flag", item, annotator, note=note, uuid=uuid)

    def undo(self, annotator: str = "me", *, uuid: str | None = None) -> Event | None:
        """Take back the annotator's last word that still counts; None when there is none."""
        name = checked_name(annotator)
        with self.holding("label"):
            return events.undo(self.store, name, uuid, self.options["per_item"])

    def _say(self, kind: str, item: "str | BatchItem", annotator: str, **what: Any) -> Event:
        key = item.id if isinstance(item, BatchItem) else str(item)
        return self.say([Entry(kind, key, checked_name(annotator), **what)])[0]

    def say(self, entries: Sequence[Entry], command: str = "label") -> list[Event]:
        """Store checked entries of any kind in one transaction: all of them, or none."""
        with self.holding(command):
            return events.append(self.store, entries, self.options["per_item"])

    def teach(self) -> Status:
        """Train on all labels, publish the adapter, and end the round.

        A training that was interrupted is begun anew with the same labels and seed; an adapter
        that was complete before the process died is taken over.

        Raises
        ------
        InputError
            When there is no batch, no label, or nobody has said anything about the batch yet.
        TrainingDivergedError
            The round is then failed, its labels are kept, and the earlier adapter stays.
        """
        from starlearn.campaign import teaching

        with self.holding("teach"):
            teaching.teach(self)
        return self.status()

    def resume(self) -> Status:
        """Go on with what was interrupted, a query or a training; otherwise do nothing.

        A query goes on with the engine that it was begun with, whose finished chunks are read;
        with another one, ``query(n, engine=...)``, it begins anew.
        """
        found = rounds.current(self.store)
        if found is not None and found.state == "scoring":
            from starlearn.campaign.querying import engine_again

            self.query(found.n, engine=engine_again(found))
        elif found is not None and found.state == "training":
            self.teach()
        return self.status()

    # What there is

    def batch(self, round_id: int | None = None) -> list[BatchItem]:
        """Return the batch of a round, by default the newest, most valuable label first."""
        if round_id is None:
            found = rounds.current(self.store)
            round_id = found.id if found else 0
        words: dict[str, list[Event]] = {}
        for event in events.standing(events.events(self.store)):
            words.setdefault(event.item, []).append(event)
        return [
            BatchItem(
                issued.item,
                json.loads(issued.content),
                issued.place,
                issued.score,
                issued.reason,
                {e.annotator: e.answer for e in words.get(issued.item, []) if e.answer is not None},
                {e.annotator: e.kind for e in words.get(issued.item, [])},
            )
            for issued in rounds.batch_of(self.store, round_id)
        ]

    def open_items(self, annotator: str = "me") -> list[BatchItem]:
        """Return the items of the newest batch on which this annotator is asked for a word."""
        return waiting_for(checked_name(annotator), self.batch(), self.options["per_item"])

    def status(self) -> Status:
        """Return what state the campaign is in and what to type next; changes nothing."""
        return status_of(self.place, self.store, self.options, self.pool_facts, self.id)

    def history(self) -> list[RoundRecord]:
        """Return what came of each round, oldest first."""
        return history_of(self.store, self.options["resolution"])

    # Care

    def set_params(self, **params: Any) -> Self:
        """Change settings of the learner, as in ``set_params(training__learning_rate=1e-4)``.

        Model, task, quantisation and seed are what labels and scores depend on, and stay.
        """
        from starlearn.campaign import learner_settings

        with self.holding("set_params"), self.store.transaction():
            self.store.set_meta(learner=learner_settings.changed(self.meta["learner"], params))
        return self

    def add_choice(self, choice: str) -> Self:
        """Add an answer to the task's closed set; the next training learns it.

        Raises
        ------
        InputError
            When it is there already, or the model's tokenizer cannot tell it from another.
        """
        from starlearn.campaign import learner_settings

        with self.holding("add_choice"):
            changed = learner_settings.with_choice(self.meta["learner"], choice)
            learner_settings.require_told_apart(changed, self._model)
            with self.store.transaction():
                self.store.set_meta(learner=changed)
        return self

    def doctor(self, *, fix: bool = False) -> list[Finding]:
        """Look for damage and leftovers; with `fix`, remove what was never published.

        Returns
        -------
        list of Finding
            Empty when all is well.
        """
        return examine(self, fix)


def waiting_for(annotator: str, batch: Sequence[BatchItem], per_item: int) -> list[BatchItem]:
    """Return the items of a batch on which an annotator is asked for a word."""
    return [i for i in batch if annotator not in i.said and len(i.said) < per_item]
