"""A training of a campaign, step by step: back up, mark, train, publish, name, export."""

import itertools
import json
import shlex
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError

from starlearn.campaign import events, publish, rounds
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.folder import Ground
from starlearn.campaign.journal import write_journal
from starlearn.campaign.learner_settings import require_base
from starlearn.campaign.paths import Place
from starlearn.campaign.rounds import Round
from starlearn.data.containers import as_labels, object_array
from starlearn.errors import (
    InputError,
    ModelMismatchError,
    StarlearnError,
    StorageError,
    UntrustedFileError,
)
from starlearn.export import saving
from starlearn.learner.estimator import STARLearner
from starlearn.storage.files import file_sha256, require_space

LEAST_FREE = 10_000_000
"""Bytes that must be free before the first training, when the size of an adapter is not known."""


def teach(campaign: Ground) -> None:
    """Train the adapter of the current round on all labels, and publish it.

    Raises
    ------
    InputError
        When there is no batch, no label, or nobody has said anything about the batch yet.
    StorageError
        When there is not room for three adapters; before the training begins.
    """
    found = _ready(campaign)
    campaign.backup()
    failpoint("teach_backed_up")
    seen = events.last_seq(campaign.store)
    if _adopted(campaign, found, seen):
        return
    labels = labelled(campaign)
    _require_room(campaign)
    attempt = _next_attempt(campaign, found)
    with campaign.store.transaction():
        rounds.change(
            campaign.store,
            found.id,
            state="training",
            attempt=attempt,
            taught=seen,
            error=None,
        )
    failpoint("teach_marked")
    began = perf_counter()
    try:
        learner = trained(campaign, labels)
        failpoint("teach_trained")
        record = {
            **found.record,
            "n_labels": len(labels),
            "teach_seconds": perf_counter() - began,
            "train_loss": learner.rounds_[-1].get("train_loss"),
            "steps": learner.rounds_[-1].get("steps"),
        }
        name = adapter_name(found.id, attempt)
        facts = {**_facts(campaign, found, seen), "record": record}
        sealed = publish_learner(campaign.place, learner, name, facts)
    except StarlearnError as error:
        campaign.forget_learner()
        with campaign.store.transaction():
            rounds.change(campaign.store, found.id, state="failed", error=str(error))
        raise
    except BaseException:  # Ctrl-C too: the round stays in training, and the next call repeats it
        campaign.forget_learner()
        raise
    _named(campaign, found.id, name, sealed, record)
    campaign.keep_learner(learner)


def labelled(campaign: Ground) -> list[tuple[dict[str, str], str]]:
    """Return items and resolved labels of the whole campaign, in the order of labelling.

    Raises
    ------
    InputError
        When there is none.
    """
    labels = campaign.labels()
    contents = rounds.contents(campaign.store)
    if not labels:
        raise InputError(
            "There is no label to train on yet: what was said are skips and flags, or annotators "
            f"differ. Ask for other items: starlearn query {campaign.folder} -n 50; or take a word "
            f"back with u: starlearn label {campaign.folder}."
        )
    return [(json.loads(contents[item]), answer) for item, answer in labels.items()]


def trained(campaign: Ground, labels: list[tuple[dict[str, str], str]]) -> STARLearner:
    """Train the campaign's learner on its first labels and all of the campaign's.

    Labels that were corrected since the last round count as they are now.
    """
    learner = campaign.learner()
    n_first = int(campaign.meta.get("n_first", 0))
    known: list[tuple[Any, Any]] = []
    if n_first:
        known = list(zip(learner.X_training[:n_first], learner.y_training[:n_first], strict=True))
    # The learner adds what it is taught to what it knows, so it is told what it knows.
    known += labels[:-1]
    items, answers = zip(*known, strict=True) if known else ((), ())
    learner.X_training = object_array(items)
    learner.y_training = as_labels(answers, len(items))
    return learner.teach([labels[-1][0]], [labels[-1][1]])


def publish_learner(place: Place, learner: STARLearner, name: str, facts: dict[str, Any]) -> str:
    """Publish a trained learner under a name; returns the SHA-256 of its manifest."""
    size = sum(tensor.nbytes for tensor in learner.adapter_.state.values())
    require_space(place.folder, 3 * size, "Publishing the adapter")

    def write(folder: Path) -> None:
        try:
            learner.save(folder)
        except SafetensorError as error:
            raise StorageError(
                f"The adapter could not be written ({error}). Earlier adapters and all labels are "
                "where they were. Free some space and type the command again."
            ) from error

    def check(folder: Path) -> None:
        again = saving.load(folder).adapter.state
        written = learner.adapter_.state
        if set(again) != set(written) or not all(
            torch.equal(again[key], tensor) and bool(torch.isfinite(tensor).all())
            for key, tensor in written.items()
        ):
            raise StorageError(
                f"What was read back from {folder} is not the adapter that was written. Look at "
                "the disk (dmesg), then type the command again."
            )

    base = {"base": learner.adapter_.base}
    return publish.publish(place, name, write, check, {**facts, **base})


