"""Pools for simulated active learning: items, labels and a test set, by kind and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.random import Generator

from starlearn.embedded.grammar import NAMES, SKILLS, THINGS, UNLEARNABLE_SKILLS, Question

LARGEST_POOL = 20_000


@dataclass(frozen=True)
class EmbeddedPool:
    """A pool with its labels, and a test set without the pool's questions.

    Attributes
    ----------
    items, test_items : list of dict
        Dicts with one field, ``question``.
    labels, test_labels : list of str
        The right answers, in the order of the items.
    skills, test_skills : list of str
        The skill of each item, for analysis only: a learner never gets it.
    choices : list of str or None
        All possible answers; None for free-form answers.
    prompt : str
        The prompt's template.
    answer_pattern : str or None
        For free-form answers, a regular expression whose group is the final answer.
    """

    items: list[dict[str, str]]
    labels: list[str]
    test_items: list[dict[str, str]]
    test_labels: list[str]
    skills: list[str]
    test_skills: list[str]
    choices: list[str] | None
    prompt: str
    answer_pattern: str | None


@dataclass(frozen=True)
class PoolKind:
    """A kind of pool: the share of each skill, and the form of answers."""

    shares: Mapping[str, float]
    choices: tuple[str, ...] | None
    answer_pattern: str | None = None


POOL_KINDS: Mapping[str, PoolKind] = MappingProxyType(
    {
        "skewed": PoolKind(
            {"most": 0.80, "fewest": 0.05, "second_last": 0.05, "follower": 0.05, "middle": 0.05},
            NAMES,
        ),
        "homogeneous": PoolKind({"cheapest": 1.0}, THINGS),
        "noisy": PoolKind(
            {"most": 0.17, "fewest": 0.17, "second_last": 0.17, "follower": 0.17, "middle": 0.17}
            | {"happy": 0.15},
            NAMES,
        ),
        "steps": PoolKind({"change": 0.70, "double": 0.15, "undo": 0.15}, None, r"answer (\d+)"),
    }
)


def make_pool(
    kind: str = "skewed", n_items: int = 1000, n_test: int = 200, *, random_state: int = 0
) -> EmbeddedPool:
    """Make a pool of one of the four kinds.

    Parameters
    ----------
    kind : {"skewed", "homogeneous", "noisy", "steps"}
        ``skewed``: one common skill that the model has, and rare ones that it lacks.
        ``homogeneous``: one skill; all items are alike, as a null control.
        ``noisy``: five skills in equal parts, and 15 % of the items with random answers.
        ``steps``: free-form answers with one to four steps of working.
    n_items, n_test : int
        Sizes of the pool and of the test set, at most 20,000 together. The test set has the
        learnable skills in equal parts, and does not depend on `n_items`.
    random_state : int
        Seed. The same arguments always give the same pool.

    Returns
    -------
    EmbeddedPool
        Its items are distinct, and none of them is in the test set.

    Raises
    ------
    ValueError
        When an argument is invalid.

    Examples
    --------
    >>> pool = make_pool("skewed", n_items=100, n_test=20, random_state=10_000)
    >>> len(pool.items), pool.skills.count("most")
    (100, 80)
    """
    check_arguments(kind, n_items, n_test, random_state)
    settings, place = POOL_KINDS[kind], list(POOL_KINDS).index(kind)
    taken: set[str] = set()
    learnable = {name: 1.0 for name in settings.shares if name not in UNLEARNABLE_SKILLS}
    test = draw_items(np.random.default_rng([random_state, place, 1]), learnable, n_test, taken)
    pool = draw_items(
        np.random.default_rng([random_state, place, 0]), settings.shares, n_items, taken
    )
    return EmbeddedPool(
        items=[{"question": item.text} for item in pool],
        labels=[item.answer for item in pool],
        test_items=[{"question": item.text} for item in test],
        test_labels=[item.answer for item in test],
        skills=[item.skill for item in pool],
        test_skills=[item.skill for item in test],
        choices=None if settings.choices is None else list(settings.choices),
        prompt="{question}",
        answer_pattern=settings.answer_pattern,
    )


def check_arguments(kind: str, n_items: int, n_test: int, random_state: int) -> None:
    """Raise ValueError for invalid arguments of `make_pool`."""
    if kind not in POOL_KINDS:
        allowed = ", ".join(repr(name) for name in POOL_KINDS)
        raise ValueError(f"make_pool: kind must be one of {allowed}; got {kind!r}")
    for name, size in (("n_items", n_items), ("n_test", n_test)):
        if not is_whole(size) or size < 1:
            raise ValueError(
                f"make_pool: {name} must be a whole number of at least 1; got {size!r}"
            )
    if n_items + n_test > LARGEST_POOL:
        raise ValueError(
            f"make_pool: n_items + n_test must be at most {LARGEST_POOL}; got {n_items + n_test}"
        )
    if not is_whole(random_state) or random_state < 0:
        raise ValueError(
            f"make_pool: random_state must be a whole number of at least 0; got {random_state!r}"
        )


def is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def draw_items(
    rng: Generator, shares: Mapping[str, float], n_items: int, taken: set[str]
) -> list[Question]:
    """Draw questions in the given shares and in random order, and add their texts to `taken`."""
    items = []
    for name, count in whole_counts(shares, n_items).items():
        while count:
            item = SKILLS[name](rng)
            if item.text not in taken:
                taken.add(item.text)
                items.append(item)
                count -= 1
    return [items[place] for place in rng.permutation(len(items))]


def whole_counts(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Split a total by the largest remainders; of equal ones the first in `shares` wins."""
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(part + 1e-9) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: round(counts[name] - exact[name], 9))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
