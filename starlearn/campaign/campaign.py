"""Campaign: labelling, training and querying over days, in one folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlearn.campaign import events, rounds
from starlearn.campaign.doctor import Finding, examine
from starlearn.campaign.event_log import EventLog, log_of
from starlearn.campaign.events import Entry, Event
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.items import composed
from starlearn.campaign.paths import CampaignPaths
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.campaign.status import RoundRecord, Status, history_of, status_of
from starlearn.campaign.store import Store
from starlearn.campaign.verification import verify
from starlearn.storage.files import permission_errors, warn_about_folder

if TYPE_CHECKING:
    from starlearn.campaign.settings_changes import SettingChange
    from starlearn.learner.estimator import STARLearner


@dataclass(frozen=True)
class BatchItem:
    """One item of a batch, as annotators see it."""

    id: str
    fields: dict[str, str]
    place: int
    """Rank in the batch; the label of item 0 is worth most."""
    score: float | None
    reason: str
    """Why the item was chosen."""
    answers: dict[str, str]
    """Current answer of each annotator who labelled it."""
    responses: dict[str, str]
    """Current response of each annotator: label, skip or flag."""


class Campaign(CampaignFolder):
    """Labels, rounds and adapters in a folder that survives crashes, full disks and pool edits.

    Make one with :meth:`create`, open one with :meth:`open`. Every method that writes holds the
    campaign's lock while it runs. Readers never wait for it.

    The attributes ``folder``, ``id``, ``choices`` and the methods ``learner()``, ``backup()``,
    ``holding()`` are described in :class:`starlearn.campaign.folder.CampaignFolder`.
    """

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
        """Create a campaign in a new folder.

        Parameters
        ----------
        folder : str or path
            A folder that does not exist yet or is empty.
        pool : str, path, or any container that a learner takes
            A file or folder that :class:`starlearn.Pool` reads, or m items. The campaign keeps a
            copy, so later changes of the file have no effect. Equal items are one item.
        learner : STARLearner
            The settings. A trained learner also brings its adapter.
        extra_fields : sequence of str
            Fields that annotators see in addition to those of the prompt.
        resolution : {"majority", "latest", "unanimous"}
            How the answers of several annotators become one label;
            see :data:`starlearn.campaign.responses.RESOLUTIONS`.
        per_item : int
            Number of annotators that each item needs.

        Raises
        ------
        InputError
            When the folder is not empty, or pool or settings cannot be used.
        StorageError
            When the disk is full, or the folder is not writable.
        """
        from starlearn.campaign import creating

        paths = CampaignPaths(Path(folder).expanduser().absolute())
        options = creating.checked_options(resolution, per_item)
        creating.create(paths, pool, learner, extra_fields, options)
        return cls.open(paths.folder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open a campaign.

        Parameters
        ----------
        folder : str or path
        model : str or path, optional
            Where the base model is now, if it moved.
        read_only : bool

        Raises
        ------
        InputError
            When the folder has no campaign, or one of a newer starlearn.
        CampaignCorruptError
            When its labels are damaged or missing. They are never replaced by an empty store.
        StorageError
            When the folder is not writable and `read_only` is False.
        """
        paths = CampaignPaths(Path(folder).expanduser().absolute())
        with permission_errors():
            paths.require()
            store = Store.open(paths.labels, read_only=read_only)
        try:
            verify(store)
            warn_about_folder(paths.folder)
            return cls(paths, store, None if model is None else str(model))
        except BaseException:
            store.close()
            raise

    # The loop: query, label, teach

    def query(
        self, n_instances: int, *, strict: bool = False, engine: Any = None
    ) -> list[BatchItem]:
        """Choose the items whose labels are worth most, and issue them as a batch.

        A query that was interrupted continues and gives the same batch. While a batch of this
        size is open, the call returns it.

        Parameters
        ----------
        n_instances : int
            Batch size n. Where fewer items are left, the batch is smaller, with a warning.
        strict : bool
            Raise InputError where fewer items are left.
        engine : None, "ray" or RayEngine
            Which processes score, as in :meth:`starlearn.STARLearner.query`.

        Returns
        -------
        list of BatchItem
            Most valuable label first; empty when the pool is exhausted.

        Raises
        ------
        InputError
            When a batch of another size is open, or a batch waits for its training.
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
        """Store an annotator's answer; it is on the disk when the call returns.

        A second answer of the same annotator to the same item replaces the first. Both are kept.

        Parameters
        ----------
        item : str or BatchItem
            An item that was issued, in this round or an earlier one.
        answer : str
        annotator : str
        uuid : str, optional
            Makes the call safe to repeat: an event with a known uuid is not stored again.
        ms : int, optional
            Time that the annotator took, in milliseconds.

        Raises
        ------
        InputError
            When the item was never issued, or the answer is not among the choices.
        StorageError
            When the disk is full or fails. The answer is then not stored.
        """
        text = checked_answer(answer, self.choices, self.folder)
        return self._record("label", item, annotator, answer=text, uuid=uuid, ms=ms)

    def skip(
        self, item: "str | BatchItem", annotator: str = "me", *, uuid: str | None = None
    ) -> Event:
        """Store that an annotator skips an item."""
        return self._record("skip", item, annotator, uuid=uuid)

    def flag(
        self,
        item: "str | BatchItem",
        annotator: str = "me",
        note: str | None = None,
        *,
        uuid: str | None = None,
    ) -> Event:
        """Store that an item needs another look; this annotator's label no longer counts."""
        return self._record("flag", item, annotator, note=note, uuid=uuid)

    def undo(self, annotator: str = "me", *, uuid: str | None = None) -> Event | None:
        """Undo the annotator's last response, and return the undo; None without a response."""
        name = checked_name(annotator)
        with self.holding("label"):
            return events.undo(self.store, name, uuid, self.options["per_item"])

    def _record(self, kind: str, item: "str | BatchItem", annotator: str, **values: Any) -> Event:
        key = item.id if isinstance(item, BatchItem) else item
        return self.record([Entry(kind, key, checked_name(annotator), **values)])[0]

    def record(self, entries: Sequence[Entry], command: str = "label") -> list[Event]:
        """Store checked entries of any kind in one transaction: all of them, or none."""
        with self.holding(command):
            return events.append(self.store, entries, self.options["per_item"])

    def teach(self, *, partial: bool = False) -> Status:
        """Train on all labels, publish the adapter, and end the round.

        An interrupted training continues after the steps that were kept, if labels and settings
        are the same, and otherwise starts again. Steps are kept every five minutes, and at Ctrl-C
        or SIGTERM at the end of the current step. An adapter that was complete before the process
        died is used.

        Parameters
        ----------
        partial : bool
            End the batch although items of it wait for a response. Those without any response can
            come back in a later query.

        Raises
        ------
        InputError
            When there is no batch, no label, or no response to the batch yet; or when items of it
            wait and `partial` is False.
        TrainingDivergedError
            The round then counts as failed, its labels are kept, and the earlier adapter is used.
        """
        from starlearn.campaign import teaching

        with self.holding("teach"):
            teaching.teach(self, partial)
        return self.status()

    def resume(self) -> Status:
        """Continue an interrupted query or training; otherwise do nothing.

        A query continues with the engine that it began with and reads its finished chunks. With
        another engine, ``query(n, engine=...)``, it starts again.
        """
        found = rounds.current(self.store)
        if found is not None and found.state == "scoring":
            from starlearn.campaign.querying import engine_of_round

            self.query(found.n, engine=engine_of_round(self, found))
        elif found is not None and found.state == "training":
            self.teach()
        return self.status()

    def batch(self, round_id: int | None = None) -> list[BatchItem]:
        """Return the batch of a round, by default the newest, most valuable label first."""
        if round_id is None:
            found = rounds.current(self.store)
            round_id = found.id if found else 0
        with self.store.mutex:
            log = log_of(self.store)
            return [batch_item(issued, log) for issued in rounds.batch_of(self.store, round_id)]

    def open_items(self, annotator: str = "me") -> list[BatchItem]:
        """Return the items of the newest batch that wait for this annotator."""
        return items_waiting(checked_name(annotator), self.batch(), self.options["per_item"])

    def status(self) -> Status:
        """Return the state of the campaign and the next command; changes nothing."""
        return status_of(self)

    def history(self) -> list[RoundRecord]:
        """Return a record of each round, oldest first."""
        return history_of(self)

    # Maintenance

    def set_params(self, **params: Any) -> Self:
        """Change settings of the learner, as in ``set_params(training__learning_rate=1e-4)``.

        Model, task, quantisation and seed cannot change: labels and scores depend on them. The next
        query or training uses the new settings; :meth:`changes` has a record.
        """
        from starlearn.campaign import learner_settings, settings_changes

        with self.holding("set_params"):
            changed = learner_settings.changed(self.meta["learner"], params)
            settings_changes.save_settings(self, changed)
        return self

    def add_choice(self, choice: str) -> Self:
        """Add an answer to the task's closed set; the next training learns it.

        Raises
        ------
        InputError
            When the choice exists, or the model's tokenizer cannot distinguish it from another.
        """
        from starlearn.campaign import learner_settings, settings_changes

        with self.holding("add_choice"):
            changed = learner_settings.with_choice(self.meta["learner"], composed(choice))
            learner_settings.require_distinct_choices(changed, self._model)
            settings_changes.save_settings(self, changed)
        return self

    def remove_choice(self, choice: str) -> Self:
        """Remove an answer from the task's closed set, if no label is that answer.

        Raises
        ------
        InputError
            When the choice does not exist, is in use, or only one would be left.
        """
        from starlearn.campaign import learner_settings, settings_changes

        with self.holding("remove_choice"):
            changed = learner_settings.without_choice(self.meta["learner"], composed(choice))
            settings_changes.require_unused(self, composed(choice))
            settings_changes.save_settings(self, changed)
        return self

    def changes(self) -> "list[SettingChange]":
        """Return the changes of settings since the campaign was created, oldest first."""
        from starlearn.campaign.settings_changes import changes_of

        return changes_of(self)

    def doctor(self, *, fix: bool = False) -> list[Finding]:
        """Look for damage and leftovers; with `fix`, remove what was never published.

        Returns
        -------
        list of Finding
            Empty when nothing is wrong.
        """
        with permission_errors():
            return examine(self, fix)


def batch_item(issued: rounds.Issued, log: EventLog) -> BatchItem:
    """Return an issued item with its current responses."""
    given = log.by_item.get(issued.item, {}).values()
    return BatchItem(
        issued.item,
        json.loads(issued.content),
        issued.place,
        issued.score,
        issued.reason,
        {event.annotator: event.answer for event in given if event.answer is not None},
        {event.annotator: event.kind for event in given},
    )


def items_waiting(annotator: str, batch: Sequence[BatchItem], per_item: int) -> list[BatchItem]:
    """Return the items of a batch that wait for an annotator."""
    return [i for i in batch if annotator not in i.responses and len(i.responses) < per_item]
