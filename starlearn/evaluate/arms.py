"""The arms of a study, one table: what each changes, and how it picks where the product cannot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError
from starlearn.settings import PUBLISHED_SCHEDULE

Facts = dict[str, Any]
Picked = tuple[NDArray[np.intp], Facts]
Pick = Callable[[Any, Sequence[Any], int, np.random.Generator, Sequence[Any] | None], Picked]
"""(learner, offered items, n, generator, their gold labels or None) -> positions and facts.

The gold labels come to arms whose name says that they leak, and to no other.
"""


@dataclass(frozen=True)
class Arm:
    """One way to choose and train, as a change to the settings that all arms share."""

    says: str
    acquisition: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    pick: Pick | None = None
    """Replaces the learner's query."""
    leaks_labels: bool = False


def drawn_keys(m: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Draw a number for each of m items, by which ties are broken."""
    return rng.integers(0, 2**63, m, dtype=np.uint64)


def shuffled_base(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Mix as STAR does, but with the base scores dealt out at random: a placebo."""
    from starlearn.query.mixing import mixed
    from starlearn.query.selection import top_n

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


def agreeing_scores(learner: Any, items: Sequence[Any]) -> tuple[NDArray[np.float64], Facts]:
    """Mix with lambda(t) times the rank correlation of base and full uncertainty, 0 at least."""
    from starlearn.evaluate.statistics import spearman
    from starlearn.query.mixing import mixed

    part = learner.acquisition
    found = learner.uncertainty(items)
    correlation = spearman(found.base, found.full) or 0.0
    weight = part.base_weight(len(learner.rounds_) - 1) * max(correlation, 0.0)
    values = mixed(found.base, found.full, weight, part.normalise)
    return values, {"lambda": weight}


def agreeing(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Give the base model a share only where it ranks as the adapter does."""
    from starlearn.query.selection import top_n

    values, facts = agreeing_scores(learner, items)
    return top_n(values, n, drawn_keys(len(items), rng)), facts


def by_rank(values: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw n items without repeats, each with a chance proportional to 1 / rank.

    The soft-rank draw of arXiv 2106.12059, equation 6, by Gumbel noise.
    """
    ranks = 1 + np.argsort(np.argsort(-values, kind="stable"), kind="stable")
    return np.argsort(np.log(ranks) - rng.gumbel(size=len(values)), kind="stable")[:n]


def drawn_softly(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Draw by the rank of STAR's uncertainty in place of the best."""
    return by_rank(learner.uncertainty(items).mixed, n, rng), {}


def agreeing_softly(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Draw by the rank of a mix that heeds how far base and full agree."""
    values, facts = agreeing_scores(learner, items)
    return by_rank(values, n, rng), facts


def unlike_each_other(
    learner: Any,
    items: Sequence[Any],
    values: NDArray[np.float64],
    n: int,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Draw n items as k-means++ draws centres, on base hidden states, weighted by values."""
    from starlearn.query.diversity import kmeans_plus_plus

    keys = drawn_keys(len(items), rng)
    return kmeans_plus_plus(values, learner.transform(items), n, rng, keys=keys)


def agreeing_and_spread(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Draw as k-means++ does, weighted by a mix that heeds how far base and full agree."""
    values, facts = agreeing_scores(learner, items)
    return unlike_each_other(learner, items, values, n, rng), facts


def longest_first(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Buy the items with the longest text: no model takes part."""
    from starlearn.query.selection import top_n

    lengths = np.array([item_length(item) for item in items], dtype=np.float64)
    return top_n(lengths, n, drawn_keys(len(items), rng)), {}


def spread_out(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Draw as k-means++ draws centres, on base hidden states, without any uncertainty."""
    return unlike_each_other(learner, items, np.ones(len(items)), n, rng), {}


def gold_loss_first(
    learner: Any, items: Sequence[Any], n: int, rng: np.random.Generator, gold: Any
) -> Picked:
    """Buy the items whose right answer the model finds least likely; nobody could know them."""
    from starlearn.evaluate.judging import gold_losses
    from starlearn.query.selection import top_n

    if gold is None:
        raise InputError("an arm that ranks by gold answers was run without them")
    return top_n(gold_losses(learner, items, gold), n, drawn_keys(len(items), rng)), {}


def item_length(item: Any) -> int:
    """Return the characters of an item's text, all of its fields together."""
    return len(item) if isinstance(item, str) else sum(len(str(text)) for text in item.values())


PLAIN = MappingProxyType({"schedule": 0.0, "n_passes": 1})
NO_DECAY = MappingProxyType({"b_weight_decay": 0.0, "b_shrinkage": None})

ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "random": Arm("a seeded random draw", {"strategy": "random"}),
        "plain_entropy": Arm(
            "plain active learning with LoRA: entropy, no base, no dropout passes, no decay on B",
            {**PLAIN, "measure": "entropy"},
            NO_DECAY,
        ),
        "plain_pe": Arm(
            "the same by predictive entropy",
            {**PLAIN, "measure": "predictive_entropy"},
            NO_DECAY,
        ),
        "star_entropy": Arm("STAR with maximum entropy (ME)", {"measure": "entropy"}),
        "star_pe": Arm("STAR with predictive entropy (PE)", {"measure": "predictive_entropy"}),
        "lambda_0": Arm("STAR without the base mix: lambda = 0", {"schedule": 0.0}),
        "lambda_1": Arm("the base model's uncertainty alone: lambda = 1", {"schedule": 1.0}),
        "lambda_reversed": Arm(
            "STAR with lambda rising: 0.1, 0.2, ..., 0.9",
            {"schedule": PUBLISHED_SCHEDULE[::-1]},
        ),
        "base_shuffled": Arm("STAR with shuffled base scores: a placebo", pick=shuffled_base),
        "agreement": Arm(
            "a candidate: lambda(t) times the rank correlation of base and full uncertainty",
            pick=agreeing,
        ),
        "soft": Arm(
            "a candidate: STAR's batch drawn by rank in place of its best", pick=drawn_softly
        ),
        "agreement_soft": Arm("a candidate: both", pick=agreeing_softly),
        "agreement_kmeans": Arm(
            "a candidate: the mix of agreement, and diversity: k-means++", pick=agreeing_and_spread
        ),
        "no_decay": Arm("STAR without decay on B", training=NO_DECAY),
        "strong_decay": Arm("STAR with B shrunk to 37 % a training", training={"b_shrinkage": 1.0}),
        "no_dropout": Arm("STAR without Monte-Carlo dropout: one pass", {"n_passes": 1}),
        "bald": Arm(
            "mutual information of answer and dropout mask alone (BALD)",
            {"measure": "mutual_information", "schedule": 0.0},
        ),
        "bald_8": Arm(
            "a candidate: BALD with K = 8 passes",
            {"measure": "mutual_information", "schedule": 0.0, "n_passes": 8},
        ),
        "bald_kmeans_4": Arm(
            "a candidate: k-means++ among the 4 n items that BALD puts first",
            {
                "measure": "mutual_information",
                "schedule": 0.0,
                "diversity": "kmeans++",
                "candidates": 4,
            },
        ),
        "longest": Arm("the longest items first", {"strategy": "random"}, pick=longest_first),
        "kmeans": Arm(
            "diversity alone: k-means++ on base hidden states",
            {"strategy": "random"},
            pick=spread_out,
        ),
        "star_kmeans": Arm(
            "STAR's uncertainty and diversity: k-means++", {"diversity": "kmeans++"}
        ),
        "lambda_0_kmeans": Arm(
            "uncertainty of the adapter alone and diversity: k-means++",
            {"schedule": 0.0, "diversity": "kmeans++"},
        ),
        "lambda_0_kmeans_4": Arm(
            "k-means++ among the 4 n items of which the adapter alone is least certain",
            {"schedule": 0.0, "diversity": "kmeans++", "candidates": 4},
        ),
        "gold_loss_leaks_labels": Arm(
            "LEAKS LABELS: largest loss of the right answer; a control, not a method",
            {"strategy": "random"},
            pick=gold_loss_first,
            leaks_labels=True,
        ),
    }
)
"""Every arm of a study by name; the settings are those of the learner."""


def arm_named(name: str) -> Arm:
    """Return an arm.

    Raises
    ------
    InputError
        For an unknown name, with the closest known one.
    """
    if name in ARMS:
        return ARMS[name]
    close = get_close_matches(name, ARMS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(ARMS)}."
    raise InputError(f"there is no arm {name!r:.60}. {hint}")
