"""Evaluations of a campaign's models: their answers to items whose labels are known."""

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
"""Columns of a round's scores that hold the model's answers."""


@dataclass(frozen=True)
class CampaignModel:
    """The model of a published round, or the base model."""

    round: int | None
    """None for the base model."""
    n_labels: int
    """Number of labels that it was trained on, including the first labels."""
    last_event: int
    """The newest event before its training; 0 for the base model."""


@dataclass(frozen=True)
class Evaluation:
    """Answers of one model to N items that it was not trained on."""

    model: CampaignModel
    round: int | None
    """The round whose batch the items are; None for a test file."""
    correct: NDArray[np.bool_]
    """Whether each answer is the label, [N]."""
    confidence: NDArray[np.float64]
    """The model's probability of each answer, [N]; for a free-form answer, the geometric mean of
    its tokens' probabilities."""

    @property
    def accuracy(self) -> float:
        """The share of correct answers."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, for items drawn at random."""
        test = binomtest(int(self.correct.sum()), len(self.correct))
        low, high = test.proportion_ci(0.95, method="wilson")
        return float(low), float(high)


def models(campaign: Campaign) -> list[CampaignModel]:
    """Return the models of all published rounds, after the base model if round 0 is untrained."""
    trained = [_model(campaign, found) for found in rounds.published(campaign.store)]
    begins_trained = bool(trained) and trained[0].round == 0
    return trained if begins_trained else [CampaignModel(None, 0, 0), *trained]


def before_teaching(campaign: Campaign) -> list[Evaluation]:
    """Return each model's answers to the batch that it chose, before anyone labelled the batch.

    The answers were kept by the query, so nothing is computed. Rounds without kept scores (random
    choice, screening, sub-pools) are left out, and so are items that had a label earlier.

    Notes
    -----
    Test, then train: "prequential" evaluation (Dawid 1984, doi:10.2307/2981683). A batch is chosen
    because the model is unsure of it, so its accuracy there is below that on the pool.
    """
    labels = campaign.labels()
    log = events.events(campaign.store)
    task = free_form_task(campaign)
    by_adapter = {found.manifest: found for found in rounds.published(campaign.store)}
    evaluations = []
    for found in rounds.rounds(campaign.store):
        known = {event.item for event in log if event.kind == "label" and event.seq <= found.seen}
        batch = {i.item for i in rounds.batch_of(campaign.store, found.id)} & set(labels)
        table = answers_to(campaign, found, batch - known)
        if table is None or table.num_rows == 0:
            continue
        chosen_by = by_adapter.get(found.params.get("adapter"))
        known_labels = [labels[item] for item in table["id"].to_pylist()]
        evaluations.append(
            Evaluation(
                CampaignModel(None, 0, 0) if chosen_by is None else _model(campaign, chosen_by),
                found.id,
                correct_answers(task, table["answer"].to_pylist(), known_labels),
                table["confidence"].to_numpy(),
            )
        )
    return evaluations


def answers_to(campaign: Campaign, found: Round, items: set[str]) -> pa.Table | None:
    """Return the rows of a round's scores with these items; None where they were not kept."""
    table = campaign.scores(found.id)
    if table is None or not set(table.column_names) >= NEEDED:
        return None
    return table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(items), type=pa.string())))


def free_form_task(campaign: Campaign) -> GenerationTask | None:
    """Return the task of a campaign with free-form answers, None for choices; loads no model."""
    settings = campaign.task
    return GenerationTask(**settings) if settings.pop("class") == "GenerationTask" else None


def correct_answers(
    task: GenerationTask | None, answers: Sequence[str], labels: Sequence[str]
) -> NDArray[np.bool_]:
    """Return whether each answer is the label, [N]; in free form, whether final answers agree."""
    if task is not None:
        return np.array(task.correct(answers, labels), dtype=bool)
    return np.array([a == b for a, b in zip(answers, labels, strict=True)], dtype=bool)


def _model(campaign: Campaign, found: Round) -> CampaignModel:
    n_labels = int(found.record.get("n_labels", 0))
    # The record of round 0 counts the first labels; later records count only the campaign's own.
    first = int(campaign.meta.get("n_first", 0)) if found.id else 0
    return CampaignModel(found.id, n_labels + first, found.taught or 0)
