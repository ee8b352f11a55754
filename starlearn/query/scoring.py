"""Scores of a piece of a pool: what is kept is looked up, what is missing is computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError, listed
from starlearn.model.adapter import Adapter, activate, base_only, detach
from starlearn.model.backbone import Backbone
from starlearn.model.choices import ChoiceTree, choice_distribution
from starlearn.model.dropout import MonteCarlo, evaluation_mode, mc_dropout
from starlearn.model.embedding import prompt_embeddings
from starlearn.model.forward import Workload
from starlearn.model.free_form import answer_statistics
from starlearn.model.generation import generate_answers
from starlearn.model.memory import renumbered
from starlearn.progress import ItemBar
from starlearn.query.score_store import ScoreStore, row_keys
from starlearn.query.scores import answer_scores, choice_scores
from starlearn.settings import Acquisition

Tokens = Sequence[Sequence[int]]
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One row an item of a piece of c items; in nats, sums over tokens for free-form answers."""

    base: Rows
    """Entropy and minus log-probability of the answer under the base model, [c, 2]."""
    full: Rows
    """Means over the passes of entropy and minus log-probability, and mutual information of
    answer and pass, [c, 3]."""
    n_tokens: NDArray[np.int64]
    """Scored tokens of each answer, [c]."""
    answers: list[Any]
    """Index of the likeliest choice, or the tokens of the text, length c."""


