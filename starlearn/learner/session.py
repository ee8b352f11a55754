"""Session: a base model with the settings and the state of one learner."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from starlearn.data.containers import object_array
from starlearn.data.pool import FilledPool, Rows
from starlearn.data.tokens import Encoder, encode_answers, encode_prompts
from starlearn.errors import InputError, listed
from starlearn.learner.base_models import base_of
from starlearn.learner.inputs import Parts, check_label_type, checked_parts
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import Backbone
from starlearn.model.choices import ChoiceTree, build_tree
from starlearn.progress import ItemBar
from starlearn.query.acquisition import QueryPlan, Workers
from starlearn.query.score_store import ScoreStore
from starlearn.query.score_table import Uncertainty
from starlearn.query.scoring import Scorer
from starlearn.randomness import derived_seed, drawn_seed
from starlearn.tasks import Fields, GenerationTask, Task
from starlearn.train.batches import Example
from starlearn.train.trainer import TrainingRecord, check_lengths, train_adapter

Prompts = list[list[int]]

LITTLE_INFORMATION = 1e-3
"""Nats of mutual information. A trained adapter has more, unless it is sure of all items."""
LEAST_LOSS_REDUCTION = 0.02
"""Share by which a training reduces the base model's loss if it has learned anything."""
CHECKED_LABELS = 64
"""Labelled items, the newest, whose loss shows whether a training has learned anything."""


