"""Simulated rounds: a learner buys labels of a data set, and is tested after each round."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from statistics import fmean
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starlearn.data.containers import as_items
from starlearn.errors import InputError

Record = dict[str, Any]
OnEvent = Callable[[str, Record], object]

QUERY_FACTS = ("lambda", "mean_base", "mean_full", "mean_mixed")
"""Keys of ``learner.rounds_[-1]["query"]`` that are copied to the record of the round."""

LONGEST_CLASS_NAME = 80
"""Longer labels, and labels of several lines, are free-form answers instead of classes."""


class Learner(Protocol):
    """The interface of a simulated learner, as of STARLearner and modAL's ActiveLearner."""

    def query(self, X_pool: Any, n_instances: int) -> tuple[Any, ...]:
        """Return a tuple whose first element is the positions of the items to label."""

    def teach(self, X: Any, y: Any) -> Any:
        """Add labelled items and train."""

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy on a test set."""


def simulate(
    learner: Learner,
    X_pool: Any,
    y_pool: Any,
    X_test: Any,
    y_test: Any,
    *,
    n_initial: int,
    n_instances: int,
    n_rounds: int,
    random_state: int = 0,
    sub_pool: int | None = None,
    on_event: OnEvent | None = None,
) -> list[Record]:
    """Run rounds of query and teach. A label is read only when it is bought.

    Parameters
    ----------
    learner : object with query, teach and score
        An unfitted learner, which knows no labels yet.
    X_pool : collection of items, length m
        The initial set is drawn from it too.
    y_pool : sequence of labels, length m
        Read only at the positions that are bought.
    X_test, y_test : collections of items and labels, length q
        The fixed test set.
    n_initial : int
        Number of labels drawn at random before the first query. The same `random_state` draws the
        same ones for every learner. With 0 the first step is a query, which needs a learner that
        knows the possible answers.
    n_instances, n_rounds : int
        Labels bought per round, and the number of rounds after the initial set.
    random_state : int
        Seed of the initial set and of the sub-pools. The learner has its own seed.
    sub_pool : int, optional
        Offer only this many random items of the pool in each round, to save time.
    on_event : callable, optional
        Called as ``on_event("step", {"round": 2, "step": "query"})`` before each of the steps
        query, teach and score, and as ``on_event("round", record)`` after each round.

    Returns
    -------
    list of dict
        One record per round; round 0 is the initial set. Keys: round, n_labels, accuracy,
        seconds_query, seconds_teach, seconds_score, lambda, mean_base, mean_full, mean_mixed
        (None where nothing was scored), n_offered (number of items offered to the query), chosen
        (content ids of the bought items), class_mix (label counts of the batch; empty for
        free-form answers) and mean_label_length (characters).

    Raises
    ------
    InputError
        When lengths or numbers do not fit together, before any model work, and when a query
        returns unusable positions.
    """
    items, test = as_items(X_pool, "X_pool"), as_items(X_test, "X_test")
    check_sizes(items, y_pool, test, y_test, n_initial, n_instances, n_rounds, sub_pool)
    labels_of = y_pool.iloc if hasattr(y_pool, "iloc") else y_pool  # a Series, by position
    report = on_event or (lambda kind, payload: None)
    rng = np.random.default_rng([random_state, 0])
    batch = [int(i) for i in rng.choice(len(items), n_initial, replace=False)]
    bought: list[int] = []
    records: list[Record] = []
    for number in range(0 if n_initial else 1, n_rounds + 1):
        facts: Record = {"seconds_query": 0.0, "n_offered": 0}
        if number > 0:
            report("step", {"round": number, "step": "query"})
            offered = offer(len(items), bought, sub_pool, random_state, number)
            batch, facts = buy(learner, items, offered, n_instances)
        bought += batch
        labels = [labels_of[i] for i in batch]
        report("step", {"round": number, "step": "teach"})
        _, seconds_teach = timed(learner.teach, [items[i] for i in batch], labels)
        report("step", {"round": number, "step": "score"})
        accuracy, seconds_score = timed(learner.score, test, y_test)
        records.append(
            {
                "round": number,
                "n_labels": len(bought),
                "accuracy": float(accuracy),
                "seconds_teach": seconds_teach,
                "seconds_score": seconds_score,
                **dict.fromkeys(QUERY_FACTS),
                **facts,
                "chosen": [content_id(items[i]) for i in batch],
                **described(labels),
            }
        )
        report("round", records[-1])
    return records


def check_sizes(
    items: Sequence[Any],
    y_pool: Any,
    test: Sequence[Any],
    y_test: Any,
    n_initial: int,
    n_instances: int,
    n_rounds: int,
    sub_pool: int | None,
) -> None:
    """Raise InputError for numbers that do not fit together."""
    for name, value, least in (
        ("n_initial", n_initial, 0),
        ("n_instances", n_instances, 1),
        ("n_rounds", n_rounds, 0 if n_initial else 1),
        ("sub_pool", n_instances if sub_pool is None else sub_pool, n_instances),
    ):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name, X, y in (("pool", items, y_pool), ("test", test, y_test)):
        if len(X) != len(y):
            raise InputError(
                f"Found {len(X)} {name} items and {len(y)} labels; give one label per item"
            )
        if len(X) == 0:
            raise InputError(f"X_{name} is empty; give at least one item")
    if len(items) == len(test) and set(map(content_id, items)) == set(map(content_id, test)):
        raise InputError(
            "X_test has the same items as X_pool. Accuracy on items that the model was trained on "
            "does not show what it has learned; give a test set of other items"
        )
    wanted = n_initial + n_rounds * n_instances
    if wanted > len(items):
        raise InputError(
            f"{n_initial} initial labels and {n_rounds} rounds of {n_instances} are {wanted} "
            f"labels, the pool has {len(items)} items; use fewer rounds or smaller batches"
        )


def offer(
    m: int, bought: Sequence[int], sub_pool: int | None, random_state: int, number: int
) -> NDArray[np.intp]:
    """Return the positions of the items offered to this round's query, in pool order.

    The draw depends only on the seed and the round. So arms with the same seed get nearly the same
    sub-pool, which differs only by the items that each has bought before.
    """
    order = np.random.default_rng([random_state, 1, number]).permutation(m)
    left = order[~np.isin(order, np.asarray(bought, dtype=np.intp))]
    return np.sort(left[:sub_pool])


def buy(
    learner: Learner, items: Sequence[Any], offered: NDArray[np.intp], n_instances: int
) -> tuple[list[int], Record]:
    """Query without labels; return the pool positions of the batch and the query's facts."""
    shown = [items[i] for i in offered]
    answer, seconds = timed(learner.query, shown, n_instances=n_instances)
    chosen = np.asarray(answer[0]).ravel()
    if (
        len(chosen) != n_instances
        or len(np.unique(chosen)) != n_instances
        or not all(0 <= i < len(offered) for i in chosen)
    ):
        raise InputError(
            f"query must return {n_instances} distinct positions below {len(offered)}, got "
            f"{chosen.tolist()!r:.200}; fix the learner's query"
        )
    history = getattr(learner, "rounds_", None) or [{}]
    seen = history[-1].get("query") or {}
    facts: Record = {name: seen.get(name) for name in QUERY_FACTS}
    facts |= {"seconds_query": seconds, "n_offered": len(offered)}
    return [int(i) for i in offered[chosen]], facts


def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return the result of a call, and its time in seconds."""
    started = perf_counter()
    result = call(*args, **kwargs)
    return result, round(perf_counter() - started, 3)


def described(labels: Sequence[Any]) -> Record:
    """Return the class counts and the mean label length of a batch."""
    texts = [str(label) for label in labels]
    are_classes = all(len(text) <= LONGEST_CLASS_NAME and "\n" not in text for text in texts)
    return {
        "class_mix": dict(Counter(texts).most_common()) if are_classes else {},
        "mean_label_length": round(fmean(map(len, texts)), 2),
    }


def content_id(item: str | Mapping[str, Any]) -> str:
    """Return a short id that depends only on the content of an item.

    Examples
    --------
    >>> content_id({"a": "1", "b": "2"}) == content_id({"b": "2", "a": "1"})
    True
    """
    content = json.dumps(item, sort_keys=True, ensure_ascii=True, default=str)
    return sha256(content.encode()).hexdigest()[:16]