@dataclass(frozen=True)
class Scorer:
    """All that decides the scores of an item, and where they are kept."""

    backbone: Backbone
    adapter: Adapter | None
    """None before the first training: then the base model's uncertainty is all there is."""
    acquisition: Acquisition
    store: ScoreStore
    seed: int
    """Of the dropout masks."""
    tree: ChoiceTree | None
    """The choices; None where answers are free-form."""
    max_new_tokens: int
    """Of a free-form answer."""
    numerics: str | None = None
    """What computes in this process's place, if that has another kind of device."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put the adapter on the model, or take every adapter off, and switch to evaluation."""
        with self.backbone.alone():
            if self.adapter is None:
                detach(self.backbone)
                model = self.backbone.model
            else:
                model = activate(self.backbone, self.adapter)
            with evaluation_mode(model):
                yield

    def check(self, prompts: Tokens, rows: NDArray[np.intp], n_passes: int) -> None:
        """Refuse items that these settings cannot score; needs no weights.

        Behind keys and values that are kept from the prompt, the mask is ours, and the same in all
        layers: it cannot tell which of them have a sliding window.

        Parameters
        ----------
        prompts : sequence of token sequences, length c
        rows : ndarray of shape (c,)
            What to call them.
        n_passes : int
            K.

        Raises
        ------
        InputError
            When dropout is to act at the answer only, and prompt and answer may be longer than a
            sliding window.
        """
        if self.adapter is None or n_passes == 1 or self.acquisition.mc_scope == "all":
            return
        window = self.backbone.window
        behind = self.max_new_tokens if self.tree is None else len(self.tree.tokens)
        sizes = [len(prompt) + behind for prompt in prompts]
        long = [
            f"row {row}: {size} tokens"
            for row, size in zip(rows, sizes, strict=True)
            if size > window
        ]
        if long:
            raise InputError(
                f"{len(long)} of {len(prompts)} prompts with their answers do not fit into the "
                f"model's sliding window of {window} tokens: {listed(long)}. "
                "Acquisition(mc_scope='answer') cannot score them: use mc_scope='all', or remove "
                "them."
            )

    def score(self, prompts: Tokens, n_passes: int, bar: ItemBar) -> Scores:
        """Score a piece of a pool; call it inside `ready`.

        Parameters
        ----------
        prompts : sequence of token sequences, length c
        n_passes : int
            K; 1 is one pass without dropout.
        bar : ItemBar

        Returns
        -------
        Scores
        """
        if self.tree is not None:
            return self._score_choices(self.tree, prompts, n_passes, bar)
        return self._score_answers(prompts, n_passes, bar)

    def probabilities(
        self, tree: ChoiceTree, prompts: Tokens, bar: ItemBar, n_passes: int = 1
    ) -> Rows:
        """Return the probability of each of C choices, the mean of K passes, [c, C].

        One pass is without dropout. Call it inside `ready`.
        """
        with self._work("reading", bar, n_passes) as work:
            numbers = mask_keys(row_keys(prompts))
            logs = choice_distribution(work, tree, prompts, numbers)  # [K, c, C]
            return np.asarray(np.exp(logs).mean(axis=0))

    def embeddings(self, prompts: Tokens, bar: ItemBar) -> Rows:
        """Return the base model's mean hidden state of each prompt, [c, D]; inside `ready`."""

        def embedded(missing: list[int]) -> Rows:
            with renumbered(missing), self._base_work(bar, counts=True) as work:
                return prompt_embeddings(work, [prompts[i] for i in missing])

        return self.store.get(self.embedding_space, row_keys(prompts), embedded)

    def write(self, prompts: Tokens, bar: ItemBar, *, counts: bool = True) -> list[list[int]]:
        """Let the model answer each prompt, greedily and without dropout; inside `ready`."""
        width = self.max_new_tokens
        space = f"answers {width} {self._model}"

        def written(missing: list[int]) -> Rows:
            with renumbered(missing), self._work("answering", bar, counts=counts) as work:
                answers = generate_answers(
                    replace(work, budget=self.backbone.writing_budget),
                    [prompts[i] for i in missing],
                    max_new_tokens=width,
                    eos_id=self.backbone.eos_id,
                    context=self.backbone.context,
                )
            rows = np.full((len(answers), width), -1.0)
            for row, answer in zip(rows, answers, strict=True):
                row[: len(answer)] = answer
            return rows

        rows = self.store.get(self._space(space), row_keys(prompts), written)
        return [[int(token) for token in row if token >= 0] for row in rows]

    def losses(self, prompts: Tokens, answers: Tokens, bar: ItemBar) -> NDArray[np.float64]:
        """Return minus the log-probability of given answers without dropout, in nats, [c].

        Call it inside `ready`. Each answer has at least one token; its end counts if it is given.
        """
        with self._work("reading", bar) as work:
            keys = mask_keys(row_keys(prompts, answers))
            return np.asarray(-answer_statistics(work, prompts, answers, keys).log_probability[0])

    def _score_choices(
        self, tree: ChoiceTree, prompts: Tokens, n_passes: int, bar: ItemBar
    ) -> Scores:
        keys = row_keys(prompts)
        numbers = mask_keys(keys)

        def base_rows(missing: list[int]) -> Rows:
            chosen = [prompts[i] for i in missing]
            with renumbered(missing), self._base_work(bar) as work:
                return choice_distribution(work, tree, chosen, numbers[missing])[0]

        def full_rows(missing: list[int]) -> Rows:
            chosen = [prompts[i] for i in missing]
            with renumbered(missing), self._work("scoring", bar, n_passes) as work:
                logs = choice_distribution(work, tree, chosen, numbers[missing])  # [K, c, C]
            return choice_scores(logs)

        base_logs = self.store.get(self.base_space, keys, base_rows)[None]  # [1, c, C]
        if self.adapter is None:
            full = choice_scores(base_logs)
        else:
            space = f"full {tree.identity} {self._model} {self._passes(n_passes)}"
            full = self.store.get(self._space(space), keys, full_rows)  # [c, 4]
        answers = full[:, 3].astype(np.int64)
        base = choice_scores(base_logs, answers)
        # One distribution an answer: its entropy is not a sum over tokens.
        lengths = np.ones(len(prompts), dtype=np.int64)
        return Scores(base[:, :2], full[:, :3], lengths, answers.tolist())

    def _score_answers(self, prompts: Tokens, n_passes: int, bar: ItemBar) -> Scores:
        answers = self.write(prompts, bar, counts=False)
        keys = row_keys(prompts, answers)
        numbers = mask_keys(keys)

        def base_rows(missing: list[int]) -> Rows:
            return scored(missing, self._base_work(bar))[:, :2]

        def full_rows(missing: list[int]) -> Rows:
            return scored(missing, self._work("scoring", bar, n_passes))

        def scored(missing: list[int], context: Any) -> Rows:
            chosen, own = [prompts[i] for i in missing], [answers[i] for i in missing]
            with renumbered(missing), context as work:
                return answer_scores(answer_statistics(work, chosen, own, numbers[missing]))

        base = self.store.get(self.base_space, keys, base_rows)  # [c, 2]
        if self.adapter is None:
            full = np.column_stack([base, np.zeros(len(base))])
        else:
            space = f"full free-form {self._model} {self._passes(n_passes)}"
            full = self.store.get(self._space(space), keys, full_rows)  # [c, 3]
        n_tokens = np.array([len(answer) for answer in answers], dtype=np.int64)
        return Scores(base, full, n_tokens, list(answers))

    @contextmanager
    def _work(
        self, stage: str, bar: ItemBar, n_passes: int = 1, *, counts: bool = True
    ) -> Iterator[Workload]:
        backbone, acquisition = self.backbone, self.acquisition
        dropout: Any = nullcontext()
        if n_passes > 1:
            if not backbone.by_positions and acquisition.mc_scope == "answer":
                raise InputError(
                    f"{backbone.source} counts places in a row (ALiBi), so that its passes cannot "
                    "share a part. Use Acquisition(mc_scope='all')."
                )
            dropout = mc_dropout(
                backbone.peft_model,
                int(n_passes),  # NumPy's whole numbers too
                self.seed,
                mask_mode=acquisition.mask_mode,
                answer_only=acquisition.mc_scope == "answer",
            )
        with dropout as passes, bar.stage(stage, counts=counts):
            yield self._workload(backbone.peft_model or backbone.model, bar, passes)

    @contextmanager
    def _base_work(self, bar: ItemBar, *, counts: bool = False) -> Iterator[Workload]:
        counts = counts or self.adapter is None
        with base_only(self.backbone) as base, bar.stage("base model", counts=counts):
            yield self._workload(base, bar, None)

    def _workload(self, model: Any, bar: ItemBar, dropout: MonteCarlo | None) -> Workload:
        return Workload(
            model,
            self.backbone.head,
            self.backbone.pad_id,
            self.backbone.budget,
            self.acquisition.max_batch_tokens,
            dropout,
            self.backbone.by_positions,
            bar.advance,
        )

    def share_without_base(self, prompts: Tokens) -> float:
        """Return the share of prompts whose base scores have to be computed.

        Free-form answers change with the adapter, and their base scores with them: all of them.
        """
        if self.tree is None:
            return 1.0
        keys = row_keys(prompts)
        return 1 - len(self.store.known(self.base_space, keys)) / len(set(keys))

    @cached_property
    def base_space(self) -> str:
        """Name of all that decides the base model's rows, the item aside."""
        kind = "free-form" if self.tree is None else f"choices {self.tree.identity}"
        return self._space(f"base {kind}")

    @cached_property
    def embedding_space(self) -> str:
        """Name of all that decides an item's hidden states, the item aside."""
        return self._space("embedding")

    def identity(self, n_passes: int) -> str:
        """Name all that decides an item's scores over K passes, the item aside."""
        kind = f"free-form {self.max_new_tokens}" if self.tree is None else self.tree.identity
        return self._space(f"scores {kind} {self._model} {self._passes(n_passes)}")

    @cached_property
    def _model(self) -> str:
        """What answers: the base model, or an adapter on it, which will be gone some day."""
        return "base" if self.adapter is None else f"{self.adapter.digest}*"

    def _passes(self, n_passes: int) -> str:
        if n_passes == 1:
            return "one pass"
        part = self.acquisition
        return f"{n_passes} {self.seed} {part.mask_mode} {part.mc_layers} {part.mc_scope}"

    def _space(self, name: str) -> str:
        """A short name for everything but the item that decides a row."""
        numerics = self.numerics or self.backbone.numerics
        digest = blake2b(f"{numerics} {name}".encode(), digest_size=16).hexdigest()
        return f"{digest}*" if "*" in self._model and self._model in name else digest


def mask_keys(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Turn the items' keys to the numbers that masks per token are drawn by, [c]."""
    return np.frombuffer(b"".join(key[:8] for key in keys), dtype=np.int64).copy()
