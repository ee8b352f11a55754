"""The arms of a study in one table: the settings that each changes, and its own selection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from starlearn.errors import InputError
from starlearn.evaluate.statistics import spearman
from starlearn.query.mixing import mixed
from starlearn.query.selection import top_n
from starlearn.settings import PUBLISHED_SCHEDULE

Facts = dict[str, Any]
Items = Sequence[Any]
Picked = tuple[NDArray[np.intp], Facts]
Pick = Callable[[Any, Items, int, Generator, Sequence[Any] | None], Picked]
"""(learner, offered items, n, generator, gold labels or None) -> positions and facts.

Only arms that leak labels, and say so in their name, receive the gold labels.
"""


@dataclass(frozen=True)
class Arm:
    """One way to select and train, as changes to the settings that all arms share."""

    description: str
    acquisition: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    pick: Pick | None = None
    """Replaces the learner's query."""
    leaks_labels: bool = False
    title: str | None = None
    """Name in reports; the arm's key where it is None."""


def drawn_keys(m: int, rng: Generator) -> NDArray[np.uint64]:
    """Draw one random number per item, to break ties between m items."""
    return rng.integers(0, 2**63, m, dtype=np.uint64)


def shuffled_base(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Mix as STAR does, with the base scores permuted at random: a placebo."""
    part = learner.acquisition
    weight = part.base_weight(len(learner.rounds_) - 1)
    found = learner.uncertainty(items)
    values = mixed(rng.permutation(found.base), found.full, weight, part.normalise)
    facts = {
        "lambda": weight,
        "mean_base": float(found.base.mean()),
        "mean_full": float(found.full.mean()),
        "mean_mixed": float(values.mean()),
    }
    return top_n(values, n, drawn_keys(len(items), rng)), facts


def agreeing_scores(learner: Any, items: Items) -> tuple[NDArray[np.float64], Facts]:
    """Mix with lambda(t) times the rank correlation of base and full uncertainty, at least 0."""
    part = learner.acquisition
    found = learner.uncertainty(items)
    correlation = spearman(found.base, found.full) or 0.0
    weight = part.base_weight(len(learner.rounds_) - 1) * max(correlation, 0.0)
    return mixed(found.base, found.full, weight, part.normalise), {"lambda": weight}


def agreeing(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Select by the mix of `agreeing_scores`."""
    values, facts = agreeing_scores(learner, items)
    return top_n(values, n, drawn_keys(len(items), rng)), facts


def by_rank(values: NDArray[np.float64], n: int, rng: Generator) -> NDArray[np.intp]:
    """Draw n distinct items, each with a probability proportional to 1 / rank.

    This is the soft-rank draw of arXiv 2106.12059, equation 6, by Gumbel noise.
    """
    ranks = 1 + np.argsort(np.argsort(-values, kind="stable"), kind="stable")
    return np.argsort(np.log(ranks) - rng.gumbel(size=len(values)), kind="stable")[:n]


def drawn_softly(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Draw by the rank of STAR's uncertainty instead of taking the top n."""
    return by_rank(learner.uncertainty(items).mixed, n, rng), {}


def agreeing_softly(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Draw by the rank of the mix of `agreeing_scores`."""
    values, facts = agreeing_scores(learner, items)
    return by_rank(values, n, rng), facts


def unlike_each_other(
    learner: Any, items: Items, values: NDArray[np.float64], n: int, rng: Generator
) -> NDArray[np.intp]:
    """Draw n items as k-means++ draws centres: on base hidden states, weighted by values."""
    from starlearn.query.diversity import kmeans_plus_plus

    keys = drawn_keys(len(items), rng)
    return kmeans_plus_plus(values, learner.transform(items), n, rng, keys=keys)


def agreeing_and_spread(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Draw as k-means++ does, weighted by the mix of `agreeing_scores`."""
    values, facts = agreeing_scores(learner, items)
    return unlike_each_other(learner, items, values, n, rng), facts


def longest_first(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Select the items with the longest text, without a model."""
    lengths = np.array([item_length(item) for item in items], dtype=np.float64)
    return top_n(lengths, n, drawn_keys(len(items), rng)), {}


def spread_out(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Draw as k-means++ draws centres: on base hidden states, without uncertainty."""
    return unlike_each_other(learner, items, np.ones(len(items)), n, rng), {}


def gold_loss_first(learner: Any, items: Items, n: int, rng: Generator, gold: Any) -> Picked:
    """Select the items whose gold answer the model finds least likely. Reads gold labels."""
    from starlearn.evaluate.judging import gold_losses

    if gold is None:
        raise InputError("This arm ranks by gold answers, and none were given.")
    return top_n(gold_losses(learner, items, gold), n, drawn_keys(len(items), rng)), {}


def item_length(item: Any) -> int:
    """Return the number of characters of an item's text, over all of its fields."""
    return len(item) if isinstance(item, str) else sum(len(str(text)) for text in item.values())


PLAIN = MappingProxyType({"schedule": 0.0, "n_passes": 1})
BALD = MappingProxyType({"measure": "mutual_information", "schedule": 0.0})
NO_DECAY = MappingProxyType({"b_weight_decay": 0.0, "b_shrinkage": None})

ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "default": Arm("the study's acquisition settings; published (STAR) where they are silent"),
        "random": Arm("a seeded random draw", {"strategy": "random"}),
        "plain_entropy": Arm(
            "plain active learning with LoRA: entropy, no base model, one pass, no decay on B",
            {**PLAIN, "measure": "entropy"},
            NO_DECAY,
        ),
        "plain_pe": Arm(
            "plain active learning with LoRA, by predictive entropy",
            {**PLAIN, "measure": "predictive_entropy"},
            NO_DECAY,
        ),
        "star_entropy": Arm(
            "STAR with maximum entropy (ME)", {"measure": "entropy"}, title="published (STAR)"
        ),
        "star_pe": Arm("STAR with predictive entropy (PE)", {"measure": "predictive_entropy"}),
        "lambda_0": Arm("STAR without the base mix: lambda = 0", {"schedule": 0.0}),
        "lambda_1": Arm("only the base model's uncertainty: lambda = 1", {"schedule": 1.0}),
        "lambda_reversed": Arm(
            "STAR with lambda rising: 0.1, 0.2, ..., 0.9", {"schedule": PUBLISHED_SCHEDULE[::-1]}
        ),
        "base_shuffled": Arm("a placebo: STAR with shuffled base scores", pick=shuffled_base),
        "agreement": Arm(
            "a candidate: lambda(t) times the rank correlation of base and full uncertainty",
            pick=agreeing,
        ),
        "soft": Arm("a candidate: STAR with a draw by rank", pick=drawn_softly),
        "agreement_soft": Arm("a candidate: agreement with a draw by rank", pick=agreeing_softly),
        "agreement_kmeans": Arm("a candidate: agreement with k-means++", pick=agreeing_and_spread),
        "no_decay": Arm("STAR without decay on B", training=NO_DECAY),
        "strong_decay": Arm(
            "STAR with B shrunk to 37 % per training", training={"b_shrinkage": 1.0}
        ),
        "no_dropout": Arm("STAR without Monte-Carlo dropout: one pass", {"n_passes": 1}),
        "bald": Arm(
            "mutual information of answer and dropout mask (BALD), lambda = 0",
            BALD,
            title="default (mutual information)",
        ),
        "bald_8": Arm(
            "a candidate: BALD with K = 8 passes",
            {**BALD, "n_passes": 8},
        ),
        "bald_kmeans_4": Arm(
            "a candidate: k-means++ among the top 4 n items of BALD",
            {**BALD, "diversity": "kmeans++", "candidates": 4},
        ),
        "longest": Arm("the longest items first", {"strategy": "random"}, pick=longest_first),
        "kmeans": Arm(
            "only diversity: k-means++ on base hidden states",
            {"strategy": "random"},
            pick=spread_out,
        ),
        "star_kmeans": Arm("STAR with k-means++", {"diversity": "kmeans++"}),
        "lambda_0_kmeans": Arm(
            "lambda = 0 with k-means++", {"schedule": 0.0, "diversity": "kmeans++"}
        ),
        "lambda_0_kmeans_4": Arm(
            "k-means++ among the top 4 n items of lambda = 0",
            {"schedule": 0.0, "diversity": "kmeans++", "candidates": 4},
        ),
        "gold_loss_leaks_labels": Arm(
            "LEAKS LABELS: largest loss of the gold answer; a control, not a method",
            {"strategy": "random"},
            pick=gold_loss_first,
            leaks_labels=True,
        ),
    }
)
"""Every arm of a study by its key; the settings are those of the learner."""


def arm_named(name: str) -> Arm:
    """Return an arm; raise InputError for an unknown name, with the closest known one."""
    if name in ARMS:
        return ARMS[name]
    close = get_close_matches(name, ARMS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(ARMS)}."
    raise InputError(f"unknown arm {name!r:.60}. {hint}")


def arm_title(name: str) -> str:
    """Return the name of an arm in reports; arms that no longer exist keep their key."""
    return (ARMS[name].title or name) if name in ARMS else name
