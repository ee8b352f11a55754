"""Engine: a learner's base model with the stages that run on it, one method a stage."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.tokens import encode_answers, encode_prompts
from starlearn.inputs import Parts
from starlearn.model.adapter import Adapter, activate
from starlearn.model.answers import generate_answers
from starlearn.model.backbone import Backbone
from starlearn.model.choices import ChoiceTree, build_tree, choice_distribution
from starlearn.model.dropout import evaluation_mode
from starlearn.query.acquisition import (
    Scoring,
    Uncertainty,
    item_progress,
    score_choices,
    score_free_form,
)
from starlearn.query.base_cache import BaseCache
from starlearn.tasks import GenerationTask, Item
from starlearn.train.trainer import Example, TrainingRecord, check_lengths, train_adapter

Prompts = list[list[int]]


class Engine:
    """Tokenizer at once, weights when they are first needed, base scores kept.

    Parameters
    ----------
    source, quantization, verbose
        As in :class:`starlearn.model.backbone.Backbone`.
    """

    def __init__(
        self, source: str | os.PathLike[str] | None, quantization: Any, verbose: bool = True
    ) -> None:
        self.backbone = Backbone(source, quantization, verbose)
        self.cache = BaseCache()
        self.made_for = (source, quantization)

    def tree(self, parts: Parts, classes: Sequence[Any]) -> ChoiceTree:
        """Arrange the texts of the C classes in a tree."""
        texts = [str(label) for label in classes]
        tokens = encode_answers(self.backbone.tokenizer, parts.task, texts)
        return build_tree(tokens, self.backbone.eos_id)

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
        verbose: bool,
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
        )

    def score(
        self,
        parts: Parts,
        adapter: Adapter | None,
        prompts: Prompts,
        tree: ChoiceTree | None,
        *,
        t: int,
        seed: int,
        verbose: bool,
    ) -> Uncertainty:
        """Compute the uncertainty of m prompts; without a tree the model writes the answers."""
        scoring = Scoring(self.backbone, adapter, parts.acquisition, self.cache, t, seed, verbose)
        if tree is not None:
            return score_choices(scoring, prompts, tree)
        return score_free_form(scoring, prompts, answer_room(parts))

    def probabilities(
        self, parts: Parts, adapter: Adapter, prompts: Prompts, tree: ChoiceTree, verbose: bool
    ) -> NDArray[np.float64]:
        """Return the probability of each choice, without dropout, shape [m, C]."""
        model = activate(self.backbone, adapter)
        with evaluation_mode(model), item_progress("predicting", len(prompts), verbose) as progress:
            logs = choice_distribution(
                model,
                tree,
                prompts,
                n_passes=1,
                pad_id=self.backbone.pad_id,
                max_batch_tokens=parts.acquisition.max_batch_tokens,
                progress=progress,
            )
        return np.asarray(np.exp(logs[0]))

    def write(self, parts: Parts, adapter: Adapter, prompts: Prompts, verbose: bool) -> list[str]:
        """Let the model answer m prompts in free form, without dropout."""
        model = activate(self.backbone, adapter)
        with evaluation_mode(model), item_progress("answering", len(prompts), verbose) as progress:
            tokens = generate_answers(
                model,
                prompts,
                max_new_tokens=answer_room(parts),
                eos_id=self.backbone.eos_id,
                pad_id=self.backbone.pad_id,
                max_batch_tokens=parts.acquisition.max_batch_tokens,
                progress=progress,
            )
        return self.texts(tokens)

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Turn answer tokens into texts without special tokens."""
        decoded = self.backbone.tokenizer.batch_decode(
            [list(ids) for ids in tokens], skip_special_tokens=True
        )
        return [text.strip() for text in decoded]


def answer_room(parts: Parts, tree: ChoiceTree | None = None) -> int:
    """Return the tokens that an answer may take behind its prompt."""
    if isinstance(parts.task, GenerationTask):
        return int(parts.task.max_new_tokens)
    return 1 if tree is None else int(tree.n_tokens.max())