def load_published(campaign: Ground, found: Round) -> STARLearner:
    """Load the learner of a published round, when every file is the one that was published."""
    assert found.adapter is not None  # noqa: S101 - the store's own rule for published rounds
    manifest = publish.verify(campaign.place, found.adapter, found.manifest)
    if manifest.get("campaign") != campaign.id:
        raise UntrustedFileError(
            f"The adapter {found.adapter} in {campaign.folder} belongs to another campaign. Take "
            "the folder from a backup."
        )
    parameters = campaign.parameters()
    folder = campaign.place.adapter(found.adapter)
    learner = STARLearner.load(folder, model=parameters["model"])
    learner.set_params(**parameters)
    require_base(learner, campaign.meta.get("base"))
    if learner.adapter_.base != manifest.get("base"):
        raise ModelMismatchError(f"The adapter {folder} was made for another base model.")
    return learner


def adapter_name(round_id: int, attempt: int) -> str:
    """Return the name of the folder that an attempt publishes."""
    return f"round-{round_id:04d}-{attempt}"


def _ready(campaign: Ground) -> Round:
    found = rounds.current(campaign.store)
    batch = found is not None and found.state not in ("published", "scoring")
    issued = rounds.batch_of(campaign.store, found.id) if found is not None and batch else []
    if found is None or not issued:
        raise InputError(
            "There is no batch whose labels could be taught. Ask for one first: starlearn query "
            f"{campaign.folder} -n 50, campaign.query(50)."
        )
    said = {event.item for event in events.standing(events.events(campaign.store))}
    if found.state == "issued" and said.isdisjoint(item.item for item in issued):
        raise InputError(
            f"None of the {len(issued)} items of round {found.id} is labelled, so there is nothing "
            f"new to learn. Label them: starlearn label {shlex.quote(str(campaign.folder))}, "
            "campaign.label(item, answer)."
        )
    return found


def _require_room(campaign: Ground) -> None:
    last = campaign.published()
    size = LEAST_FREE
    if last is not None and last.adapter is not None:
        folder = campaign.place.adapter(last.adapter)
        size = 3 * publish.folder_size(folder) if folder.is_dir() else size
    require_space(campaign.folder, size, "A training and its adapter")


def _next_attempt(campaign: Ground, found: Round) -> int:
    """Return the next attempt whose folder is free: a backup knows nothing of those after it."""
    attempts = itertools.count(found.attempt + 1)
    return next(
        n for n in attempts if not campaign.place.adapter(adapter_name(found.id, n)).exists()
    )


def _adopted(campaign: Ground, found: Round, seen: int) -> bool:
    """Take over an adapter that was complete when the process died, before it was named.

    Only when nobody has said anything since, so that it knows all labels there are, and no
    setting was changed.
    """
    name = adapter_name(found.id, found.attempt)
    if found.state != "training":
        return False
    try:
        manifest = publish.verify(campaign.place, name)
    except (UntrustedFileError, StorageError):
        return False
    if any(manifest.get(key) != value for key, value in _facts(campaign, found, seen).items()):
        return False
    sealed = file_sha256(campaign.place.adapter(name) / publish.MANIFEST)
    _named(campaign, found.id, name, sealed, dict(manifest["record"]))
    return True


def _facts(campaign: Ground, found: Round, seen: int) -> dict[str, Any]:
    """Return what the adapter of an attempt depends on: with all of it equal, so is the adapter."""
    settings = sha256(campaign.meta["learner"].encode()).hexdigest()
    return {"campaign": campaign.id, "round": found.id, "taught": seen, "settings": settings}


def _named(campaign: Ground, round_id: int, name: str, sealed: str, record: dict[str, Any]) -> None:
    """Make an adapter the current one, in one transaction; what comes after may be repeated."""
    with campaign.store.transaction():
        rounds.change(
            campaign.store,
            round_id,
            state="published",
            adapter=name,
            manifest=sealed,
            record=record,
            error=None,
        )
    failpoint("publish_recorded")
    write_journal(campaign.store, campaign.place.exports, campaign.id)
    failpoint("teach_exported")
