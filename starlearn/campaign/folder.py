"""What every step of a campaign stands on: its folder, settings, pool, learner, and lock."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlearn.campaign import events, rounds
from starlearn.campaign.paths import Place, backup_name
from starlearn.campaign.responses import choices_of, resolved
from starlearn.campaign.rounds import Round
from starlearn.campaign.store import Store
from starlearn.errors import InputError, StorageError, UntrustedFileError
from starlearn.storage.files import make_folder
from starlearn.storage.lock import WAIT, Lock

if TYPE_CHECKING:
    import pyarrow as pa

    from starlearn.learner.estimator import STARLearner

BACKUPS_KEPT = 3


class Ground:
    """A campaign's folder with its label store open.

    Parameters
    ----------
    place : Place
    store : Store
    model : str, optional
        Where the base model is now, if it moved.

    Attributes
    ----------
    folder : Path
    id : str
        Differs from that of every other campaign.
    """

    def __init__(self, place: Place, store: Store, model: str | None = None) -> None:
        self.place = place
        self.folder = place.folder
        self.store = store
        self._model = model
        self._lock = Lock(place.lock)
        self._learner: tuple[Any, STARLearner] | None = None
        self.id = self.meta["campaign"]

    # Opened and closed

    def close(self) -> None:
        """Close the label store; a second time does nothing."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # No connection and no lock travels: the copy opens the folder itself.
        return (_reopened, (type(self), str(self.folder), self._model, self.store.read_only))

    def __repr__(self) -> str:
        return f"{type(self).__name__}.open({str(self.folder)!r})"

    @contextmanager
    def holding(self, command: str, wait: float = WAIT) -> Iterator[None]:
        """Hold the campaign over several calls, such as a session of labelling.

        Raises
        ------
        CampaignLockedError
            When another process holds it, naming that process.
        StorageError
            When the campaign was opened to read only.
        """
        if self.store.read_only:
            raise StorageError(
                f"{self.folder} was opened to read only. Open it to write: Campaign.open(folder)."
            )
        with self._lock.held(command, wait):
            yield

    # What it is

    @property
    def meta(self) -> dict[str, str]:
        """What was written when the campaign began, and changed since by its own methods."""
        return self.store.meta()

    @property
    def options(self) -> dict[str, Any]:
        """The campaign's own settings: resolution and per_item."""
        return dict(json.loads(self.meta["options"]))

    @property
    def pool_facts(self) -> dict[str, Any]:
        """What the pool was: source, size and sha256 of a file; snapshot, n_rows, n_items, n_known.

        The last are items that the learner had been trained on before: they are never issued.
        """
        return {"n_known": 0, **json.loads(self.meta["pool"])}

    @property
    def task(self) -> dict[str, Any]:
        """The task's settings: class, prompt, choices and more."""
        return dict(json.loads(self.meta["learner"])["task"])

    @property
    def choices(self) -> list[str] | None:
        """The closed set of answers; None where any text will do."""
        return choices_of(self.meta["learner"])

    @property
    def n_items(self) -> int:
        """m, different items in the pool."""
        return int(self.pool_facts["n_items"])

    def snapshot(self) -> "pa.Table":
        """Return the pool as it was: columns id, content, count, row; m rows."""
        from starlearn.campaign.snapshot import read_snapshot

        return read_snapshot(self.place.pool, self.pool_facts["snapshot"])

    def scores(self, round_id: int) -> "pa.Table | None":
        """Return the scores of a round's pool; None where they are gone, or none were computed.

        Columns id, base, full, entropy, mutual_information, n_tokens, confidence, answer, mixed; as
        many rows as items that took part.
        """
        from starlearn.campaign.snapshot import read_scores

        return read_scores(self.place.round_scores(round_id))

    def labels(self) -> dict[str, str]:
        """Return the label of each item that has one, by its id."""
        words = events.standing(events.events(self.store))
        return resolved(words, self.options["resolution"])

    def done(self, before: int | None) -> set[str]:
        """Return the items that somebody has spoken about, up to an event; first labels too.

        First labels may be of items that are not in the pool.
        """
        return self._said(before) | set(json.loads(self.meta["first"]))

    def n_left(self, before: int | None) -> int:
        """Return how many items of the pool may still be issued, after what was said so far."""
        return self.n_items - int(self.pool_facts["n_known"]) - len(self._said(before))

    def _said(self, before: int | None) -> set[str]:
        log = events.events(self.store)
        words = events.standing(e for e in log if before is None or e.seq <= before)
        return {event.item for event in words}

    def published(self) -> Round | None:
        """Return the newest round whose adapter is published."""
        found = [r for r in rounds.rounds(self.store) if r.state == "published"]
        return found[-1] if found else None

    # The learner

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the campaign's learner."""
        from starlearn.campaign.learner_settings import parameters_of

        parameters = parameters_of(self.meta["learner"])
        if self._model is not None:
            parameters["model"] = self._model
        if parameters["cache_dir"] is None and not self.store.read_only:
            make_folder(self.place.scores)
            make_folder(self.place.cache)
            parameters["cache_dir"] = str(self.place.cache)
        return parameters

    def learner(self, round_id: int | None = None) -> "STARLearner":
        """Return the learner as the newest published round left it; untrained before the first.

        Where an adapter's files are damaged, the adapter of the round before is taken, with a
        warning.

        Parameters
        ----------
        round_id : int, optional
            Return the learner as this round left it, and no other in its place.

        Raises
        ------
        InputError
            When the round asked for has no published adapter.
        ModelMismatchError
            When the base model is not the one that the campaign was begun on.
        UntrustedFileError
            When the adapter of the round asked for is damaged.
        """
        if round_id is not None:
            return self._loaded_round(round_id)
        done = [r for r in rounds.rounds(self.store) if r.state == "published"]
        key = (done[-1].manifest if done else None, self.meta["learner"])
        if self._learner is None or self._learner[0] != key:
            self._learner = (key, self._loaded(done))
        return self._learner[1]

    def keep_learner(self, learner: "STARLearner") -> None:
        """Keep a learner whose adapter was just published, so that it need not be loaded."""
        last = self.published()
        self._learner = ((last.manifest if last else None, self.meta["learner"]), learner)

    def forget_learner(self) -> None:
        """Load the learner anew when it is next needed."""
        self._learner = None

    def _loaded_round(self, round_id: int) -> "STARLearner":
        from starlearn.campaign import teaching

        done = {r.id: r for r in rounds.rounds(self.store) if r.state == "published"}
        if round_id not in done:
            raise InputError(
                f"Round {round_id} has no published adapter; these have: {sorted(done) or 'none'}."
            )
        return teaching.load_published(self, done[round_id])

    def _loaded(self, done: list[Round]) -> "STARLearner":
        from starlearn.campaign import learner_settings, teaching
        from starlearn.learner.estimator import STARLearner

        for found in reversed(done):
            try:
                return teaching.load_published(self, found)
            except UntrustedFileError as error:
                warnings.warn(
                    f"The adapter of round {found.id} cannot be used: {error} The round before "
                    "stands in for it.",
                    UserWarning,
                    stacklevel=4,
                )
        learner = STARLearner(**self.parameters())
        base = learner_settings.require_base(learner, self.meta.get("base"))
        if "base" not in self.meta and not self.store.read_only:
            with self.holding("learner"), self.store.transaction():
                self.store.set_meta(base=base)
        return learner

    # Copies

    def backup(self, target: Path | None = None) -> Path:
        """Copy the label store, by default to the folder of backups, of which three are kept.

        Returns
        -------
        Path
            The copy, a label store of its own.
        """
        if target is not None:
            self.store.backup(target)
            return target
        with self.holding("backup"):
            make_folder(self.place.backups)
            made = self.place.backups / backup_name(events.last_seq(self.store))
            self.store.backup(made)
            others = sorted(set(self.place.backups.glob("labels-*.db")) - {made})
            for old in others[: 1 - BACKUPS_KEPT]:
                old.unlink()
        return made


def _reopened(kind: Any, folder: str, model: str | None, read_only: bool) -> Any:
    return kind.open(folder, model=model, read_only=read_only)