@dataclass(frozen=True)
class Session:
    """A base model, its stored scores, and the settings and state of one learner.

    The tokenizer is loaded at once, the weights of the base model when they are first needed.
    """

    backbone: Backbone
    store: ScoreStore
    parts: Parts
    adapter: Adapter | None
    """None before the first training."""
    known_classes: NDArray[Any] | None
    """Labels in the order of the columns, [C]; None while unknown, and for free-form answers."""
    round: int
    """t, the number of trainings less one; 0 also before the first."""
    seed_for: Callable[[str, int], int]
    """Returns the seed for a purpose in a round: ``seed_for("masks", t)``."""
    verbose: int
    checkpoint: Path | None = None
    """File that keeps the steps of an interrupted training; see `keeping_steps`."""

    @property
    def width(self) -> int:
        """D, the length of a hidden state; needs no weights."""
        return int(self.backbone.config.get_text_config().hidden_size)

    @property
    def classes(self) -> NDArray[Any]:
        """Labels in the order of the columns, [C]; NotFittedError when they are not known yet."""
        if self.known_classes is None:
            raise NotFittedError(
                "The choices are not known yet: call fit first, or name them: "
                "ChoiceTask(choices=[...])."
            )
        return self.known_classes

    # Tokens

    def tree(self) -> ChoiceTree | None:
        """Return the learner's choices as a tree; None for free-form answers."""
        return None if isinstance(self.parts.task, GenerationTask) else self.choice_tree()

    def choice_tree(self, classes: Sequence[Any] | None = None) -> ChoiceTree:
        """Return the tokens of some classes, by default the learner's, as a tree."""
        texts = [str(label) for label in (self.classes if classes is None else classes)]
        tokens = encode_answers(self.backbone.tokenizer, self.parts.task, texts)
        first: dict[tuple[int, ...], str] = {}
        for text, ids in zip(texts, tokens, strict=True):
            other = first.setdefault(tuple(ids), text)
            if other is not text:
                raise InputError(
                    f"The choices {other!r:.60} and {text!r:.60} have the same tokens in the "
                    f"tokenizer of {self.backbone.source}, so no answer could tell them apart. "
                    "Rename one of them."
                )
        return build_tree(tokens, self.backbone.eos_id)

    def room(self, tree: ChoiceTree | None) -> int:
        """Return the number of tokens that an answer may take after its prompt."""
        if isinstance(self.parts.task, GenerationTask):
            return int(self.parts.task.max_new_tokens)
        return 1 if tree is None else int(tree.n_tokens.max())

    def prompts(self, fields: Sequence[Fields], room: int) -> Prompts:
        """Return the prompts of m items; `room` tokens are left for the answer."""
        return encode_prompts(
            self.backbone.tokenizer,
            self.parts.task,
            fields,
            context=self.backbone.context,
            room=room,
        )

    def tree_and_prompts(self, fields: Sequence[Fields]) -> tuple[ChoiceTree | None, Prompts]:
        """Return the learner's choices, and prompts that leave room for the answer."""
        tree = self.tree()
        return tree, self.prompts(fields, self.room(tree))

    def examples(self, fields: Sequence[Fields], labels: NDArray[Any]) -> list[Example]:
        """Return N labelled items as prompts and answers, which end with the end of sequence."""
        texts = [str(label) for label in labels]
        answers = encode_answers(self.backbone.tokenizer, self.parts.task, texts)
        examples = [
            Example(prompt, [*answer, self.backbone.eos_id])
            for prompt, answer in zip(self.prompts(fields, room=1), answers, strict=True)
        ]
        check_lengths(examples, self.backbone.context)
        return examples

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Return answers as texts without special tokens."""
        decoded = self.backbone.tokenizer.batch_decode(
            [list(ids) for ids in tokens], skip_special_tokens=True
        )
        return [text.strip() for text in decoded]

    # Training

    def check_classes(self, classes: Sequence[Any], *, first: bool) -> None:
        """Warn of a single class; raise InputError when two have the same tokens.

        In the `first` training on a labelled set, also warn of labels that were numbered.
        """
        if len(classes) == 1:
            warning = (
                f"All labels are {classes[0]!r}. With one class every item is certain, and a query "
                "cannot rank them. Name all classes: ChoiceTask(choices=[...])."
            )
        elif first and not isinstance(classes[0], bool) and classes == list(range(len(classes))):
            warning = (
                f"The labels are the numbers 0 to {len(classes) - 1}, and the model learns to "
                "answer with these digits. scikit-learn's VotingClassifier, StackingClassifier, "
                "OneVsRestClassifier and cross_val_predict(method='predict_proba') number the "
                "labels before fit receives them, and their words are lost. If the numbers stand "
                "for words, give the words, and name them all: ChoiceTask(choices=[...])."
            )
        else:
            warning = None
        if warning is not None:
            warnings.warn(warning, UserWarning, stacklevel=5)
        self.choice_tree(classes)

    def check_answers(self, labels: NDArray[Any], examples: Sequence[Example]) -> None:
        """Warn of free-form labels that `max_new_tokens` cuts.

        A label whose final answer is already in its first tokens is not cut.
        """
        task = self.parts.task
        if not isinstance(task, GenerationTask):
            return
        most = int(task.max_new_tokens)
        answers = [example.answer[:-1] for example in examples]  # without the end of sequence
        rows = [
            row
            for row, answer in enumerate(answers)
            if len(answer) > most
            and not task.correct(self.texts([answer[:most]]), [str(labels[row])])[0]
        ]
        if rows:
            warnings.warn(
                f"{len(rows)} of {len(labels)} labels are longer than the task's max_new_tokens="
                f"{most}. The model cannot write them to their end, so its answers count as "
                f"wrong: {listed([f'row {row}: {len(answers[row])} tokens' for row in rows])}. Set "
                f"max_new_tokens={max(len(answers[row]) for row in rows)}, or shorten them.",
                UserWarning,
                stacklevel=5,
            )

    def train(
        self, examples: Sequence[Example], *, seed: int, start: Adapter | None = None
    ) -> tuple[Adapter, TrainingRecord]:
        """Train an adapter; see :func:`starlearn.train.trainer.train_adapter`."""
        return train_adapter(
            self.backbone,
            self.parts.adapter,
            self.parts.training,
            examples,
            seed=seed,
            start=start,
            verbose=self.verbose,
            callbacks=self.parts.callbacks,
            checkpoint=self.checkpoint,
        )

    def warn_if_nothing_was_learned(
        self, items: NDArray[Any], labels: NDArray[Any], information: float
    ) -> None:
        """Warn of a ranking by mutual information where the training has reduced no loss.

        `information` is the largest of the pool. Only where it is small, the losses of the newest
        labelled items are computed, with the adapter and with the base model.
        """
        small = information < LITTLE_INFORMATION
        if not small or self.parts.acquisition.measure != "mutual_information":
            return
        fields = self.parts.task.fill(items[-CHECKED_LABELS:].tolist())
        examples = self.examples(fields, labels[-CHECKED_LABELS:])
        prompts, answers = zip(*((one.prompt, one.answer) for one in examples), strict=True)
        own, base = (
            float(session.losses(list(prompts), list(answers)).sum() / sum(map(len, answers)))
            for session in (self, replace(self, adapter=None))
        )
        if own >= (1 - LEAST_LOSS_REDUCTION) * base:
            warnings.warn(
                f"The adapter has learned nothing: its loss on the labels is {own:.4g}, and the "
                f"base model's is {base:.4g}. The dropout masks hardly change an answer (the "
                f"largest mutual information is {information:.1e} nats), so the ranking is "
                "effectively random. Train longer or with a higher learning rate, or set "
                "measure='entropy'.",
                UserWarning,
                stacklevel=4,
            )

    # Answers

    def scorer(self, tree: ChoiceTree | None, adapter: Adapter | None = None) -> Scorer:
        """Return the scorer of an adapter, by default the learner's."""
        return Scorer(
            self.backbone,
            self.adapter if adapter is None else adapter,
            self.parts.acquisition.without_select(),
            self.store,
            self.seed_for("masks", self.round),
            tree,
            self.room(tree),
        )

    def probabilities(
        self,
        prompts: Prompts,
        tree: ChoiceTree,
        *,
        n_passes: int = 1,
        adapter: Adapter | None = None,
    ) -> NDArray[np.float64]:
        """Return the probability of each choice, the mean over K passes, shape [m, C]."""
        scorer = self.scorer(tree, adapter)
        scorer.check(prompts, np.arange(len(prompts)), n_passes)
        with scorer.ready(), self._bar("predicting", len(prompts)) as bar:
            return scorer.probabilities(tree, prompts, bar, n_passes)

    def held_out_probabilities(
        self,
        fields: Sequence[Fields],
        labels: NDArray[Any],
        splits: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]],
    ) -> NDArray[np.float64]:
        """Return the probability of each choice for N labelled items, [N, C].

        The probabilities of each split are from an adapter trained on the other items.
        """
        tree = self.choice_tree()
        prompts, examples = self.prompts(fields, self.room(tree)), self.examples(fields, labels)
        found = np.zeros((len(prompts), len(tree.paths)))
        seed = self.seed_for("training", self.round)
        for train, test in splits:
            adapter, _ = self.train([examples[i] for i in train], seed=seed)
            found[test] = self.probabilities([prompts[i] for i in test], tree, adapter=adapter)
        return found

    def written(self, prompts: Prompts) -> list[str]:
        """Return free-form answers of the model to m prompts, without dropout."""
        scorer = self.scorer(None)
        with scorer.ready(), self._bar("answering", len(prompts)) as bar:
            return self.texts(scorer.write(prompts, bar))

    def correct(self, fields: Sequence[Fields], labels: NDArray[Any]) -> list[bool]:
        """Return whether the learner's answer to each of m items is the item's label."""
        tree, prompts = self.tree_and_prompts(fields)
        if tree is None:
            return list(self.parts.task.correct(self.written(prompts), labels.tolist()))
        check_label_type(labels, self.classes)
        found = self.probabilities(prompts, tree).argmax(axis=1)
        return list((self.classes[found] == labels).tolist())

    def losses(self, prompts: Prompts, answers: Prompts) -> NDArray[np.float64]:
        """Return minus the log-probability of given answers to m prompts, without dropout, [m]."""
        scorer = self.scorer(None)
        with scorer.ready(), ItemBar("reading", len(prompts), verbose=False) as bar:
            return scorer.losses(prompts, answers, bar)

    def plan(
        self,
        rows: Rows,
        fields: Sequence[Fields] | FilledPool,
        *,
        uses_scores: bool = True,
        labelled: Sequence[Fields] = (),
        workers: Workers | None = None,
    ) -> QueryPlan:
        """Return the plan that scores a pool of m rows, from `checked_pool`, in the current round.

        Random draws and hidden states use no scores and need no choices. `labelled` are the fields
        of the labelled items.
        """
        tree = self.tree() if uses_scores else None
        trained = self.adapter is not None
        encoder = Encoder(
            self.backbone.tokenizer, self.parts.task, self.backbone.context, self.room(tree)
        )
        return QueryPlan(
            scorer=self.scorer(tree),
            rows=rows,
            fields=fields,
            encode=encoder,
            weight=self.parts.acquisition.base_weight(self.round) if trained else 1.0,
            seed=self.seed_for("draw", self.round),
            labelled=labelled,
            select=self.parts.acquisition.select,
            verbose=self.verbose,
            callbacks=self.parts.callbacks,
            workers=workers,
        )

    def uncertainty(self, plan: QueryPlan) -> Uncertainty:
        """Return the uncertainty of a plan's pool, with answers as labels or texts."""
        scores, tree = plan.uncertainty(), plan.scorer.tree
        if tree is None:
            return replace(scores, answers=object_array(self.texts(scores.answers)))
        return replace(
            scores, n_tokens=tree.n_tokens[scores.answers], answers=self.classes[scores.answers]
        )

    def _bar(self, title: str, total: int) -> ItemBar:
        return ItemBar(title, total, self.verbose, self.parts.callbacks)


