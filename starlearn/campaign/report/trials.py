"""A model's answers to items whose labels are known: which are right, and how sure it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binomtest

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.rounds import Round
from starlearn.tasks import GenerationTask

NEEDED = {"id", "answer", "confidence"}
"""Columns of a round's scores that tell how its model answered."""


@dataclass(frozen=True)
class Model:
    """A model of a campaign: that of a published round, or the base model."""

    round: int | None
    """None for the base model."""
    n_labels: int
    """Labels it learnt from, first labels too."""
    taught: int
    """The newest event it could learn from; 0 for the base model."""


@dataclass(frozen=True)
class Trial:
    """The answers of one model to N items, of which none was taught to it."""

    model: Model
    round: int | None
    """The round that asked for the items; None for a test file."""
    correct: NDArray[np.bool_]
    """Whether each answer is the label, [N]."""
    confidence: NDArray[np.float64]
    """The probability that the model gave its answer, [N]; of a free-form answer, the geometric
    mean over its tokens."""

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, for items drawn at random."""
        test = binomtest(int(self.correct.sum()), len(self.correct))
        low, high = test.proportion_ci(0.95, method="wilson")
        return float(low), float(high)


def models(campaign: Campaign) -> list[Model]:
    """Return the base model, where nothing was taught before, and that of each published round."""
    published = [found for found in rounds.rounds(campaign.store) if found.state == "published"]
    taught = [_model(campaign, found) for found in published]
    begins_trained = bool(taught) and taught[0].round == 0
    return taught if begins_trained else [Model(None, 0, 0), *taught]


def before_teaching(campaign: Campaign) -> list[Trial]:
    """Return how the model of each round answered its batch, before anyone had labelled it.

    Both were kept when the batch was chosen: this computes nothing. Rounds whose scores were not
    kept (random draws, screening, sub-pools) are left out, and so are items whose label had been
    known earlier and was taken back.

    Notes
    -----
    Test, then train: "prequential" evaluation (Dawid 1984, doi:10.2307/2981683). The batch is
    chosen because the model is unsure of it, so its accuracy there is below that on the pool.
    """
    labels = campaign.labels()
    log = events.events(campaign.store)
    task = free_form_task(campaign)
    published = [found for found in rounds.rounds(campaign.store) if found.state == "published"]
    by_adapter = {found.manifest: found for found in published}
    trials = []
    for found in rounds.rounds(campaign.store):
        known = {event.item for event in log if event.kind == "label" and event.seq <= found.seen}
        batch = {i.item for i in rounds.batch_of(campaign.store, found.id)} & set(labels)
        table = answered(campaign, found, batch - known)
        if table is None or table.num_rows == 0:
            continue
        chosen_by = by_adapter.get(found.params.get("adapter"))
        known_labels = [labels[item] for item in table["id"].to_pylist()]
        trials.append(
            Trial(
                Model(None, 0, 0) if chosen_by is None else _model(campaign, chosen_by),
                found.id,
                right(task, table["answer"].to_pylist(), known_labels),
                table["confidence"].to_numpy(),
            )
        )
    return trials


def answered(campaign: Campaign, found: Round, items: set[str]) -> pa.Table | None:
    """Return the rows of a round's scores with these items; None where they were not kept."""
    table = campaign.scores(found.id)
    if table is None or not set(table.column_names) >= NEEDED:
        return None
    return table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(items), type=pa.string())))


def free_form_task(campaign: Campaign) -> GenerationTask | None:
    """Return the task of a campaign with free-form answers, None for choices; loads no model."""
    settings = campaign.task
    return GenerationTask(**settings) if settings.pop("class") == "GenerationTask" else None


def right(
    task: GenerationTask | None, answers: Sequence[str], labels: Sequence[str]
) -> NDArray[np.bool_]:
    """Say which answers are the label; in free form, which end in the label's final answer."""
    if task is not None:
        return np.array(task.correct(answers, labels), dtype=bool)
    return np.array([a == b for a, b in zip(answers, labels, strict=True)], dtype=bool)


def _model(campaign: Campaign, found: Round) -> Model:
    n_labels = int(found.record.get("n_labels", 0))
    # What round 0 was trained on is counted in its record; later rounds count the campaign's own.
    first = int(campaign.meta.get("n_first", 0)) if found.id else 0
    return Model(found.id, n_labels + first, found.taught or 0)
