"""Evaluation of each model of a campaign on a test file, with answers kept for the next report."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from starlearn.campaign import events, learner_settings, rounds, snapshot
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.items import item_id
from starlearn.campaign.report.evaluations import (
    CampaignModel,
    Evaluation,
    correct_answers,
    free_form_task,
    models,
)
from starlearn.data.readers import converted, text_of
from starlearn.data.sources import read_rows
from starlearn.errors import InputError, StorageError, UntrustedFileError
from starlearn.learner.base_models import share_bases
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import checked_labels
from starlearn.settings import Acquisition
from starlearn.storage.files import make_folder

Notify = Callable[[str], None]


@dataclass(frozen=True)
class TestSet:
    """N items with their labels."""

    __test__ = False  # pytest would collect it as a test

    items: list[dict[str, str]]
    """Fields of the prompt, by item."""
    labels: list[str]


def read_test_file(campaign: Campaign, path: Path, label_field: str) -> TestSet:
    """Read a file that a Pool reads, whose rows have the prompt's fields and a label."""
    rows = list(read_rows(path))
    task = campaign.parameters()["task"]
    remedy = "Fix these lines, or name another field: --label-field"
    pairs = converted(rows, lambda row: ("", text_of(row, label_field).strip()), path, remedy)
    labels = [label for _, label in pairs]
    items = [row for _, row in rows]
    try:
        checked_labels(items, labels, task)
    except InputError as error:
        raise InputError(f"{path}: {error} Rows are counted from 0.") from error
    return TestSet(task.fill(items), labels)


def on_test_set(campaign: Campaign, test: TestSet, notify: Notify) -> list[Evaluation]:
    """Evaluate each model of the campaign on a test set.

    Items that were ever labelled in the campaign are left out for all models. Answers are greedy
    and without dropout. They are kept in the campaign folder if it is writable, so that the next
    report runs new models only. `notify` takes a message for the user.
    """
    log = events.events(campaign.store)
    known = {event.item for event in log if event.kind == "label"}
    known |= set(json.loads(campaign.meta["first"]))
    held_out = np.array([item_id(fields) not in known for fields in test.items])
    if not held_out.all():
        notify(
            f"Note: {(~held_out).sum()} of {len(held_out)} test items were also labelled in this "
            "campaign and are left out."
        )
    if not held_out.any():
        return []
    task, answerer = free_form_task(campaign), _Answerer(campaign, test, notify)
    evaluations = []
    for model in models(campaign):
        table = answerer.table(model)
        if table is not None:
            correct = correct_answers(task, table["answer"].to_pylist(), test.labels)
            confidence = table["confidence"].to_numpy()
            evaluations.append(Evaluation(model, None, correct[held_out], confidence[held_out]))
    return evaluations


class _Answerer:
    """Runs the models of a campaign on a test set; they share one base model in memory."""

    def __init__(self, campaign: Campaign, test: TestSet, notify: Notify) -> None:
        self.campaign, self.test, self.notify = campaign, test, notify
        self.by_round = {found.id: found for found in rounds.rounds(campaign.store)}
        self.first: STARLearner | None = None

    def table(self, model: CampaignModel) -> pa.Table | None:
        """Return answers and confidences, N rows; None where the adapter is damaged."""
        key = self._key(model)
        path = self.campaign.paths.scores / f"test-{key[:32]}.parquet"
        kept = snapshot.read_scores(path)
        if kept is not None and (kept.schema.metadata or {}).get(b"key") == key.encode():
            return kept
        name = "the base model" if model.round is None else f"the model of round {model.round}"
        self.notify(f"Running {name} on {len(self.test.items)} test items.")
        try:
            table = self._predicted(model)
        except UntrustedFileError as error:
            self.notify(f"Note: {name} is left out. {error}")
            return None
        try:
            make_folder(self.campaign.paths.scores)
            snapshot.write_table(path, table, {"key": key})
        except StorageError:
            self.notify(
                "Note: the answers cannot be kept. The next report will run the model again."
            )
        return table

    def _predicted(self, model: CampaignModel) -> pa.Table:
        learner = self._learner(model)
        # One pass without dropout, as in `predict`. The cache is for queries only.
        learner.set_params(acquisition=Acquisition(n_passes=1, measure="entropy"), cache_dir=None)
        if self.first is not None:
            share_bases([self.first, learner])
        self.first = learner if self.first is None else self.first
        found = learner.uncertainty(self.test.items)
        answers = [str(answer) for answer in found.answers]
        return pa.table({"answer": answers, "confidence": np.asarray(found.confidence)})

    def _learner(self, model: CampaignModel) -> STARLearner:
        if model.round is not None:
            return self.campaign.learner(model.round)
        learner = STARLearner(**self.campaign.parameters())
        learner_settings.require_base(learner, self.campaign.meta.get("base"))
        return learner

    def _key(self, model: CampaignModel) -> str:
        """Return a hash of everything that the answers depend on."""
        settings = json.loads(self.campaign.meta["learner"])
        manifest = None if model.round is None else self.by_round[model.round].manifest
        parts = [self.test.items, settings["task"], settings["quantization"]]
        parts += [self.campaign.meta.get("base"), manifest]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
