"""One training of a campaign: back up, mark the round, train, publish, record, export."""

import itertools
import json
import shlex
from collections import Counter
from hashlib import sha256
from time import perf_counter
from typing import Any

from starlearn.campaign import events, publish, rounds
from starlearn.campaign.event_log import log_of
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.journal import write_journal
from starlearn.campaign.publish import adapter_name
from starlearn.campaign.rounds import Round
from starlearn.data.containers import as_labels, object_array
from starlearn.errors import InputError, StarlearnError, StorageError, UntrustedFileError
from starlearn.learner.estimator import STARLearner
from starlearn.learner.session import keeping_steps
from starlearn.storage.files import file_sha256, require_space
from starlearn.train.checkpoints import kept_steps, remove_checkpoint

MINIMUM_FREE = 10_000_000
"""Bytes that must be free before the first training, when the size of an adapter is unknown."""


def teach(campaign: CampaignFolder, partial: bool = False) -> None:
    """Train the adapter of the current round on all labels, and publish it.

    Items of the batch that still wait for a label leave it, which `partial` must allow. Before the
    training, the room for three adapters is checked.
    """
    # The order of the steps, each followed by its failpoint, makes a kill harmless at any of them:
    # backup, round marked as in training, adapter published, round recorded, journal exported.
    found = _ready_round(campaign, partial)
    campaign.backup()
    failpoint("teach_backed_up")
    last_event = events.last_seq(campaign.store)
    if _adopted(campaign, found, last_event):
        return
    labels = labelled(campaign)
    _require_room(campaign)
    attempt = _next_attempt(campaign, found)
    marked = {"state": "training", "attempt": attempt, "taught": last_event, "error": None}
    rounds.change(campaign.store, found.id, **marked)
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
        facts = {**_facts(campaign, found, last_event), "record": record}
        seal = publish.publish_learner(campaign.paths, learner, name, facts)
    except BaseException as error:
        campaign.forget_learner()
        # After Ctrl-C, the round stays in training, and the next call repeats it.
        if isinstance(error, StarlearnError):
            rounds.change(campaign.store, found.id, state="failed", error=str(error))
        raise
    _record_published(campaign, found.id, name, seal, record)
    campaign.keep_learner(learner)


def interrupted_training(campaign: CampaignFolder) -> str:
    """Return a sentence about what an interrupted training has left."""
    last = rounds.current(campaign.store)
    if last is not None and campaign.paths.adapter(adapter_name(last.id, last.attempt)).exists():
        return "The trained adapter is kept."
    found = kept_steps(campaign.paths.checkpoint)
    if found is None:
        return "No step of the training is kept, so it starts again."
    return f"The first {found[0]} of {found[1]} steps of the training are kept."


def labelled(campaign: CampaignFolder) -> list[tuple[dict[str, str], str]]:
    """Return the items and resolved labels of the whole campaign, in the order of labelling."""
    labels = campaign.labels()
    contents = rounds.contents(campaign.store)
    if not labels:
        raise InputError(
            "There is no label to train on yet: all responses are skips or flags, or annotators "
            f"differ. Query other items: starlearn query {campaign.folder} -n 50; or undo a "
            f"response with u: starlearn label {campaign.folder}."
        )
    return [(json.loads(contents[item]), answer) for item, answer in labels.items()]


def trained(campaign: CampaignFolder, labels: list[tuple[dict[str, str], str]]) -> STARLearner:
    """Train the campaign's learner on its first labels and all labels of the campaign.

    A label that was corrected since the last round counts with its current answer.
    """
    learner = campaign.learner()
    n_first = int(campaign.meta.get("n_first", 0))
    known: list[tuple[Any, Any]] = []
    if n_first:
        known = list(zip(learner.X_training[:n_first], learner.y_training[:n_first], strict=True))
    # `teach` adds its arguments to the training set, so the training set holds all but the last.
    known += labels[:-1]
    items, answers = zip(*known, strict=True) if known else ((), ())
    learner.X_training = object_array(items)
    learner.y_training = as_labels(answers, len(items))
    with keeping_steps(learner, campaign.paths.checkpoint):
        return learner.teach([labels[-1][0]], [labels[-1][1]])


