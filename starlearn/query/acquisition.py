"""The steps of a query in order: answers, full scores, base scores, one number per item."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from starlearn.errors import NotFiniteError, listed
from starlearn.model.adapter import Adapter, activate, base_only, detach
from starlearn.model.answers import generate_answers
from starlearn.model.backbone import Backbone
from starlearn.model.choices import ChoiceTree, choice_distribution, mean_log_probability
from starlearn.model.dropout import evaluation_mode, mc_dropout
from starlearn.query.base_cache import BaseCache, cache_key
from starlearn.query.mixing import mixed, per_answer
from starlearn.query.scores import Scores, answer_scores, choice_scores
from starlearn.settings import Acquisition

Tokens = Sequence[Sequence[int]]


@contextmanager
def item_progress(title: str, total: int, verbose: bool) -> Iterator[Any]:
    """Show a bar that counts items; gives the function that moves it."""
    with tqdm(total=total, desc=title, unit="item", disable=not verbose) as bar:
        yield bar.update


@dataclass(frozen=True)
class Uncertainty:
    """One value per item of a pool of m, in the pool's order."""

    base: NDArray[np.float64]
    """Uncertainty of the base model, by the chosen measure and reduction, shape [m]."""
    full: NDArray[np.float64]
    """The same of base and adapter together, mean over the passes, shape [m]."""
    mixed: NDArray[np.float64]
    """What the query ranks by, shape [m]."""
    entropy: NDArray[np.float64]
    """Mean entropy over the passes, shape [m]."""
    mutual_information: NDArray[np.float64]
    """Between answer and pass, shape [m]."""
    n_tokens: NDArray[np.int64]
    """Scored tokens of the answer, shape [m]."""
    answers: Any
    """The model's own answers, shape [m]: labels or texts at the public face; before that the
    index of the likeliest choice, or the tokens of the text."""


@dataclass(frozen=True)
class Scoring:
    """What every step of scoring a pool needs to know."""

    backbone: Backbone
    adapter: Adapter | None
    """None before the first training: then the base model's uncertainty is all there is."""
    acquisition: Acquisition
    cache: BaseCache
    t: int
    """Round, 0-based; decides lambda(t)."""
    seed: int
    """Of the dropout masks."""
    verbose: bool

    @property
    def budget(self) -> dict[str, int]:
        """The arguments that every scoring function takes."""
        return {
            "pad_id": self.backbone.pad_id,
            "max_batch_tokens": self.acquisition.max_batch_tokens,
        }

    def progress(self, title: str, total: int) -> AbstractContextManager[Any]:
        """Show a bar that counts items; gives the function that moves it."""
        return item_progress(title, total, self.verbose)

    @contextmanager
    def passes(self) -> Iterator[int]:
        """Switch on K stacked dropout passes; K = 1 is one pass without dropout."""
        n_passes = self.acquisition.n_passes
        dropout = (
            mc_dropout(self.backbone.peft_model, n_passes, self.seed)
            if n_passes > 1
            else nullcontext()
        )
        with dropout:
            yield n_passes


def score_choices(scoring: Scoring, prompts: Tokens, tree: ChoiceTree) -> Uncertainty:
    """Compute the dynamic uncertainty of items with a closed set of answers.

    Parameters
    ----------
    prompts : sequence of token sequences, length m
    tree : ChoiceTree
        The C choices.

    Returns
    -------
    Uncertainty
        ``answers`` are indices of choices.
    """
    backbone = scoring.backbone

    def base_rows(missing: list[int]) -> NDArray[np.float64]:
        chosen = [prompts[i] for i in missing]
        with base_only(backbone) as base, scoring.progress("base model", len(chosen)) as progress:
            return choice_distribution(
                base, tree, chosen, n_passes=1, progress=progress, **scoring.budget
            )[0]

    kind = f"choices {tree.identity}"
    with evaluation_mode(_ready_model(scoring)):
        keys = [cache_key(backbone.numerics, kind, prompt) for prompt in prompts]
        base_logs = scoring.cache.get(keys, base_rows)[None]  # [1, m, C]
        full_logs = base_logs
        if scoring.adapter is not None:
            with (
                scoring.passes() as n_passes,
                scoring.progress(f"{n_passes} passes", len(prompts)) as progress,
            ):
                full_logs = choice_distribution(
                    backbone.peft_model,
                    tree,
                    prompts,
                    n_passes=n_passes,
                    progress=progress,
                    **scoring.budget,
                )  # [K, m, C]
    answers = mean_log_probability(full_logs).argmax(axis=-1)  # [m]
    return _combine(
        scoring,
        base=choice_scores(base_logs, answers),
        full=choice_scores(full_logs, answers),
        n_tokens=tree.n_tokens[answers],
        lengths=np.ones(len(prompts), dtype=np.int64),
        answers=answers.tolist(),
    )


