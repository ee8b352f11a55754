"""Quality of a learner's answers to a test set: accuracy, confidence, loss of the gold answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.containers import as_labels
from starlearn.evaluate.statistics import calibration_error, reliability
from starlearn.learner.inputs import check_final_answers
from starlearn.learner.session import session_of
from starlearn.progress import ItemBar
from starlearn.tasks import GenerationTask


@dataclass(frozen=True)
class Judgement:
    """Accuracy, confidence and loss of q test items, each an array of shape (q,)."""

    correct: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    """Probability of the learner's answer: of a choice among the choices, of a free-form answer
    among all texts."""
    loss: NDArray[np.float64]
    """Negative log-probability of the gold answer in nats: of a choice among the choices, of a
    free-form answer as the mean over its tokens, with the end token."""

    def facts(self) -> dict[str, Any]:
        """Return the rounded metrics of a round's record."""
        bins = reliability(self.confidence, self.correct)
        wrong = self.confidence[~self.correct]
        return {
            "test_nll": round(float(self.loss.mean()), 6),
            "ece": round(calibration_error(bins), 6),
            "confidence_on_errors": round(float(wrong.mean()), 6) if len(wrong) else None,
            "reliability": {name: [round(v, 4) for v in values] for name, values in bins.items()},
        }


def judge(learner: Any, items: Sequence[Any], labels: Sequence[Any]) -> Judgement:
    """Return the quality of a fitted learner's answers to q test items."""
    if isinstance(learner.task, GenerationTask):
        return _judge_texts(learner, items, labels)
    probabilities = learner.predict_proba(items)
    answers = probabilities.argmax(axis=1)
    gold = _columns(learner, labels)
    return Judgement(answers == gold, probabilities.max(axis=1), _minus_log(probabilities, gold))


def gold_losses(learner: Any, items: Sequence[Any], labels: Sequence[Any]) -> NDArray[np.float64]:
    """Return `Judgement.loss` of the gold answers, computed without dropout."""
    if isinstance(learner.task, GenerationTask):
        return _token_losses(learner, items, labels)
    return _minus_log(learner.predict_proba(items), _columns(learner, labels))


def _columns(learner: Any, labels: Sequence[Any]) -> NDArray[np.intp]:
    places = {label: column for column, label in enumerate(learner.classes_.tolist())}
    known = as_labels(labels, len(labels)).tolist()
    return np.array([places.get(label, -1) for label in known], dtype=np.intp)


def _minus_log(probabilities: NDArray[np.float64], gold: NDArray[np.intp]) -> NDArray[np.float64]:
    found = probabilities[np.arange(len(gold)), gold]
    found[gold < 0] = 0.0  # the learner does not know a class that was never labelled
    return np.asarray(-np.log(np.maximum(found, np.finfo(np.float64).tiny)))


def _token_losses(learner: Any, items: Sequence[Any], labels: Sequence[Any]) -> Any:
    session = session_of(learner)
    fields = session.parts.task.fill(items)
    examples = session.examples(fields, as_labels(labels, len(items)))
    answers = [example.answer for example in examples]
    losses = session.losses([example.prompt for example in examples], answers)
    return losses / np.array([len(answer) for answer in answers])


def _judge_texts(learner: Any, items: Sequence[Any], labels: Sequence[Any]) -> Judgement:
    session = session_of(learner)
    task: Any = session.parts.task
    check_final_answers(labels, task)
    prompts = session.prompts(task.fill(items), room=task.max_new_tokens)
    scorer = session.scorer(None)
    with scorer.ready(), ItemBar("judging", len(prompts), verbose=False) as bar:
        written = scorer.write(prompts, bar)
        own = scorer.losses(prompts, written, bar)
    correct = task.correct(session.texts(written), list(labels))
    return Judgement(
        np.asarray(correct, dtype=bool),
        np.exp(-np.maximum(own, 0.0)),
        _token_losses(learner, items, labels),
    )