def session_of(learner: Any, parts: Parts | None = None) -> Session:
    """Return the session of a learner; `parts` are its settings, where they are checked already."""
    parts = checked_parts(learner) if parts is None else parts
    base = base_of(learner)
    known = getattr(learner, "classes_", None)
    if known is None:
        known = classes_of(parts.task, getattr(learner, "y_training", None))
    return Session(
        base.backbone,
        base.store,
        parts,
        getattr(learner, "adapter_", None),
        known,
        max(len(getattr(learner, "rounds_", [])) - 1, 0),
        lambda purpose, t: seed_of(learner, purpose, t),
        learner.verbose,
        getattr(learner, "_checkpoint", None),
    )


@contextmanager
def keeping_steps(learner: Any, file: Path) -> Iterator[None]:
    """Keep the finished steps of a training of this block in a file, and continue from it.

    Whoever stores the adapter removes the file afterwards.
    """
    learner._checkpoint = file
    try:
        yield
    finally:
        vars(learner).pop("_checkpoint", None)


def classes_of(task: Task, labels: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return the classes in the order of the columns; None where there are none or no labels."""
    if isinstance(task, GenerationTask):
        return None
    choices = getattr(task, "choices", None)
    if choices is not None:
        return object_array(sorted(choices))
    return None if labels is None else np.unique(labels)


def seed_of(learner: Any, purpose: str, t: int) -> int:
    """Return a learner's seed for a purpose in round t; its own seed is drawn on first use."""
    if not hasattr(learner, "seed_"):
        learner.seed_ = drawn_seed(learner.random_state)
    return derived_seed(learner.seed_, purpose, t)