def score_free_form(scoring: Scoring, prompts: Tokens, max_new_tokens: int) -> Uncertainty:
    """Compute the dynamic uncertainty of items with free-form answers.

    The model writes an answer to each prompt; base and full model are then scored on these same
    tokens. Gold answers take no part.

    Parameters
    ----------
    prompts : sequence of token sequences, length m
    max_new_tokens : int

    Returns
    -------
    Uncertainty
        ``answers`` are token lists.
    """
    backbone = scoring.backbone
    model = _ready_model(scoring)
    with evaluation_mode(model):
        with scoring.progress("answering", len(prompts)) as progress:
            answers = generate_answers(
                model,
                prompts,
                max_new_tokens=max_new_tokens,
                eos_id=backbone.eos_id,
                progress=progress,
                **scoring.budget,
            )

        def base_rows(missing: list[int]) -> NDArray[np.float64]:
            chosen, own = [prompts[i] for i in missing], [answers[i] for i in missing]
            with base_only(backbone) as base, scoring.progress("base model", len(own)) as progress:
                scores = answer_scores(
                    base, chosen, own, n_passes=1, progress=progress, **scoring.budget
                )
            return np.stack([scores.entropy, scores.predictive_entropy], axis=-1)

        keys = [
            cache_key(backbone.numerics, "free-form", prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        rows = scoring.cache.get(keys, base_rows)  # [m, 2]
        base = Scores(rows[:, 0], rows[:, 1], np.zeros(len(prompts)))
        full = base
        if scoring.adapter is not None:
            with (
                scoring.passes() as n_passes,
                scoring.progress(f"{n_passes} passes", len(prompts)) as progress,
            ):
                full = answer_scores(
                    model, prompts, answers, n_passes=n_passes, progress=progress, **scoring.budget
                )
    n_tokens = np.array([len(answer) for answer in answers], dtype=np.int64)
    return _combine(scoring, base, full, n_tokens, n_tokens, list(answers))


def _ready_model(scoring: Scoring) -> Any:
    if scoring.adapter is None:
        detach(scoring.backbone)
        return scoring.backbone.model
    return activate(scoring.backbone, scoring.adapter)


def _combine(
    scoring: Scoring,
    base: Scores,
    full: Scores,
    n_tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    answers: list[Any],
) -> Uncertainty:
    """Reduce, normalise and mix; `lengths` is 1 where scores are not sums over tokens."""
    acquisition = scoring.acquisition

    def reduced(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return per_answer(sums, lengths, acquisition.reduce)

    measure = acquisition.measure
    # The base model is deterministic: without dropout there is no mutual information.
    base_measure = "entropy" if measure == "mutual_information" else measure
    base_values = reduced(getattr(base, base_measure))
    trained = scoring.adapter is not None
    full_values = reduced(getattr(full, measure if trained else base_measure))
    wrong = np.flatnonzero(~np.isfinite(base_values + full_values))
    if wrong.size:
        raise NotFiniteError(
            f"The model's uncertainty is NaN or infinite for {len(wrong)} of {len(base_values)} "
            f"items: {listed([f'row {row}' for row in wrong])}. Its numbers overflow in "
            f"{scoring.backbone.dtype}, or its weights are broken; nothing was chosen. Try another "
            "quantization, or another copy of the model."
        )
    weight = acquisition.base_weight(scoring.t) if trained else 1.0
    return Uncertainty(
        base=base_values,
        full=full_values,
        mixed=mixed(base_values, full_values, weight, acquisition.normalise),
        entropy=reduced(full.entropy),
        mutual_information=reduced(full.mutual_information),
        n_tokens=n_tokens,
        answers=answers,
    )
