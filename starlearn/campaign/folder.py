"""The folder of a campaign: settings, pool, learner and lock, on which all steps build."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlearn.campaign import events, publish, rounds
from starlearn.campaign.event_log import log_of
from starlearn.campaign.journal import write_journal
from starlearn.campaign.paths import CampaignPaths, backup_name
from starlearn.campaign.responses import choices_of, resolved
from starlearn.campaign.rounds import Round
from starlearn.campaign.store import Store
from starlearn.errors import InputError, ModelMismatchError, StorageError, UntrustedFileError
from starlearn.storage.files import make_folder, permission_errors
from starlearn.storage.lock import WAIT

if TYPE_CHECKING:
    import pyarrow as pa

    from starlearn.learner.estimator import STARLearner

BACKUPS_KEPT = 3


class CampaignFolder:
    """A campaign folder with its label store open.

    Parameters
    ----------
    paths : CampaignPaths
    store : Store
    model : str, optional
        Where the base model is now, if it moved.

    Attributes
    ----------
    folder : Path
    id : str
        Unique to this campaign.
    """

    def __init__(self, paths: CampaignPaths, store: Store, model: str | None = None) -> None:
        self.paths = paths
        self.folder = paths.folder
        self.store = store
        self._model = model
        self._lock = paths.make_lock()
        self._learner: tuple[Any, STARLearner] | None = None
        self.id = self.meta["campaign"]

    def close(self) -> None:
        """Close the label store. Closing it twice is harmless."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Connections and locks cannot be pickled: the copy opens the folder itself.
        return (_reopened, (type(self), str(self.folder), self._model, self.store.read_only))

    def __repr__(self) -> str:
        return f"{type(self).__name__}.open({str(self.folder)!r})"

    @contextmanager
    def holding(self, command: str, wait: float = WAIT) -> Iterator[None]:
        """Hold the campaign's lock over several calls, such as a labelling session.

        Raises
        ------
        CampaignLockedError
            When another process holds it. The message names that process.
        StorageError
            When the campaign was opened read-only.
        """
        if self.store.read_only:
            raise StorageError(
                f"{self.folder} was opened read-only. Open it for writing: Campaign.open(folder)."
            )
        with self._lock.held(command, wait), permission_errors():
            yield

    # Settings, pool and labels

    @property
    def meta(self) -> dict[str, str]:
        """Settings of the campaign as they are in the label store."""
        return self.store.meta()

    @property
    def options(self) -> dict[str, Any]:
        """The campaign's own settings: resolution and per_item."""
        return dict(json.loads(self.meta["options"]))

    @property
    def pool_facts(self) -> dict[str, Any]:
        """Facts about the pool: source, size, sha256, snapshot, n_rows, n_items, n_known, fields.

        The n_known items are those that the learner was trained on before. They are never issued.
        """
        return {"n_known": 0, **json.loads(self.meta["pool"])}

    @property
    def model(self) -> str:
        """Folder or hub id of the base model, or a description of the embedded one."""
        given = self._model or json.loads(self.meta["learner"])["model"]
        return "the embedded toy model" if given is None else str(given)

    @property
    def task(self) -> dict[str, Any]:
        """The task's settings: class, prompt, choices and more."""
        return dict(json.loads(self.meta["learner"])["task"])

    @property
    def choices(self) -> list[str] | None:
        """The closed set of answers, or None for free-form answers."""
        return choices_of(self.meta["learner"])

    @property
    def n_items(self) -> int:
        """Number of different items in the pool, m."""
        return int(self.pool_facts["n_items"])

    def snapshot(self) -> "pa.Table":
        """Return the pool as it was at the start, m rows: id, content, count, row, rest."""
        from starlearn.campaign.snapshot import read_snapshot

        return read_snapshot(self.paths.pool, self.pool_facts["snapshot"])

    def scores(self, round_id: int) -> "pa.Table | None":
        """Return the scores of a round's pool; None where none were kept or the file is damaged.

        Columns id, base, full, entropy, mutual_information, n_tokens, confidence, answer, mixed;
        one row per scored item.
        """
        from starlearn.campaign.snapshot import read_scores

        by_id = {found.id: found.record for found in rounds.rounds(self.store)}
        sha256 = by_id.get(round_id, {}).get("scores")
        return read_scores(self.paths.round_scores(round_id), sha256)

    def labels(self) -> dict[str, str]:
        """Return the label of each labelled item by its id."""
        return resolved(log_of(self.store).responses(), self.options["resolution"])

    def items_done(self, until: int | None) -> set[str]:
        """Return the items with a response, up to an event, and those of the first labels.

        Items of the first labels need not be in the pool.
        """
        return self._items_with_response(until) | set(json.loads(self.meta["first"]))

    def n_left(self, until: int | None) -> int:
        """Return the number of items of the pool that can still be issued, up to an event."""
        return (
            self.n_items - int(self.pool_facts["n_known"]) - len(self._items_with_response(until))
        )

    def _items_with_response(self, until: int | None) -> set[str]:
        log = events.events(self.store)
        seen = (event for event in log if until is None or event.seq <= until)
        return {event.item for event in events.current_responses(seen)}

    def published(self) -> Round | None:
        """Return the newest round whose adapter is published."""
        return rounds.newest_published(self.store)

    # The learner

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the campaign's learner."""
        from starlearn.campaign.learner_settings import parameters_of

        parameters = parameters_of(self.meta["learner"])
        if self._model is not None:
            parameters["model"] = self._model
        parameters["cache_dir"] = None  # never a folder that only the label store names
        if not self.store.read_only:
            self.paths.require_regular()
            make_folder(self.paths.scores)
            make_folder(self.paths.cache)
            parameters["cache_dir"] = str(self.paths.cache)
        return parameters

    def learner(self, round_id: int | None = None) -> "STARLearner":
        """Return the learner of the newest published round, untrained before the first round.

        Where the adapter's files are damaged, the adapter of the round before is used, with a
        warning.

        Parameters
        ----------
        round_id : int, optional
            Return the learner of this round, and never another one.

        Raises
        ------
        InputError
            When that round has no published adapter.
        ModelMismatchError
            When the base model is not the one that the campaign began with.
        UntrustedFileError
            When the adapter of that round is damaged.
        """
        published = rounds.published(self.store)
        if round_id is not None:
            by_id = {found.id: found for found in published}
            if round_id not in by_id:
                known = sorted(by_id) or "none"
                raise InputError(
                    f"Round {round_id} has no published adapter; these rounds have one: {known}."
                )
            with permission_errors():
                return self._load(by_id[round_id])
        key = (published[-1].manifest if published else None, self.meta["learner"])
        if self._learner is None or self._learner[0] != key:
            with permission_errors():
                self._learner = (key, self._newest_learner(published))
        return self._learner[1]

    def keep_learner(self, learner: "STARLearner") -> None:
        """Keep a learner whose adapter was just published, so that it need not be loaded."""
        last = self.published()
        self._learner = ((last.manifest if last else None, self.meta["learner"]), learner)

    def forget_learner(self) -> None:
        """Load the learner again when it is next needed."""
        self._learner = None

    def _load(self, found: Round) -> "STARLearner":
        """Load the learner of a published round after all files of its adapter are verified."""
        from starlearn.campaign.learner_settings import require_base
        from starlearn.learner.estimator import STARLearner

        # The label store has name and seal of the adapter for every published round.
        name, seal = str(found.adapter), str(found.manifest)
        manifest = publish.verify(self.paths, name, seal)
        if manifest.get("campaign") != self.id:
            raise UntrustedFileError(
                f"The adapter {name} in {self.folder} belongs to another campaign. Restore the "
                "folder from a backup."
            )
        folder, parameters = self.paths.adapter(name), self.parameters()
        learner = STARLearner.load(folder, model=parameters["model"])
        learner.set_params(**parameters)
        require_base(learner, self.meta.get("base"))
        if learner.adapter_.base != manifest.get("base"):
            raise ModelMismatchError(f"The adapter {folder} was made for another base model.")
        return learner

    def _newest_learner(self, published: list[Round]) -> "STARLearner":
        from starlearn.campaign.learner_settings import require_base
        from starlearn.learner.estimator import STARLearner

        for found in reversed(published):
            try:
                return self._load(found)
            except UntrustedFileError as error:
                warnings.warn(
                    f"The adapter of round {found.id} cannot be used: {error} The adapter of the "
                    "round before is used instead.",
                    UserWarning,
                    stacklevel=4,
                )
        learner = STARLearner(**self.parameters())
        base = require_base(learner, self.meta.get("base"))
        if "base" not in self.meta and not self.store.read_only:
            with self.holding("learner"), self.store.transaction():
                self.store.set_meta(base=base)
        return learner

    def backup(self, target: str | os.PathLike[str] | None = None) -> Path:
        """Copy the label store, by default to the backup folder, which keeps three copies.

        A copy in the backup folder comes with the journal, ``exports/labels.jsonl``, from which the
        label store can be restored when no backup is intact.

        Parameters
        ----------
        target : str or path, optional
            A file elsewhere, which is replaced if it exists.

        Returns
        -------
        Path
            The copy, which is a label store itself.
        """
        if target is not None:
            path = _checked_path(target)
            self.store.backup(path)
            return path
        with self.holding("backup"):
            make_folder(self.paths.backups)
            made = self.paths.backups / backup_name(events.last_seq(self.store))
            self.store.backup(made)
            write_journal(self)
            others = sorted(set(self.paths.backups.glob("labels-*.db")) - {made})
            for old in others[: 1 - BACKUPS_KEPT]:
                old.unlink()
        return made


def _checked_path(target: Any) -> Path:
    try:
        path = Path(target)
        usable = bool(path.name) and b"\0" not in os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        usable = False
    if not usable:
        raise InputError(f"{target!r:.100} cannot be the name of a file. Name a new file.")
    return path


def _reopened(kind: Any, folder: str, model: str | None, read_only: bool) -> Any:
    return kind.open(folder, model=model, read_only=read_only)
