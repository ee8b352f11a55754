"""Scores of a chunk of a pool: stored scores are read, the others are computed and stored."""

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
from starlearn.model.forward import Workload, prompt_embeddings
from starlearn.model.free_form import answer_scores
from starlearn.model.generation import generate_answers
from starlearn.model.memory import renumbered
from starlearn.progress import ItemBar
from starlearn.query.score_store import ScoreStore, row_keys
from starlearn.query.score_table import ScoreTable, choice_scores
from starlearn.query.selection import item_keys
from starlearn.settings import Acquisition

Tokens = Sequence[Sequence[int]]
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Scorer:
    """Everything that the scores of an item depend on, and the store that keeps them."""

    backbone: Backbone
    adapter: Adapter | None
    """None before the first training: only the base model's uncertainty is known then."""
    acquisition: Acquisition
    store: ScoreStore
    seed: int
    """Seed of the dropout masks."""
    tree: ChoiceTree | None
    """The choices; None where answers are free-form."""
    max_new_tokens: int
    """Longest free-form answer."""
    with_base: bool = True
    """Whether the base model is run too, once there is an adapter."""
    numerics: str | None = None
    """Device and versions that compute in place of this process's, if they differ."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Attach the adapter to the model, or detach all, and switch to evaluation mode."""
        with self.backbone.alone():
            if self.adapter is None:
                detach(self.backbone)
                model = self.backbone.model
            else:
                model = activate(self.backbone, self.adapter)
            with evaluation_mode(model):
                yield

    def check(self, prompts: Tokens, rows: NDArray[np.intp], n_passes: int) -> None:
        """Check that these settings can score the items, by their row numbers; needs no weights.

        With dropout at the answer only, the answer's tokens attend to stored keys and values of the
        prompt. The attention mask is then the same in all layers, and so cannot apply the sliding
        window of some of them.
        """
        if self.adapter is None or n_passes == 1 or self.acquisition.mc_scope == "all":
            return
        window = self.backbone.window
        answer = self.max_new_tokens if self.tree is None else len(self.tree.tokens)
        sizes = [len(prompt) + answer for prompt in prompts]
        long = [
            f"row {row}: {size} tokens"
            for row, size in zip(rows, sizes, strict=True)
            if size > window
        ]
        if long:
            raise InputError(
                f"{len(long)} of {len(prompts)} prompts with their answers do not fit into the "
                f"model's sliding window of {window} tokens: {listed(long)}. "
                "Acquisition(mc_scope='answer') cannot score them. Use mc_scope='all', or remove "
                "them."
            )

    def score(self, prompts: Tokens, n_passes: int, bar: ItemBar, tie_seed: int) -> ScoreTable:
        """Score a chunk of a pool in K passes (without dropout if K is 1); call it inside `ready`.

        `tie_seed` is the seed of the numbers that decide between equal scores.
        """
        if self.tree is not None:
            base, full, n_tokens, answers = self._choices(self.tree, prompts, n_passes, bar)
        else:
            base, full, n_tokens, answers = self._answers(prompts, n_passes, bar)
        return ScoreTable(
            None if base is None else base[:, 0],
            None if base is None else base[:, 1],
            full[:, 0],
            full[:, 1],
            full[:, 2],
            n_tokens,
            item_keys(prompts, tie_seed),
            answers,
        )

    def probabilities(
        self, tree: ChoiceTree, prompts: Tokens, bar: ItemBar, n_passes: int = 1
    ) -> Rows:
        """Return the probability of each choice, the mean over K passes, [c, C]; inside `ready`.

        A single pass is without dropout.
        """
        with self._work("reading", bar, n_passes) as work:
            numbers = mask_keys(row_keys(prompts))
            logs = choice_distribution(work, tree, prompts, numbers)  # [K, c, C]
            return np.asarray(np.exp(logs).mean(axis=0))

    def embeddings(self, prompts: Tokens, bar: ItemBar) -> Rows:
        """Return the base model's mean hidden state per prompt, [c, D]; inside `ready`."""

        def embedded(missing: list[int]) -> Rows:
            with renumbered(missing), self._base_work(bar, counts=True) as work:
                return prompt_embeddings(work, [prompts[i] for i in missing])

        return self.store.get(self.embedding_space, row_keys(prompts), embedded)

    def write(self, prompts: Tokens, bar: ItemBar, *, counts: bool = True) -> list[list[int]]:
        """Generate an answer to each prompt, greedily and without dropout; inside `ready`."""
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
            return answer_scores(work, prompts, answers, keys)[:, 1]

    @property
    def _runs_base(self) -> bool:
        return self.with_base or self.adapter is None

    def _choices(
        self, tree: ChoiceTree, prompts: Tokens, n_passes: int, bar: ItemBar
    ) -> tuple[Rows | None, Rows, NDArray[np.int64], list[Any]]:
        """Return scores of base [c, 2 or more] and full [c, 3 or more], lengths and answers."""
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

        base_logs = None
        if self._runs_base:
            base_logs = self.store.get(self.base_space, keys, base_rows)[None]  # [1, c, C]
        if self.adapter is None and base_logs is not None:
            full = choice_scores(base_logs)
        else:
            space = f"full {tree.identity} {self._model} {self._passes(n_passes)}"
            full = self.store.get(self._space(space), keys, full_rows)  # [c, 4]
        answers = full[:, 3].astype(np.int64)
        base = None if base_logs is None else choice_scores(base_logs, answers)
        # A choice has one distribution. Its entropy is not a sum over tokens.
        return base, full, np.ones(len(prompts), dtype=np.int64), answers.tolist()

    def _answers(
        self, prompts: Tokens, n_passes: int, bar: ItemBar
    ) -> tuple[Rows | None, Rows, NDArray[np.int64], list[Any]]:
        """Return scores of base [c, 2 or more] and full [c, 3 or more], lengths and answers."""
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
                return answer_scores(work, chosen, own, numbers[missing])

        base = self.store.get(self.base_space, keys, base_rows) if self._runs_base else None
        if self.adapter is None and base is not None:
            full = np.column_stack([base, np.zeros(len(base))])
        else:
            space = f"full free-form {self._model} {self._passes(n_passes)}"
            full = self.store.get(self._space(space), keys, full_rows)  # [c, 3]
        n_tokens = np.array([len(answer) for answer in answers], dtype=np.int64)
        return base, full, n_tokens, list(answers)

    @contextmanager
    def _work(
        self, stage: str, bar: ItemBar, n_passes: int = 1, *, counts: bool = True
    ) -> Iterator[Workload]:
        backbone, acquisition = self.backbone, self.acquisition
        dropout: Any = nullcontext()
        if n_passes > 1:
            if not backbone.by_positions and acquisition.mc_scope == "answer":
                raise InputError(
                    f"{backbone.source} uses attention by distance (ALiBi), so its passes cannot "
                    "share the prompt. Use Acquisition(mc_scope='all')."
                )
            dropout = mc_dropout(
                backbone.peft_model,
                int(n_passes),  # also for NumPy's integers
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
        """Return the share of prompts whose base scores are not stored yet.

        That is 1 for free-form answers: they change with the adapter, and their base scores too.
        """
        if self.tree is None:
            return 1.0
        keys = row_keys(prompts)
        return 1 - len(self.store.known(self.base_space, keys)) / len(set(keys))

    @cached_property
    def base_space(self) -> str:
        """Name of everything that the base model's scores of an item depend on."""
        kind = "free-form" if self.tree is None else f"choices {self.tree.identity}"
        return self._space(f"base {kind}")

    @cached_property
    def embedding_space(self) -> str:
        """Name of everything that the hidden states of an item depend on."""
        return self._space("embedding")

    def identity(self, n_passes: int) -> str:
        """Return a name of everything that an item's scores over K passes depend on."""
        kind = f"free-form {self.max_new_tokens}" if self.tree is None else self.tree.identity
        base = "" if self._runs_base else " without base"
        return self._space(f"score table {kind} {self._model} {self._passes(n_passes)}{base}")

    @cached_property
    def _model(self) -> str:
        """Name of the model that answers: the base model, or an adapter, kept for a while."""
        return "base" if self.adapter is None else f"{self.adapter.digest}*"

    def _passes(self, n_passes: int) -> str:
        if n_passes == 1:
            return "one pass"
        part = self.acquisition
        return f"{n_passes} {self.seed} {part.mask_mode} {part.mc_scope}"

    def _space(self, name: str) -> str:
        """Return a short name for everything but the item that a row depends on."""
        numerics = self.numerics or self.backbone.numerics
        digest = blake2b(f"{numerics} {name}".encode(), digest_size=16).hexdigest()
        return f"{digest}*" if "*" in self._model and self._model in name else digest


def mask_keys(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Return the numbers that masks per token are drawn from, [c], from the items' keys."""
    return np.frombuffer(b"".join(key[:8] for key in keys), dtype=np.int64).copy()
