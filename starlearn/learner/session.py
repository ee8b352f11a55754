"""Engine: a learner's base model with the stages that run on it, one method a stage."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from starlearn.data.tokens import Encoder, encode_answers, encode_prompts
from starlearn.errors import InputError
from starlearn.learner.inputs import Parts
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import Backbone, quantization_to_json
from starlearn.model.choices import ChoiceTree, build_tree
from starlearn.progress import ItemBar
from starlearn.query.score_store import ScoreStore
from starlearn.query.scoring import Scorer
from starlearn.tasks import GenerationTask, Item
from starlearn.train.batches import Example
from starlearn.train.trainer import TrainingRecord, check_lengths, train_adapter

Prompts = list[list[int]]


class Engine:
    """Tokenizer at once, weights when they are first needed, scores kept.

    Parameters
    ----------
    source, quantization, verbose
        As in :class:`starlearn.model.backbone.Backbone`.
    cache_dir : path or None
        As in :class:`starlearn.query.score_store.ScoreStore`.
    backbone : Backbone, optional
        The base model, where it is there already.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
        verbose: int = True,
        backbone: Backbone | None = None,
    ) -> None:
        self.backbone = backbone or Backbone(source, quantization, verbose)
        self.store = ScoreStore(cache_dir)
        self.base = _base_name(source, quantization)
        self.cache_dir = cache_dir

    def serves(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
    ) -> bool:
        """Tell whether this is the engine for a learner with these parameters."""
        return self.base == _base_name(source, quantization) and self.cache_dir == cache_dir

    @property
    def width(self) -> int:
        """D, the length of a hidden state; needs no weights."""
        return int(self.backbone.config.get_text_config().hidden_size)

    def tree(self, parts: Parts, classes: Sequence[Any]) -> ChoiceTree:
        """Arrange the texts of the C classes in a tree."""
        texts = [str(label) for label in classes]
        tokens = encode_answers(self.backbone.tokenizer, parts.task, texts)
        first: dict[tuple[int, ...], str] = {}
        for text, ids in zip(texts, tokens, strict=True):
            other = first.setdefault(tuple(ids), text)
            if other is not text:
                raise InputError(
                    f"The choices {other!r:.60} and {text!r:.60} become the same tokens for the "
                    f"tokenizer of {self.backbone.source}, so no answer could tell them apart. "
                    "Rename one of them."
                )
        return build_tree(tokens, self.backbone.eos_id)

    def check_classes(self, parts: Parts, classes: Sequence[Any]) -> None:
        """Warn of a single class; InputError when two are the same for this tokenizer."""
        if len(classes) == 1:
            warnings.warn(
                f"All labels are {classes[0]!r}: with one class every item is certain, and a "
                "query cannot tell them apart. Name all classes: ChoiceTask(choices=[...]).",
                UserWarning,
                stacklevel=4,
            )
        self.tree(parts, classes)

    def prompts(self, parts: Parts, items: Sequence[Item], room: int) -> Prompts:
        """Turn m items into prompts that leave `room` tokens for the answer."""
        return encode_prompts(
            self.backbone.tokenizer, parts.task, items, context=self.backbone.context, room=room
        )

    def examples(self, parts: Parts, items: Sequence[Item], labels: NDArray[Any]) -> list[Example]:
        """Turn N labelled items into prompts and answers that end with the end of sequence."""
        answers = encode_answers(self.backbone.tokenizer, parts.task, [str(y) for y in labels])
        prompts = self.prompts(parts, items, room=1)
        examples = [
            Example(prompt, [*answer, self.backbone.eos_id])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        check_lengths(examples, self.backbone.context)
        return examples

    def train(
        self,
        parts: Parts,
        examples: Sequence[Example],
        *,
        seed: int,
        start: Adapter | None,
        verbose: int,
    ) -> tuple[Adapter, TrainingRecord]:
        """Train an adapter; see :func:`starlearn.train.trainer.train_adapter`."""
        return train_adapter(
            self.backbone,
            parts.adapter,
            parts.training,
            examples,
            seed=seed,
            start=start,
            verbose=verbose,
            callbacks=parts.callbacks,
        )

    def encode(self, parts: Parts, room: int) -> Encoder:
        """Return what turns items of a pool into prompts that leave room for the answer."""
        return Encoder(self.backbone.tokenizer, parts.task, self.backbone.context, room)

    def scorer(
        self, parts: Parts, adapter: Adapter | None, tree: ChoiceTree | None, seed: int
    ) -> Scorer:
        """Return what scores items; without a tree the model writes the answers."""
        room = answer_room(parts, tree)
        return Scorer(self.backbone, adapter, parts.acquisition, self.store, seed, tree, room)

    def probabilities(
        self,
        parts: Parts,
        adapter: Adapter,
        prompts: Prompts,
        tree: ChoiceTree,
        *,
        n_passes: int,
        seed: int,
        verbose: int,
    ) -> NDArray[np.float64]:
        """Return the probability of each choice, the mean of K passes, shape [m, C]."""
        scorer = self.scorer(parts, adapter, tree, seed)
        scorer.check(prompts, np.arange(len(prompts)), n_passes)
        with (
            scorer.ready(),
            ItemBar("predicting", len(prompts), verbose, parts.callbacks) as bar,
        ):
            return scorer.probabilities(tree, prompts, bar, n_passes)

    def unseen_probabilities(
        self,
        parts: Parts,
        examples: Sequence[Example],
        prompts: Prompts,
        tree: ChoiceTree,
        folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]],
        *,
        seed: int,
        verbose: int,
    ) -> NDArray[np.float64]:
        """Return the probability of each choice for N labelled items, shape [N, C].

        Each fold's come from an adapter that was trained on the other labels.
        """
        found = np.zeros((len(prompts), len(tree.paths)))
        for train, judge in folds:
            known, unseen = [examples[i] for i in train], [prompts[i] for i in judge]
            adapter, _ = self.train(parts, known, seed=seed, start=None, verbose=verbose)
            found[judge] = self.probabilities(
                parts, adapter, unseen, tree, n_passes=1, seed=seed, verbose=verbose
            )
        return found

    def write(self, parts: Parts, adapter: Adapter, prompts: Prompts, verbose: int) -> list[str]:
        """Let the model answer m prompts in free form, without dropout."""
        scorer = self.scorer(parts, adapter, None, seed=0)
        with (
            scorer.ready(),
            ItemBar("answering", len(prompts), verbose, parts.callbacks) as bar,
        ):
            return self.texts(scorer.write(prompts, bar))

    def losses(
        self, parts: Parts, adapter: Adapter, prompts: Prompts, answers: Prompts
    ) -> NDArray[np.float64]:
        """Return minus the log-probability of given answers to m prompts, without dropout, [m]."""
        scorer = self.scorer(parts, adapter, None, seed=0)
        with scorer.ready(), ItemBar("reading", len(prompts), verbose=False) as bar:
            return scorer.losses(prompts, answers, bar)

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Turn answer tokens into texts without special tokens."""
        decoded = self.backbone.tokenizer.batch_decode(
            [list(ids) for ids in tokens], skip_special_tokens=True
        )
        return [text.strip() for text in decoded]


class Bases:
    """Engines that several learners use, so that one base model in memory serves all of them.

    A learner shares it with its clones. The engine in use last stays in memory as long as one of
    them is there, so that a search over parameters loads the base model once.
    """

    def __init__(self) -> None:
        self._engines: WeakSet[Engine] = WeakSet()
        self._latest: Engine | None = None
        self._lock = RLock()  # two threads must not load the same base model

    def __reduce__(self) -> Any:
        return Bases, ()  # a pickle carries no base model; those who share it share the next one

    def get(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
        *,
        verbose: int,
    ) -> Engine:
        """Return the engine for these parameters; a new one on a base model that is there."""
        with self._lock:
            for engine in self._engines:
                if engine.serves(source, quantization, cache_dir):
                    self._latest = engine
                    return engine
            backbone = self._backbone(_base_name(source, quantization))
            self._latest = Engine(source, quantization, cache_dir, verbose, backbone)
            self._engines.add(self._latest)
            return self._latest

    def adopted(self, engine: Engine) -> Engine:
        """Take in the engine of another learner, or return the equal one that is there."""
        name = (engine.base, engine.cache_dir)
        with self._lock:
            for known in self._engines:
                if known is engine or (known.base, known.cache_dir) == name:
                    return known
            engine.backbone = self._backbone(engine.base) or engine.backbone
            self._engines.add(engine)
            return engine

    def _backbone(self, base: tuple[str | None, str]) -> Backbone | None:
        return next((known.backbone for known in self._engines if known.base == base), None)


def _base_name(source: Any, quantization: Any) -> tuple[str | None, str]:
    # As text: two BitsAndBytesConfigs are equal to Python whatever they say.
    form = json.dumps(quantization_to_json(quantization), default=str, sort_keys=True)
    return None if source is None else str(source), form


def answer_room(parts: Parts, tree: ChoiceTree | None = None) -> int:
    """Return the tokens that an answer may take behind its prompt."""
    if isinstance(parts.task, GenerationTask):
        return int(parts.task.max_new_tokens)
    return 1 if tree is None else int(tree.n_tokens.max())