def _ready_round(campaign: CampaignFolder, partial: bool) -> Round:
    found = rounds.current(campaign.store)
    has_batch = found is not None and found.state not in ("published", "scoring")
    issued = rounds.batch_of(campaign.store, found.id) if found is not None and has_batch else []
    if found is None or not issued:
        raise InputError(
            "There is no batch to train on. Query one first: starlearn query "
            f"{campaign.folder} -n 50, campaign.query(50)."
        )
    if found.state == "issued":  # a training that was begun once ends as it began
        _require_responses(campaign, found.id, {item.item for item in issued}, partial)
    return found


def _require_responses(
    campaign: CampaignFolder, round_id: int, batch: set[str], partial: bool
) -> None:
    """Raise InputError without any response to a batch, or unless all are there or `partial`."""
    given = log_of(campaign.store).by_item
    annotators = [given[item].keys() if item in given else set() for item in batch]
    folder = shlex.quote(str(campaign.folder))
    per_item = campaign.options["per_item"]
    waiting = [found for found in annotators if len(found) < per_item]
    if not any(annotators):
        raise InputError(
            f"None of the {len(batch)} items of round {round_id} is labelled, so there is nothing "
            f"new to learn. Label them: starlearn label {folder}, campaign.label(item, answer)."
        )
    if not waiting or partial:
        return
    at_work = Counter(name for found in annotators for name in found)
    who = ", ".join(f"{name} {count}" for name, count in at_work.most_common(5))
    others = f" and {len(at_work) - 5} more" if len(at_work) > 5 else ""
    fewer = " One with too few keeps the answers it has." if per_item > 1 else ""
    needed = f" of {per_item} annotators" if per_item > 1 else ""
    raise InputError(
        f"In round {round_id}, responses{needed} are missing for {len(waiting)} of {len(batch)} "
        f"items. Responses so far: {who}{others}. Label the rest: starlearn label {folder}; or "
        f"train without it: starlearn teach {folder} --partial, campaign.teach(partial=True). The "
        "batch then ends, and an item without a response can come back in a later query."
        f"{fewer}"
    )


def _require_room(campaign: CampaignFolder) -> None:
    last = campaign.published()
    size = MINIMUM_FREE
    if last is not None and last.adapter is not None:
        folder = campaign.paths.adapter(last.adapter)
        if folder.is_dir():
            size = 3 * sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    require_space(campaign.folder, size, "A training and its adapter")


def _next_attempt(campaign: CampaignFolder, found: Round) -> int:
    """Return the next attempt without a folder: a restored backup lacks later attempts."""
    attempts = itertools.count(found.attempt + 1)
    return next(
        n for n in attempts if not campaign.paths.adapter(adapter_name(found.id, n)).exists()
    )


def _adopted(campaign: CampaignFolder, found: Round, last_event: int) -> bool:
    """Record an adapter that was complete when the process died, and return whether there was one.

    It is used only where no response and no setting changed since, so that it equals the adapter
    of a new training.
    """
    name = adapter_name(found.id, found.attempt)
    if found.state != "training":
        return False
    try:
        manifest = publish.verify(campaign.paths, name)
    except (UntrustedFileError, StorageError):
        return False
    expected = _facts(campaign, found, last_event)
    if any(manifest.get(key) != value for key, value in expected.items()):
        return False
    seal = file_sha256(campaign.paths.adapter(name) / publish.MANIFEST)
    _record_published(campaign, found.id, name, seal, dict(manifest["record"]))
    return True


def _facts(campaign: CampaignFolder, found: Round, last_event: int) -> dict[str, Any]:
    """Return everything that determines the adapter of an attempt."""
    settings = sha256(campaign.meta["learner"].encode()).hexdigest()
    return {"campaign": campaign.id, "round": found.id, "taught": last_event, "settings": settings}


def _record_published(
    campaign: CampaignFolder, round_id: int, name: str, seal: str, record: dict[str, Any]
) -> None:
    """Make an adapter the current one in one transaction, then export the journal."""
    # Before the record, because a complete adapter needs no training if the process dies here.
    remove_checkpoint(campaign.paths.checkpoint)
    values = {"state": "published", "adapter": name, "manifest": seal, "record": record}
    rounds.change(campaign.store, round_id, **values, error=None)
    failpoint("publish_recorded")
    # The export can be repeated, so it comes after the record.
    write_journal(campaign)
    failpoint("teach_exported")
